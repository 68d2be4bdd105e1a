"""Evaluations in tables where they depend on the image."""

import json
from dataclasses import dataclass
from pathlib import Path

import pytest
from click.testing import CliRunner

import calculate_metrics
from degradation import Draws, derive_seed
from networks import Denoiser, make_config, save_weights
from samplers import Sampler
from samplers.base import SAMPLERS


@dataclass(frozen=True)
class Sometimes(Sampler):
    """One evaluation, and a second one of images whose noise begins above 0."""

    def __call__(self, denoiser, noise, problem, rng):
        x = denoiser(noise, 1.0, problem)
        chosen = noise[:, 0, 0, 0] > 0
        if chosen.any():
            denoiser(noise[chosen], 1.0, problem[chosen])
        return x


def test_the_mean_over_all_images_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(SAMPLERS, "sometimes", Sometimes)
    save_weights("net.safetensors", Denoiser(make_config("tiny", "blind")), {})
    arguments = [
        "gen", "--net=net.safetensors", "--data-opt=resolution=16", "--data-opt=size=8",
        "--degradation=Box", "--images=5", "--batch=1", "--outdir=out", "--precision=fp32",
        "--sampler=sometimes",
    ]  # fmt: skip
    result = CliRunner().invoke(calculate_metrics.main, arguments)
    assert result.exit_code == 0, result.output
    draws = Draws([derive_seed(0, "image", i) for i in range(5)])
    share = (draws.normal((3, 16, 16), "latent")[:, 0, 0, 0] > 0).double().mean().item()
    assert 0 < share < 1
    values = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert values.pop("H†y")["evaluations"] == 0
    (cell,) = values.values()
    assert cell["evaluations"] == pytest.approx(1 + share)
    assert isinstance(cell["backward_passes"], int)
