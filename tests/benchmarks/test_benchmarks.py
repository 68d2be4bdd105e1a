"""Every benchmark at a tiny size: it runs, and its result has what the documents quote."""

import json
import math
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers import ONE_LEVEL, gaussian
from processes import Processes
from runner import Runner
from safetensors.torch import save_file

import train
from benchmarks import memory, operator_sheet, posterior, report, resume, sampler_quality, speed
from benchmarks.reference_path import plain_layers, plain_operator
from degradation import Draws, Mask, Problem
from networks import Denoiser, GaussianMixture, make_config, save_weights
from samplers import CountingDenoiser, make_sampler

SHAPE = (3, 4, 4)
pytestmark = pytest.mark.drawn


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where benchmarks write; what they measure once is enough."""
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(speed, "SECONDS", 0.03)
    monkeypatch.setattr(speed, "REPEATS", 1)
    monkeypatch.setattr(speed, "alone", lambda function, *arguments: function(*arguments))
    monkeypatch.setattr(speed, "product_speeds", lambda precision: {"matmul": 1.0, "linear": 2.0})
    monkeypatch.setattr(posterior, "CROPS", 400)
    monkeypatch.setattr(sampler_quality, "STEPS", (4, 8))
    return tmp_path


def run(command: Any, *arguments: str) -> None:
    result = Runner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output


def result_of(home: Path, name: str) -> dict[str, Any]:
    record = json.loads((home / f"{name}.json").read_text())
    assert record["environment"]["torch"] and record["threads"] == 1
    return record


@pytest.mark.parametrize("stage", ["network", "training"])
def test_a_network_beside_the_plain_path(home: Path, stage: str) -> None:
    options = "--preset=tiny", "--batch=2", "--path=eager", "--path=plain", "--name=n"
    run(speed.main, stage, *options, "--family=none", "--family=blur-4")
    record = result_of(home, "n")
    assert record["products_tflop_per_second"] == {"fp32": {"matmul": 1.0, "linear": 2.0}}
    rows = {(row["family"], row["path"]): row for row in record["rows"]}
    assert set(rows) == {(f, p) for f in ("none", "blur-4") for p in ("eager", "plain")}
    assert all(row["seconds"] > 0 and row["peak_mib"] > 50 for row in rows.values())


@pytest.mark.parametrize("family", ["mask", "matrix"])
def test_the_plain_path_computes_the_same(family: str) -> None:
    denoiser = speed.network_for(speed.configuration("tiny", 1, family)).eval()
    drawn, structure = speed.FAMILIES[family]
    operator = drawn.sample(denoiser.config.image_shape, structure, range(2))
    x = gaussian(2, *operator.image_shape, dtype=torch.float32)
    sigma = torch.full((2,), 2.0)
    with torch.no_grad():
        ours = denoiser(x, sigma, Problem(operator, operator.H(x)))
        plain = plain_operator(drawn, structure, operator, range(2))
        with plain_layers():
            found = denoiser(x, sigma, Problem(plain, plain.H(x)))
    torch.testing.assert_close(ours, found, rtol=1e-4, atol=1e-4)


def test_operators_of_every_family(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "BATCH", 1)
    monkeypatch.setattr(speed, "STACK", 1)
    run(speed.main, "operators", "--name=n")
    record = result_of(home, "n")
    rows = {row["family"]: row for row in record["runs"]}
    assert set(rows) == set(operator_sheet.families())
    assert all(row["H_ms"] > 0 and row["H_pinv_ms"] > 0 for row in rows.values())
    plain = {name for name, row in rows.items() if row["plain_ms"]}
    assert plain == {"MissingPatches", "MatrixDegradation", "MotionBlur"}
    assert record["building"]["plain_ms"] > 0


def test_samplers_and_what_they_take_besides(home: Path) -> None:
    options = "--preset=tiny", "--batch=2", "--precision=fp32", "--name=n"
    run(speed.main, "samplers", *options, "--sampler=dpm", "--sampler=pigdm")
    rows = result_of(home, "n")["rows"]
    found = {(r["sampler"], r["evaluations"], r["backward_passes"]) for r in rows}
    assert found == {("dpm", 20, 0), ("pigdm", 100, 100)}
    for row in rows:
        assert row["share"] == pytest.approx(row["sampler_ms"] / row["denoiser_ms"])


@pytest.mark.slow
def test_memory_is_counted_without_values(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows and tiles included; a backward pass is twice the arithmetic of a forward pass."""
    monkeypatch.setitem(memory.PRESETS, "tiny", make_config("tiny", network=ONE_LEVEL))
    run(memory.main, "--preset=tiny", "--name=n")
    found, half = result_of(home, "n")["counts"]
    operator = speed.FAMILIES["mask"][0].sample((3, 16, 16), None, range(2))
    products = memory.products(speed.network_for(make_config("tiny")), operator) / 2e9
    assert 0.75 * products < found["forward_gflop"] <= products  # a CPU's attention is not seen
    assert 2.5 < found["training_gflop"] / found["forward_gflop"] < 3.5
    assert found["mib_an_image"] > half["mib_an_image"] > 0


def test_the_picture_of_the_families(home: Path) -> None:
    operator_sheet.draw_sheet()
    assert (home / "docs" / "operators.png").stat().st_size > 5000


