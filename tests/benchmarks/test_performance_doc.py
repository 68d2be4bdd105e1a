"""The figures of docs/performance.md and docs/scaling.md are those of the committed results."""

import json
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
FAMILIES = ("mask", "matrix", "blur-4")


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def seconds(name: str) -> dict[tuple[str, str], float]:
    return {(row["family"], row["path"]): row["seconds"] for row in result(name)["rows"]}


def gain(what: str) -> str:
    (row,) = (line for line in TEXT.split("\n") if line.startswith(f"| {what} |"))
    return row.split(" | ")[2]


@pytest.mark.parametrize(
    ("name", "path", "what"),
    [
        ("network-cpu", "eager", "forward pass, fp32"),
        ("training-cpu", "eager", "training step, fp32"),
        ("training-cpu", "compiled", "training step, fp32, compiled"),
    ],
)
def test_gains_over_the_plain_path(name: str, path: str, what: str) -> None:
    found = seconds(name)
    gains = [found[family, "plain"] / found[family, path] for family in FAMILIES]
    assert gain(what) == ", ".join(f"{value:.1f}" for value in gains)


def test_what_knowing_h_costs() -> None:
    found = seconds("network-families-cpu")
    gains = [found["none", "eager"] / found[family, "eager"] for family in FAMILIES]
    told = gain("forward pass of a network that knows H, fp32")
    assert told == ", ".join(f"{value:.2f}" for value in gains)


def test_products_and_samplers() -> None:
    speeds = result("network-cpu")["products_tflop_per_second"]["fp32"]
    told = gain("product of two matrices of 4096×4096 by oneDNN")
    assert told == f"{speeds['linear'] / speeds['matmul']:.1f}"
    rows = result("sampler-cost-cpu")["rows"]
    for who in ("`daps`", "every other sampler"):
        shares = [row["share"] for row in rows if (row["sampler"] == "daps") == (who == "`daps`")]
        share = f"{100 * max(shares):.1f}"
        assert gain(f"own time of {who} for each evaluation, bf16") == f"{share} % of it at most"
        assert f"{share} % at most" in (ROOT / "docs" / "samplers.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("preset", ["FFHQ64", "FFHQ256"])
def test_memory_is_as_counted(preset: str) -> None:
    single, half = (c for c in result("memory")["counts"] if c["preset"] == preset)
    cells = [
        f"{single['parameters'] / 1e6:.0f} M", f"{single['state_gib']:.1f} GiB",
        f"{single['mib_an_image']:.0f} MiB", f"{half['mib_an_image']:.0f} MiB",
        f"{half['mib_a_step']:.0f} MiB", f"{single['forward_gflop']:.0f} GFLOP",
        f"{single['training_gflop']:.0f} GFLOP",
    ]  # fmt: skip
    assert f"| {preset} | {' | '.join(cells)} |" in SCALING


def test_resumed_runs_ended_as_told() -> None:
    runs = result("resume")["runs"]
    assert [len(run["kills"]) for run in runs] == [20, 20]
    assert not any(run["differences"] for run in runs)
    files, lines = {(run["files_compared"], run["lines_of_log"]) for run in runs}.pop()
    slowest = max(k["seconds"] for run in runs for k in run["kills"] if k["kind"] == "SIGTERM")
    assert f"no difference in {files} files and {lines} lines of log" in SCALING
    assert f"SIGTERM took {slowest:.0f} s at most" in SCALING
