"""The figures of docs/performance.md and docs/scaling.md are those of the committed results."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "performance.md").read_text(encoding="utf-8")
SCALING = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
TITLES = {"mask": "mask", "matrix": "random matrix", "blur-2": "blur, stride 2",
          "blur-4": "blur, stride 4", "blur-8": "blur, stride 8"}  # fmt: skip


def result(name: str) -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks" / "results" / f"{name}.json").read_text())


def seconds(name: str) -> dict[tuple[str, str], float]:
    return {(row["family"], row["path"]): row["seconds"] for row in result(name)["rows"]}


def told(what: str) -> list[str]:
    """The numbers of a row: of the reference, ours, how they compare."""
    (row,) = (line for line in TEXT.split("\n") if line.startswith(f"| {what} |"))
    return [re.findall(r"[\d.]+", cell)[-1] for cell in row.split(" | ")[1:4]]


@pytest.mark.parametrize(
    ("name", "what"), [("network-cpu", "forward pass"), ("training-cpu", "training step")]
)
def test_times_beside_the_plain_path(name: str, what: str) -> None:
    found = seconds(name)
    for (family, path), ours in found.items():
        if path != "plain":
            plain, suffix = found[family, "plain"], ", compiled" * (path == "compiled")
            expected = [f"{plain:.2f}", f"{ours:.2f}", f"{plain / ours:.1f}"]
            assert told(f"{what}, {TITLES[family]}{suffix}") == expected


def test_what_knowing_h_costs() -> None:
    found = seconds("network-families-cpu")
    blind = found.pop(("none", "eager"))
    for (family, _), ours in found.items():
        expected = [f"{blind:.2f}", f"{ours:.2f}", f"{blind / ours:.2f}"]
        assert told(f"forward pass that knows H, {TITLES[family]}") == expected
    longer = [100 * (ours / blind - 1) for ours in found.values()]
    assert f"{min(longer):.0f} to {max(longer):.0f} % longer" in TEXT


def test_products_and_samplers() -> None:
    speeds = result("network-cpu")["products_tflop_per_second"]["fp32"]
    plain, ours = 1e3 * speeds["matmul"], 1e3 * speeds["linear"]
    expected = [f"{plain:.0f}", f"{ours:.0f}", f"{ours / plain:.1f}"]
    assert told("product of two matrices of 4096×4096, as a linear map") == expected
    rows = result("sampler-cost-cpu")["rows"]
    for title in ("`daps`", "every other sampler"):
        own = [row for row in rows if (row["sampler"] == "daps") == (title == "`daps`")]
        row = max(own, key=lambda row: row["share"])
        expected = [f"{row['denoiser_ms']:.0f}", f"{row['sampler_ms']:.1f}"]
        share = f"{100 * row['share']:.1f}"
        assert told(f"a sampler's own time for each evaluation, {title}, at most") == [
            *expected, share
        ]  # fmt: skip
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
