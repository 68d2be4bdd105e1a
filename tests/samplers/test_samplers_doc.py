"""docs/samplers.md: every sampler with its costs, needs and options; the example."""

import dataclasses
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
from helpers import gaussian
from zero_shot_cases import COUNTS

from benchmarks.sampler_quality import zero_shot
from degradation import Draws, Mask, Problem
from samplers import make_sampler, sampler_names
from samplers.base import SAMPLERS, OnGrid
from zero_shot import ZeroShot

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")
ROWS = {
    cells[1].strip("` "): [cell.strip() for cell in cells[1:-1]]
    for cells in (re.split(r"(?<!\\)\|", line) for line in TEXT.split("\n") if line[:3] == "| `")
}
LEVELS = ("sigma_min", "sigma_max", "rho")


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def test_every_sampler_stands_in_the_table() -> None:
    assert set(ROWS) == set(sampler_names())
    split = TEXT.index("## For denoisers that know images alone")
    for name in ROWS:
        assert (TEXT.index(f"\n| `{name}`") > split) == issubclass(SAMPLERS[name], ZeroShot)


@pytest.mark.parametrize("name", list(ROWS))
def test_options_and_defaults(name: str) -> None:
    fields = {f.name: f.default for f in dataclasses.fields(SAMPLERS[name])}
    told = dict(re.findall(r"`?(\w+)`? \(([^)]*)\)", ROWS[name][5]))
    on_grid = "steps" in told
    assert on_grid == issubclass(SAMPLERS[name], OnGrid)
    if on_grid:  # which stands for four
        told["num_steps"] = told.pop("steps")
        fields = {option: value for option, value in fields.items() if option not in LEVELS}
    assert set(told) == set(fields)
    for option, value in told.items():
        default = fields[option]
        if default is None or isinstance(default, bool | str):
            assert value == str(default).lower()
        else:
            assert float(value) == default


@pytest.mark.parametrize("name", list(ROWS))
def test_costs_and_needs(name: str) -> None:
    assert ROWS[name][4] == ", ".join(sorted(getattr(SAMPLERS[name], "needs", ())))
    told = int(ROWS[name][2]), int(ROWS[name][3])
    assert told == COUNTS.get(name, (make_sampler(name).evaluations(), 0))


def test_the_list_has_every_sampler_with_its_costs(capsys: pytest.CaptureFixture) -> None:
    runpy.run_module("samplers", run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    listed = {
        line.split()[0]: (line, last) for line, last in zip(lines[::3], lines[2::3], strict=True)
    }
    assert set(listed) >= set(ROWS)
    for name, row in ROWS.items():
        assert listed[name][1].strip().partition(";")[0] == f"NFE {row[2]}"
    assert listed["ddrm"][0].endswith("eta=0.85 eta_b=1.0")
    assert listed["ddrm"][1].endswith("; needs a network that knows images alone, the SVD of H")


def test_the_quality_is_that_of_the_result_file() -> None:
    rows = result("sampler-quality")["rows"]
    ends = [row for row in rows if row["evaluations"] in (63, 64)]
    for family in ("MotionBlur", "MissingPatches"):
        told = [row["psnr"] for row in ends
                if row["family"] == family and not zero_shot(row["sampler"])]  # fmt: skip
        assert len(told) == 5
        assert f"{min(told):.1f} to {max(told):.1f} dB with" in TEXT


def test_samples_explain_y_as_the_result_file_says() -> None:
    rows = result("sampler-quality")["rows"]
    found = {(row["sampler"], row["family"], row["num_steps"]): row["consistency"] for row in rows}

    def short(value: float) -> str:
        return f"{value:.0e}".replace("e-0", "e-")

    def told(family: str, *steps: int) -> str:
        return ", ".join(f"{short(found['pigdm', family, n])} in {n}" for n in steps)

    patches, blur = told("MissingPatches", 4, 8, 16, 64), told("MotionBlur", 4)
    assert f"(with patches {patches}; with blur {blur})" in TEXT
    most = max(value for key, value in found.items() if key[0] == "diffpir")
    assert f"mean square of {short(most)} at most" in TEXT
    others = [value for key, value in found.items() if key[0] not in ("diffpir", "pigdm")]
    assert max(others) < 1e-12


def test_the_examples_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SAMPLERS, "null_space", None)
    use, add = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    used: dict[str, Any] = {}
    exec(use, used)
    assert used["sampler"] == make_sampler("pigdm", {"num_steps": "50"})
    exec(add, {})
    sampler = make_sampler("null_space", {"num_steps": "5"})
    op = Mask((gaussian(2, 1, 4, 4) > 0).double(), (3, 4, 4))
    problem = Problem(op, op.H(gaussian(2, 3, 4, 4)))
    out = sampler(lambda x, sigma, given: 0.5 * x, gaussian(2, 3, 4, 4), problem, Draws([0, 1]))
    assert problem.residual(out).abs().max() < 1e-12
