"""`benchmarks.own_method`: a method of one's own is measured as `gen` measures."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import gaussian
from pages import data_of
from torchvision_on_cpu import declare_operators

from benchmarks.own_method import Method, evaluate
from degradation import Draws, GaussianNoise, Problem, get_family

DOC = (Path(__file__).resolve().parents[2] / "docs" / "metrics.md").read_text()
SHAPE = (3, 16, 16)


@pytest.fixture
def problem() -> Problem:
    """Of operators that differ, with noise."""
    operator = get_family("MissingPatches").sample(SHAPE, None, [1, 2])
    return GaussianNoise(0.1).measure(operator, gaussian(2, *SHAPE).float(), Draws([1, 2]))


def solved(function: Any, problem: Problem) -> torch.Tensor:
    return Method(function)(problem, torch.zeros(2, *SHAPE), Draws([1, 2]))


def test_a_function_has_the_values_of_the_baseline_that_it_is(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    rows = evaluate(
        lambda y, operator: operator.H_pinv(y), tmp_path / "out", name="mine", nfe=7,
        beside=["pinv", "mmse", "ddrm"], images=2, metrics="psnr,consistency",
        degradations=("Box", "MotionBlur"), sampler_opt={"num_steps": "2"},
    )  # fmt: skip
    found = {(row.method, row.family, row.metric): row for row in rows}
    methods = ("mine", "H†y", "InvFusion MMSE", "DDRM")
    assert len(found) == len(rows) == 16 and {row.method for row in rows} == {*methods}
    for family in ("Box", "MotionBlur"):
        for metric in ("psnr", "consistency"):
            mine, theirs = (found[method, family, metric] for method in methods[:2])
            assert mine[2:7] == theirs[2:7] and mine.count == 2 and mine.low <= mine.mean
            assert (mine.nfe, theirs.nfe) == (7, 0) and mine.seconds > 0
    assert found["DDRM", "Box", "psnr"].nfe == 2
    assert "| mine " in capsys.readouterr().out
    page = data_of(tmp_path / "out/report.html")
    assert page["cells"]["Box"]["mine"]["rows"] == page["cells"]["Box"]["H†y"]["rows"]


def test_a_sampler_is_measured_by_its_name(tmp_path: Path) -> None:
    rows = evaluate("mmse", tmp_path / "out", images=2, metrics="psnr", degradations=("Box",))
    ((method, family, metric, *_, count, nfe, _),) = rows
    assert (method, family, metric, count, nfe) == ("InvFusion MMSE", "Box", "psnr", 2, 1)


def test_a_name_that_is_taken_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit):
        evaluate(lambda y, operator: y, tmp_path / "out", name="H†y", beside=["pinv"])
    assert "the name H†y is taken" in capsys.readouterr().err


def test_a_function_gets_what_its_second_parameter_says(problem: Problem) -> None:
    operator = problem.degradation
    expected = operator.H_pinv(problem.y, problem.levels)
    assert torch.equal(solved(lambda y, problem: problem.pinv(), problem), expected)
    found = solved(lambda y, H: H.H_pinv(y, problem.levels), problem)
    assert torch.equal(found, expected)
    with pytest.raises(ValueError, match="images must be"):
        solved(lambda y, operator: y, problem)


def test_a_reconstructor_of_deepinv_sees_images_in_0_to_1(problem: Problem) -> None:
    declare_operators()
    deepinv = pytest.importorskip("deepinv")
    seen = []

    class Filled(deepinv.models.Reconstructor):
        def forward(self, y: torch.Tensor, physics: Any, seed: int | None = None) -> torch.Tensor:
            seen.append((y, physics.noise_model.sigma))
            return physics.A_adjoint(y)

    found, operator = solved(Filled(), problem), problem.degradation
    ((y, sigma),) = seen
    visible = operator.H_adjoint(operator.H(torch.ones(2, *SHAPE)))  # a mask
    assert y.shape == (2, *SHAPE) and torch.all(sigma == 0.05)
    torch.testing.assert_close(y, (operator.H_adjoint(problem.y) + visible) / 2)
    torch.testing.assert_close(found, operator.H_adjoint(problem.y) + visible - 1)
    # What a physics of deepinv does with an image in [0, 1] is what was measured.
    x = torch.rand(2, *SHAPE)
    exact = Problem(operator, operator.H(2 * x - 1))
    assert solved(lambda y, physics: physics.A(x) - y, exact).add(1).abs().max() < 1e-5


def test_the_example_of_the_document(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", DOC, re.S) if "evaluate" in b)
    monkeypatch.chdir(tmp_path)
    assert "images=64" in block and len(block.strip().splitlines()) <= 12
    names: dict[str, Any] = {}
    exec(block.replace("images=64", "images=1, metrics='psnr'"), names)
    psnr = {row.method: row.mean for row in names["rows"] if row.family == "MotionBlur"}
    assert set(psnr) == {"landweber", "H†y", "InvFusion MMSE"} and psnr["landweber"] > 8
    assert "landweber" in (tmp_path / "experiments/landweber/report.html").read_text()
