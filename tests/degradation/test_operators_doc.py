"""docs/operators.md: every family with its options, the measured times, the example."""

import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import pytest

from degradation import FAMILIES

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "operators.md").read_text(encoding="utf-8")
ROWS = {
    cells[0].strip("|` "): cells
    for cells in (line.split(" | ") for line in TEXT.split("\n") if line.startswith("| `"))
}


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_stands_in_the_table_with_its_options(name):
    options = {field.name for field in dataclasses.fields(FAMILIES[name])}
    assert options == set(re.findall(r"`(\w+)`", ROWS[name][2]))


def test_the_times_are_those_of_the_result_file():
    results = json.loads((ROOT / "benchmarks" / "results" / "operators-cost.json").read_text())
    runs = {row["family"]: row for row in results["runs"]}
    assert set(runs) == set(ROWS) - {"NoDegradation", "RandomDegradation"}
    for name, row in runs.items():
        times = [f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}" for ms in (row["H_ms"], row["H_pinv_ms"])]
        assert [cell.strip(" |") for cell in ROWS[name][-2:]] == times


def test_the_example_is_a_family():
    (code,) = re.findall(r"```python\n(.*?)```", TEXT, re.S)
    names: dict[str, Any] = {"__name__": "mymodule"}
    exec(code, names)
    operator = names["EveryOtherRow"](step=4).sample((3, 8, 8), None, [1, 2])
    assert operator.rows.sum(1).tolist() == [3 * 8 * 6] * 2
