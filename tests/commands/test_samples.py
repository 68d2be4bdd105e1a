"""`gen --samples K`: further samples change nothing else, and their calibration is reported."""

import csv
from pathlib import Path

import numpy as np
import pytest
from calling import DATA, call, gen, metrics, refused
from PIL import Image

from metrics.calibration import conformal_scale, names
from metrics.sampled import calibration_table

BROKEN = """
from dataclasses import dataclass
from samplers import Sampler
@dataclass(frozen=True)
class NaN(Sampler):
    def __call__(self, denoiser, noise, problem, rng):
        return denoiser(noise, 1.0, problem) * float("nan")
"""
KEY = "MissingPatches", "InvFusion sample (heun)"


def rows(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / name).open(newline="") as file:
        return list(csv.DictReader(file))


def drawn(home: Path, outdir: Path, *arguments: object) -> Path:
    result = gen(home, outdir, "--images", 5, *arguments)
    assert result.exit_code == 0, result.output
    return outdir


@pytest.fixture(scope="module")
def sampled(home, tmp_path_factory) -> Path:
    return drawn(home, tmp_path_factory.mktemp("samples") / "out", "--samples", 3)


def test_further_samples_change_no_other_value(home, sampled, tmp_path):
    one = drawn(home, tmp_path / "one")
    assert rows(one, "per_image.csv") == rows(sampled, "per_image.csv")
    before, after = (metrics(f)["metrics"]["values"][KEY[0]][KEY[1]] for f in (one, sampled))
    assert "calibration" not in before
    assert after["evaluations"] == before["evaluations"] == 3
    assert {p.name for p in sampled.iterdir()} - {p.name for p in one.iterdir()} == {
        "samples.csv", "calibration.png",
    }  # fmt: skip


def test_metrics_say_what_the_rows_add_up_to(sampled):
    found = rows(sampled, "samples.csv")
    assert [row["image"] for row in found] == [str(i) for i in range(5)]
    assert {row["method"] for row in found} == {KEY[1]}
    cell = metrics(sampled)["metrics"]["values"][KEY[0]][KEY[1]]["calibration"]
    columns = {name: [float(row[name]) for row in found] for name in names(3)}
    for name, values in columns.items():
        assert cell[name]["mean"] == pytest.approx(np.mean(values))
    ratio = (4 / 3 * np.mean(columns["variance"]) / np.mean(columns["squared_error"])) ** 0.5
    assert cell["spread_error"]["mean"] == pytest.approx(ratio)
    assert cell["spread_error"]["low"] < ratio < cell["spread_error"]["high"]
    assert sum(cell["rank_histogram"]) == pytest.approx(1) and len(cell["rank_histogram"]) == 4
    assert cell["tarp"]["levels"] == [0, 0.25, 0.5, 0.75, 1] and cell["tarp"]["coverage"][-1] == 1
    assert conformal_scale(columns["scale_90"]) == float("inf")  # of fewer than nine images
    assert cell["conformal_scale_90"] is None
    text = calibration_table({"Box": {"sample": cell | {"conformal_scale_90": float("inf")}}})
    assert text.endswith("the scale for 90 % takes 9 images, here are 5")


@pytest.mark.drawn
def test_samples_of_an_image_do_not_depend_on_the_batch(home, sampled, tmp_path):
    other = drawn(home, tmp_path / "other", "--samples", 3, "--batch", 2)
    for one, two in zip(rows(sampled, "samples.csv"), rows(other, "samples.csv"), strict=True):
        assert one["image"] == two["image"]
        for name in ("squared_error", "variance"):
            assert float(two[name]) == pytest.approx(float(one[name]), rel=1e-3)
    with Image.open(other / "calibration.png") as picture:
        assert picture.width > 1000 and len(np.unique(np.asarray(picture))) > 20


def test_estimates_are_no_samples(home, tmp_path):
    result = call(
        home, "gen", "--net", "net.safetensors", *DATA, "--sampler", "mmse", "--outdir",
        tmp_path / "out", "--degradation", "MissingPatches", "--samples", 2,
    )  # fmt: skip
    refused(result, "--samples 2", "draws samples")


def test_samples_that_are_not_finite_leave_results_and_a_page(home, tmp_path, monkeypatch):
    (tmp_path / "broken.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    result = call(
        home, "gen", "--net", "net.safetensors", *DATA, "--sampler", "broken.NaN", "--outdir",
        tmp_path / "out", "--degradation", "MissingPatches", "--samples", 3, "--images", 2,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "not finite" in result.output
    assert {"metrics.json", "report.html"} <= {p.name for p in (tmp_path / "out").iterdir()}
