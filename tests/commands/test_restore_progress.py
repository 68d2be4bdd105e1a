"""What `restore.py` says while it works, and what it takes without --net and --sampler."""

import io
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runner import Runner
from zero_shot_cases import QUICK

import restore
from degradation import Draws, GaussianNoise, MissingPatches
from networks import Denoiser, make_config, save_weights
from runtime import progress
from samplers import CountingDenoiser, evaluations_of, make_sampler, sampler_names

SHAPE = (3, 16, 16)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network in the place of the weights that ship, and a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "checkpoints" / "photos64-invfusion.safetensors"
    save_weights(path, Denoiser(make_config("tiny")), {})
    monkeypatch.setattr("commands.restore.SHIPPED", path)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return path


@pytest.mark.parametrize("name", sampler_names())
def test_evaluations_are_those_that_a_restoration_takes(name: str) -> None:
    sampler, draws = QUICK.get(name) or make_sampler(name), Draws([1])
    operator = MissingPatches().sample(SHAPE, MissingPatches().structure(1), [1])
    problem = GaussianNoise(0).measure(operator, torch.zeros(1, *SHAPE), draws)
    counter = CountingDenoiser(lambda x, sigma, problem: 0.5 * x, 1)
    with torch.no_grad():
        sampler(counter, draws.normal(SHAPE, "latent"), problem, draws)
    told = evaluations_of(sampler, SHAPE)
    assert told == counter.calls > 0 or (name == "adaptive" and 22 >= told > counter.calls > 2)


def test_the_plan_comes_first_and_lines_follow_where_no_terminal_is(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    arguments = ["--image=photo.png", "--degradation=MotionBlur", "--samples=1", "--out=out"]
    result = Runner().invoke(restore.main, [*arguments, "--batch=4"])
    assert result.exit_code == 0, result.output
    assert "6 tiles × 1 sample × 8 evaluations" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("samples: 0 of 16 batches")
    assert any(line.startswith("samples: 16 of 16 batches") for line in lines)
    assert any(line.startswith("mmse: 2 of 2 batches") for line in lines)
    assert "\r" not in result.stderr


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress(2, "samples", "batches") as bar:
        bar.update(2)
    assert "\r" in sys.stderr.getvalue() and "\n" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_weights_that_are_missing(shipped: Path) -> None:
    shipped.unlink()
    arguments = ["--image=photo.png", "--degradation=Box", "--out=out"]
    result = Runner().invoke(restore.main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {shipped} is missing: get it back by")
    assert not Path("out").exists()


def test_a_photo_smaller_than_the_network(shipped: Path) -> None:
    Image.new("RGB", (12, 40)).save("photo.png")
    arguments = ["--image=photo.png", "--degradation=Box", "--out=out"]
    result = Runner().invoke(restore.main, arguments)
    assert result.exit_code == 2
    assert "photo.png is too small: it gives 40×12 pixels" in result.stderr
