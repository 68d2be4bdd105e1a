"""The tables of docs/posterior.md are those of the committed result files."""

import json
import re
from pathlib import Path

import pytest

from benchmarks.exact_world import FAMILIES, WAYS, ZERO_SHOT, mean_of
from benchmarks.posterior import chosen_samplers, image_table, mixture_table

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "posterior.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "benchmarks" / "results").glob("posterior-*.json"))


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_the_page_links_every_result(path):
    assert f"(../{path.relative_to(ROOT).as_posix()})" in TEXT


@pytest.mark.parametrize(
    ("name", "table"),
    [("posterior-mixture-8", mixture_table), ("posterior-images-8-noise-0.05", image_table)],
)
def test_the_tables_are_those_of_the_results(name, table):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    assert table(json.loads(path.read_text(encoding="utf-8"))["rows"]) in TEXT


def test_samplers_that_are_named_exist():
    for name in re.findall(r"^\| (\w+)(?: \(oracle\))? +\|", TEXT, re.M):
        assert name in (*chosen_samplers([]), "sampler", "prior", "method", *WAYS), name


@pytest.mark.parametrize(
    ("name", "longer_than", "variant"),
    [
        ("exact-world", -1, ""),
        ("exact-world-long", 2**18, ""),
        ("exact-world-deep", 0, ", 8 blocks"),
        ("exact-world-mixture", -1, ""),
        ("exact-world-mixture-solvers", -1, ""),
        ("exact-world-mixture-deep", -1, ", 8 blocks"),
        ("exact-world-16", -1, ""),
        ("exact-world-16-solvers", -1, ""),
    ],
)
def test_the_table_of_trained_networks_is_that_of_the_result(name, longer_than, variant):
    path = ROOT / "benchmarks" / "results" / f"{name}.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    shown = [(row["method"], row["images"]) for row in rows if row["images"] > longer_than]
    for method, images in dict.fromkeys(shown):
        cells = [
            f"{mean_of(rows, method, family, 'sliced_wasserstein', images):.3f} / "
            f"{mean_of(rows, method, family, 'mean', images):.2f}"
            for family in FAMILIES
        ]
        title = f"`{method}`" if method in ZERO_SHOT else method + variant * (method in WAYS)
        (line,) = re.findall(rf"^\| {re.escape(title)} \|.*{re.escape(cells[0])}.*$", TEXT, re.M)
        assert line.endswith(f"| {' | '.join(cells)} |")
        assert not images or f"| {images:,} |" in line
