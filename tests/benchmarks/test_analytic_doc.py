"""The tables of docs/posterior.md are those of the committed result files."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.posterior import chosen_samplers, image_table, mixture_table

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "posterior.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("posterior-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_stands_in_the_document(path):
    record = json.loads(path.read_text(encoding="utf-8"))
    assert f"({path.relative_to(ROOT).as_posix()})".replace("(", "(../", 1) in TEXT
    if "rows" in record:
        table = image_table if "images" in path.stem else mixture_table
        assert table(record["rows"]) in TEXT


def test_files_and_samplers_that_are_named_exist():
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert (ROOT / "docs" / target).exists(), target
    for name in re.findall(r"^\| (\w+)(?: \(oracle\))? +\|", TEXT, re.M):
        assert name in (*chosen_samplers([]), "sampler", "prior"), name
