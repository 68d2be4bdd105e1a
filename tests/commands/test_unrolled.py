"""Unrolled DDRM: its loss, its training from unconditional weights, and what drives it."""

import dataclasses
import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from helpers import assert_near, gaussian

import calculate_metrics
import restore
import train
from degradation import Draws, GaussianNoise, Mask
from networks import Denoiser, load_weights, make_config, save_weights
from samplers import Euler
from training.loss import UnrolledLoss

SMALL = ["--data-opt=resolution=16", "--data-opt=size=8", "--degradation=Box", "--precision=fp32"]
TRAIN = [
    "--preset=tiny", *SMALL, "--batch=8", "--lr=1e-3", "--ramp=0", "--workers=0", "--outdir=run",
    "--objective=unrolled", "--duration=16", "--validate-every=16", "--validate-images=2",
    "--ema-halflife=1", "--sheet-every=16", "--sheet-images=1",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def network(objective: str = "denoising", conditioning: str = "unconditional") -> Denoiser:
    torch.manual_seed(0)
    config = make_config("tiny", conditioning)
    return Denoiser(dataclasses.replace(config, objective=objective))


def test_the_loss_is_the_error_of_ten_steps_written_out() -> None:
    """x' = (I − P)[x̂ + σ'(√(1 − η²)ε̂ + ηz)] + H†y + σ'Pz, and its gradient is that of all steps."""
    loss = UnrolledLoss(network())
    with torch.no_grad():  # a new network is blind to its input
        for p in loss.denoiser.net.parameters():
            p += 0.02 * torch.randn_like(p)
    mask = (gaussian(2, 1, 16, 16) > 0).float()
    images = gaussian(2, 3, 16, 16, seed=1).float()
    problem = GaussianNoise(0.0).measure(Mask(mask, (3, 16, 16)), images, Draws([0, 1]))
    noise = loss.noise(Draws([0, 1]))
    assert noise.shape == (2, 11, 3, 16, 16)
    start, *fresh = noise.unbind(1)
    grid = Euler(10).grid()
    x = mask * (images + grid[0] * start) + (1 - mask) * grid[0] * start
    for (sigma, following), z in zip(pairwise(grid), reversed(fresh), strict=True):
        estimate = loss.denoiser(x, sigma, problem.unconditional())
        slope = math.sqrt(1 - 0.85**2) * (x - estimate) / sigma
        free = estimate + following * (slope + 0.85 * z)
        x = (1 - mask) * free + mask * (images + following * z)
    expected = (x - images).square().mean((1, 2, 3))
    found = loss(images, torch.ones(2), noise, problem)
    torch.testing.assert_close(found, expected)
    weights = loss.denoiser.net.patch_out.proj.weight
    ours, theirs = (torch.autograd.grad(f.sum(), weights)[0] for f in (found, expected))
    assert_near(ours[None], theirs[None], 1e-4)


def test_a_few_steps_lower_the_loss() -> None:
    levels = [{"depth": 1, "width": 48, "kernel": None, "d_head": 16}]
    config = make_config("tiny", "unconditional", (3, 8, 8), network={"levels": levels})
    loss = UnrolledLoss(Denoiser(config))
    images = torch.full((4, 3, 8, 8), 0.7)
    mask = Mask((gaussian(4, 1, 8, 8) > 0).float(), (3, 8, 8))
    problem = GaussianNoise(0.0).measure(mask, images, Draws(range(4)))
    optimizer, losses = torch.optim.Adam(loss.parameters(), 3e-3), []
    for step in range(8):
        noise = loss.noise(Draws(range(4 * step, 4 * step + 4)))
        losses.append(loss(images, torch.ones(4), noise, problem).mean())
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.75 * losses[0], losses


def run(*options: str) -> Result:
    return CliRunner().invoke(train.main, [*TRAIN, *options])


def gen(net: str, *options: str) -> Result:
    arguments = ["gen", "--net", net, *SMALL, "--images=2", "--outdir=out", *options]
    return CliRunner().invoke(calculate_metrics.main, arguments)


def values() -> dict:
    return json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]


def test_unconditional_weights_are_fine_tuned_restore_and_stand_beside_ddrm() -> None:
    save_weights("before.safetensors", network(), {})
    result = run("--init=before.safetensors")
    assert result.exit_code == 0, result.output
    assert load_weights("run/weights.safetensors").config == network("unrolled").config
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    before, after = (entry["heldout_psnr"]["Box"] for entry in log if "heldout_psnr" in entry)
    assert after > before, log
    options = ["--net=run/weights.safetensors", "--sampler=ddrm", "--sampler=unrolled"]
    result = gen("before.safetensors", *options, "--sampler-opt=ddrm.num_steps=10")
    assert result.exit_code == 0, result.output
    found = values()
    assert [found[name]["evaluations"] for name in ("DDRM", "Unrolled DDRM")] == [10, 10]
    assert found["Unrolled DDRM"]["consistency"]["mean"] < 1e-10
    from PIL import Image

    Image.new("RGB", (16, 16), "red").save("photo.png")
    words = ["--image=photo.png", "--degradation=Box", "--outdir=restored", "--samples=1"]
    words += ["--net=run/weights.safetensors", "--sampler=unrolled"]
    result = CliRunner().invoke(restore.main, words)
    assert result.exit_code == 0, result.output
    assert Path("restored/sample-1.png").is_file()


@pytest.mark.parametrize(
    ("objective", "conditioning", "sampler", "words"),
    [
        ("unrolled", "unconditional", "ddrm", "objective unrolled: --sampler ddrm"),
        ("unrolled", "unconditional", "heun", "unconditional"),
        ("denoising", "unconditional", "unrolled", "objective denoising: --sampler unrolled"),
        ("denoising", "blind", "unrolled", "objective denoising: --sampler unrolled"),
    ],
)
def test_another_pair_of_network_and_sampler_is_refused(
    objective: str, conditioning: str, sampler: str, words: str
) -> None:
    save_weights("net.safetensors", network(objective, conditioning), {})
    result = gen("net.safetensors", f"--sampler={sampler}")
    assert result.exit_code == 2 and not Path("out").exists()
    (line,) = result.stderr.strip().splitlines()
    assert words in line


def test_a_network_that_no_sampler_drives_is_named_with_the_one_that_would() -> None:
    save_weights("plain.safetensors", network(), {})
    save_weights("unrolled.safetensors", network("unrolled"), {})
    result = gen("plain.safetensors", "--net=unrolled.safetensors", "--sampler=ddrm")
    assert result.exit_code == 2
    assert "no --sampler drives unrolled.safetensors: add unrolled" in result.stderr


@pytest.mark.parametrize(
    ("conditioning", "options", "words"),
    [
        ("blind", ["--init=net.safetensors"], "init=net.safetensors in_mult=2"),
        ("unconditional", ["--blind-train"], "unrolled blind"),
    ],
)
def test_other_beginnings_are_refused(conditioning: str, options: list[str], words: str) -> None:
    save_weights("net.safetensors", network("denoising", conditioning), {})
    result = run(*options)
    assert result.exit_code == 2 and not Path("run/checkpoints").exists()
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words.split())
