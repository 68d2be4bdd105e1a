"""`calculate_metrics.py gen-uncond` and `calc`: images drawn, folders compared."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import DISTANCES, Detector, call, metrics, refused, uncond
from PIL import Image

from datautils import get_dataset
from metrics.distances import frechet_distance, kernel_distance


def pixels(folder: Path) -> np.ndarray:
    files = sorted((folder / "images").rglob("*.png"))
    return np.stack([np.asarray(Image.open(file)) for file in files])


def test_images_drawn_follow_from_their_seed_and_class_alone(home, tmp_path):
    for name, arguments in {
        "all": ("--batch", 6),
        "two": ("--batch", 4, "--class", "3", "--class", "1"),
        "again": ("--batch", 1, "--class", "3", "--class", "1"),
        "other": ("--batch", 6, "--class", "0"),
    }.items():
        result = uncond(home, tmp_path / name, "--save-images", *arguments)
        assert result.exit_code == 0, result.output
    found = {p.name: pixels(p).astype(int) for p in tmp_path.iterdir()}
    assert found["two"].shape == (6, 16, 16, 3)
    assert np.abs(found["two"] - found["again"]).max() <= 1
    assert (found["two"] != found["other"]).any((1, 2, 3)).all()
    labels = json.loads((tmp_path / "two/images/dataset.json").read_text())["labels"]
    assert [label for _, label in labels] == [3, 1, 3, 1, 3, 1]
    dataset = get_dataset("datautils.imagedir.ImageDir", "all", path=tmp_path / "two/images")
    assert [dataset[i][1] for i in range(6)] == [3, 1, 3, 1, 3, 1]


@pytest.mark.parametrize("net", ["net", "classes", "plain"])
def test_any_network_draws_without_a_measurement(home, tmp_path, net):
    result = uncond(home, tmp_path, "--metrics", "fd,kd", *DISTANCES, "--any-count", net=net)
    assert result.exit_code == 0, result.output
    cell = metrics(tmp_path)["metrics"]["values"]["none"]["heun"]
    assert cell["fd"]["count"] == 6 and cell["fd"]["mean"] > 0
    assert cell["evaluations"] == 3
    assert {"samplers", "sampler", "pictures"} <= metrics(tmp_path)["settings"].keys()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["grid.png", "metrics.json"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--class", "4"), ("--class 4", "between 0 and 3")),
        (("--metrics", "psnr"), ("psnr", "fid")),
        (("--metrics", "fd", *DISTANCES), ("8 images", "6")),
        (("--sampler", "none"), ("none", "heun")),
    ],
)
def test_samples_that_cannot_be_drawn_are_refused(home, tmp_path, arguments, words):
    refused(uncond(home, tmp_path / "out", *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_a_class_of_a_network_without_classes_is_refused(home, tmp_path):
    refused(uncond(home, tmp_path / "out", "--class", "0", net="net"), "without classes")


# ---- calc ----------------------------------------------------------------------------------------


@pytest.fixture
def folders(tmp_path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    for name in "ab":
        (tmp_path / name).mkdir()
        for i in range(5):
            image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(image).save(tmp_path / name / f"{i}.png")
    return tmp_path / "a", tmp_path / "b"


def test_two_folders_are_compared(home, folders, tmp_path):
    a, b = folders
    result = call(home, "calc", "--images", a, "--ref", b, "--metrics", "fd,kd,psnr,ssim",
                  "--detector", "six.pt", "--trust-detector", "--outdir", tmp_path / "out",
                  "--batch", 2)  # fmt: skip
    assert result.exit_code == 0, result.output
    values = metrics(tmp_path / "out")["metrics"]["values"]
    one, two = (
        np.stack([np.asarray(Image.open(f)).transpose(2, 0, 1) for f in sorted(p.iterdir())])
        for p in folders
    )
    mse = np.square(one.astype(float) - two).mean((1, 2, 3))
    assert values["psnr"]["mean"] == pytest.approx((10 * np.log10(255**2 / mse)).mean())
    x, y = (Detector()(torch.from_numpy(images)).double() for images in (one, two))
    expected = frechet_distance(x.mean(0), x.T.cov(), y.mean(0), y.T.cov())
    assert values["fd"]["mean"] == pytest.approx(expected, rel=1e-5)
    assert values["kd"]["mean"] == pytest.approx(kernel_distance(x, y), rel=1e-5)
    psnr, fd = (
        next(line for line in result.output.splitlines() if line.startswith(f"| {name} "))
        for name in ("PSNR", "FD")
    )
    assert f"{values['psnr']['low']:.2f} to {values['psnr']['high']:.2f}" in psnr
    assert [cell.strip() for cell in fd.strip("|").split("|")][2:] == ["-", "5"]


def test_equal_images_are_counted_by_themselves(home, folders):
    a, b = folders
    for i in range(4):
        shutil.copy(a / f"{i}.png", b / f"{i}.png")
    compare = "calc", "--images", a, "--ref", b, "--metrics", "psnr"
    assert "| 1, 4 more identical |" in call(home, *compare).output
    shutil.copy(a / "4.png", b / "4.png")
    assert "| PSNR (dB) | identical | -             | 5      |" in call(home, *compare).output


def test_folders_that_do_not_match_are_refused(home, folders):
    a, b = folders
    (b / "4.png").rename(b / "5.png")
    refused(call(home, "calc", "--images", a, "--ref", b, "--metrics", "psnr"), "4.png", "5.png")
    (b / "5.png").unlink()
    refused(call(home, "calc", "--images", a, "--ref", b, "--metrics", "psnr"), "4 images", "5")
    fd = "--metrics", "fd", "--detector", "six.pt", "--trust-detector"
    refused(call(home, "calc", "--images", a, "--ref", b, *fd), "--any-count")
    refused(call(home, "calc", "--images", a, "--ref", "ref.safetensors", *fd), "8 images", "5")
    refused(
        call(home, "calc", "--images", a, "--ref", "ref.safetensors", "--metrics", "ssim"), "ssim"
    )
    shutil.rmtree(b)
    refused(call(home, "calc", "--images", b, "--ref", a, *fd), str(b))
    refused(call(home, "calc", "--images", a, "--ref", b, "--metrics", ""), "--metrics names none")
    gone = "--ref", "nowhere", "--metrics", "psnr"
    refused(call(home, "calc", "--images", a, *gone), "nowhere")
