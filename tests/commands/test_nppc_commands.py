"""Networks with principal components, called as users call them: trained, measured, restored."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from helpers import gaussian
from PIL import Image
from runner import Runner

import calculate_metrics
import restore
import train
from degradation import Problem
from networks import Denoiser, load_weights, make_config, save_weights
from samplers import NPPC

SMALL = ["--data-opt=resolution=16", "--data-opt=size=8", "--degradation=Box", "--precision=fp32"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def network(path: str, components: int, conditioning: str = "invfusion") -> None:
    torch.manual_seed(0)
    objective = "nppc" if components else "denoising"
    config = dataclasses.replace(
        make_config("tiny", conditioning), objective=objective, out_mult=1 + components
    )
    denoiser = Denoiser(config)
    with torch.no_grad():
        for p in denoiser.parameters():
            p += 0.03 * torch.randn(p.shape)
    save_weights(path, denoiser, {})


def photo(side: int = 16) -> str:
    pixels = (gaussian(side, side, 3).numpy() * 40 + 128).clip(0, 255).astype("uint8")
    Image.fromarray(pixels).save("photo.png")
    return "photo.png"


def restored(*options: str, side: int = 16) -> Result:
    given = f"--image={photo(side)}", "--degradation=Box"
    words = [*given, "--outdir=restored", "--net=net.safetensors"]
    return Runner().invoke(restore.main, [*words, *options])


def shape(path: str) -> tuple[int, int]:
    """Rows and columns of a sheet of cells of 128 pixels, a wide column of titles among them."""
    with Image.open(path) as sheet:
        return sheet.height // 134, sheet.width // 134


def test_a_network_is_trained_for_components_and_stands_in_tables() -> None:
    arguments = [
        "--preset=tiny", *SMALL, "--objective=nppc", "--components=2", "--batch=4",
        "--duration=16", "--lr=2e-3", "--ramp=0", "--workers=0", "--outdir=run",
        "--validate-every=16", "--validate-images=2", "--sheet-every=16", "--sheet-images=1",
    ]  # fmt: skip
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    denoiser = load_weights("run/weights.safetensors")
    assert isinstance(denoiser, Denoiser)
    assert (denoiser.config.objective, denoiser.config.out_mult) == ("nppc", 3)
    words = ["gen", "--net=run/weights.safetensors", *SMALL, "--images=2", "--outdir=out"]
    result = Runner().invoke(calculate_metrics.main, [*words, "--sampler=nppc", "--pictures=1"])
    assert result.exit_code == 0, result.output
    cell = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert cell["InvFusion NPPC"]["evaluations"] == 1
    # A row of its title, the original, what was measured, the estimate and two components.
    assert shape("out/components.png") == (1, 5 + 1)
    result = Runner().invoke(calculate_metrics.main, [*words, "--sampler=nppc"])
    assert result.exit_code == 2 and "there already" in result.stderr


def test_components_are_added_to_a_network_that_restores() -> None:
    network("start.safetensors", 0)
    arguments = [
        "--preset=tiny", *SMALL, "--objective=nppc", "--components=2", "--batch=2", "--duration=2",
        "--lr=1e-9", "--workers=0", "--outdir=run", "--init=start.safetensors",
        "--validate-every=0",
    ]  # fmt: skip
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    images = []
    for name in ("start", "run/weights"):
        out = f"by-{Path(name).name}"
        result = restored("--samples=0", f"--net={name}.safetensors", f"--outdir={out}")
        assert result.exit_code == 0, result.output
        images.append(np.asarray(Image.open(f"{out}/mmse.png")).astype(int))
    assert np.abs(images[0] - images[1]).max() <= 1 < np.ptp(images[0])


def test_a_photo_is_restored_with_its_components() -> None:
    network("net.safetensors", 3)
    result = restored("--components=2")
    assert result.exit_code == 0, result.output
    names = {path.name for path in Path("restored").iterdir()}
    assert {"mmse.png", "components.png", "restore.json"} <= names
    assert not any(name.startswith(("sample", "std")) for name in names)
    record = json.loads(Path("restored/restore.json").read_text())
    assert record["settings"]["sampler"] == "NPPC"
    metrics = record["metrics"]
    first, second = metrics["standard_deviations"]
    assert first > second > 0
    assert metrics["evaluations"] == {"mmse": 1}
    # Two rows: a title, a component, and five images along it.
    assert shape("restored/components.png") == (2, 6)


def test_what_draws_no_samples_is_asked_for_none() -> None:
    network("net.safetensors", 3)
    result = restored("--components=2", "--sampler=dpm")
    assert result.exit_code == 2 and "leave out --sampler" in result.stderr
    plain = make_config("tiny", "invfusion")
    with pytest.raises(ValueError, match="not trained for nppc"):
        NPPC().components(
            Denoiser(plain), gaussian(1, *plain.image_shape),
            Problem.without_measurement(1, plain.image_shape),
        )  # fmt: skip


def test_the_estimate_is_the_same_with_and_without_components() -> None:
    network("net.safetensors", 3)
    assert restored("--components=2").exit_code == 0
    assert restored("--samples=0", "--outdir=plain").exit_code == 0
    assert Path("restored/mmse.png").read_bytes() == Path("plain/mmse.png").read_bytes()
    metrics = json.loads(Path("plain/restore.json").read_text())["metrics"]
    assert metrics["standard_deviations"] is None
    assert not Path("plain/components.png").exists()


@pytest.mark.parametrize(
    ("components", "conditioning", "options", "side", "words"),
    [
        (3, "invfusion", ["--components=4"], 16, "--components 4 net.safetensors 3"),
        (0, "invfusion", ["--components=1"], 16, "--components 1 net.safetensors none nppc"),
        (0, "unconditional", ["--components=1"], 16, "--components 1 net.safetensors none"),
        (3, "invfusion", ["--components=3"], 24, "--components 16×16 photo.png --fit"),
        (3, "invfusion", ["--sampler=dpm"], 16, "objective nppc --sampler dpm"),
        (0, "invfusion", ["--sampler=nppc"], 16, "objective denoising --sampler nppc"),
    ],
)
def test_what_a_network_cannot_do_is_refused(
    components: int, conditioning: str, options: list[str], side: int, words: str
) -> None:
    network("net.safetensors", components, conditioning)
    result = restored(*options, side=side)
    assert result.exit_code == 2 and not Path("restored").exists(), result.output
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words.split()), line


def test_a_larger_photo_can_be_made_smaller() -> None:
    network("net.safetensors", 3)
    result = restored("--components=1", "--fit=resize", side=24)
    assert result.exit_code == 0, result.output


def test_a_network_of_the_objective_has_components() -> None:
    with pytest.raises(ValueError, match="out_mult 1 must be at least 2 for the objective nppc"):
        dataclasses.replace(make_config("tiny"), objective="nppc")