@pytest.mark.parametrize("command", ["mixture", "images", "evaluations", "marginals"])
def test_posteriors(home: Path, command: str) -> None:
    extra = {"images": ["--family=Box"], "marginals": []}.get(command, ["--problems=2"])
    options = "--samples=16", "--sampler=dpm", "--sampler=ddrm", "--name=n"
    run(posterior.main, command, *options, *extra)
    pictures = ["n.png"] if command in ("evaluations", "marginals") else []
    assert [path.name for path in (home / "docs").glob("*.png")] == pictures
    if command != "marginals":
        record = result_of(home, "n")
        assert set(record["options"]) == {"dpm", "ddrm"} and record["samples"] == 16


@pytest.fixture
def weights(home: Path) -> Path:
    """Weights of a network that may be measured, and of two that may not."""
    for name, conditioning in (("net", "invfusion"), ("blind", "unconditional")):
        save_weights(home / f"{name}.safetensors", Denoiser(make_config("tiny", conditioning)), {})
    prior = GaussianMixture.gaussian(torch.zeros(768), torch.eye(768), (3, 16, 16))
    save_weights(home / "prior.safetensors", prior, {})
    return home


def test_quality_of_a_network(weights: Path) -> None:
    options = "--family=MissingPatches", "--images=4", "--sampler=euler", "--name=n"
    run(sampler_quality.main, f"--net={weights}/net.safetensors", *options)
    rows = result_of(weights, "n")["rows"]
    assert [row["evaluations"] for row in rows] == [1, 4, 8]
    assert all(row["psnr"] > 0 and row["consistency"] >= 0 for row in rows)
    assert (weights / "docs" / "n.png").stat().st_size > 5000


def test_samplers_take_about_the_evaluations_that_are_asked_for() -> None:
    op = Mask((gaussian(1, 1, 4, 4) > 0).float(), SHAPE)
    problem = Problem(op, op.H(gaussian(1, *SHAPE, dtype=torch.float32)))
    for (name, steps), sampler in sampler_quality.samplers_of(sampler_quality.SAMPLERS).items():
        counter = CountingDenoiser(lambda x, sigma, given: x / 2)
        sampler(counter, gaussian(1, *SHAPE, dtype=torch.float32), problem, Draws([0]))
        assert counter.calls in (steps - 1, steps), name
    assert make_sampler("heun", {"num_steps": "8"}) == sampler_quality.sampler_of("heun", 16)


def test_detail_is_the_sum_of_the_edges() -> None:
    step = torch.zeros(1, 1, 2, 2)
    step[..., 1] = 3
    assert sampler_quality.edges(step).tolist() == [6]
    assert sampler_quality.edges(torch.full_like(step, 7)).tolist() == [0]


@pytest.mark.parametrize(
    ("net", "told"),
    [
        ("nowhere", "there is no weights file"),
        ("prior.safetensors", "holds an analytic prior"),
        ("blind.safetensors", "is an unconditional denoiser"),
    ],
)
def test_what_cannot_be_measured_is_refused(weights: Path, net: str, told: str) -> None:
    result = Runner().invoke(sampler_quality.main, [f"--net={weights}/{net}"])
    assert result.exit_code == 2, result.output
    assert told in result.stderr.splitlines()[-1]


def test_runs_that_differ_are_found_out(tmp_path: Path) -> None:
    for name, value, loss in (("one", 1.0, 0.5), ("same", 1.0, 0.5), ("other", math.pi, 0.6)):
        (tmp_path / name).mkdir()
        save_file({"x": torch.tensor(value)}, tmp_path / name / "w.safetensors")
        line = {"images": 4, "loss": loss, "seconds": value}
        (tmp_path / name / "log.jsonl").write_text(json.dumps(line) + "\n")
    assert list(resume.differences(tmp_path / "one", tmp_path / "same")) == []
    found = list(resume.differences(tmp_path / "one", tmp_path / "other"))
    assert found == ["w.safetensors", "log.jsonl"]


class Forked:
    """In the place of a new Python, which imports for seconds: a fork that calls `train.py`."""

    def __init__(self, command: list[str], **_: Any):
        assert Path(command[1]).name == "train.py" and Path(command[1]).exists()
        (self.process,) = Processes(self.main, command[1:]).processes
        self.pid = self.process.pid

    @staticmethod
    def main(words: list[str]) -> None:
        sys.argv = words
        train.main()

    def poll(self) -> int | None:
        return self.process.exitcode

    def wait(self) -> int | None:
        self.process.join()
        return self.process.exitcode


def test_a_run_is_killed_and_goes_on(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resume, "subprocess", SimpleNamespace(Popen=Forked))
    quick = {"duration": 48, "precision": "fp32", "degradation": "Box", "workers": 0}
    quick |= {"data": {"resolution": 16, "size": 8}, "network": ONE_LEVEL}
    for name, value in quick.items():
        monkeypatch.setitem(resume.CONFIG, name, value)
    monkeypatch.setattr(resume, "PROCESSES", (1,))
    run(resume.main, "--kills=1", "--name=n")
    (found,) = result_of(home, "n")["runs"]
    assert found["differences"] == [] and found["files_compared"] > 5
    assert [kill["exit_code"] for kill in found["kills"]] == [-9]
