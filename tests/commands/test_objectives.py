"""What a network may be trained for: its loss, its training, and the samplers that drive it."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from helpers import gaussian
from runner import Runner
from torch import Tensor

import calculate_metrics
import restore
import train
from degradation import Draws, GaussianNoise, Mask, Problem
from networks import Denoiser, load_weights, make_config, save_weights
from runtime.reader import OBJECTIVES
from samplers import InDI, sampler_names
from training.config import TrainConfig
from training.loss import LOSSES, InDILoss

SMALL = [
    "--data-opt=resolution=16", "--data-opt=size=8", "--degradation=Box", "--precision=fp32",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def posed(batch: int = 3) -> Problem:
    op = Mask((gaussian(batch, 1, 16, 16) > 0).float(), (3, 16, 16))
    x = gaussian(batch, 3, 16, 16, seed=1).float()
    return GaussianNoise(0.1).measure(op, x, Draws(range(batch)))


# ---- InDI


def test_indi_takes_its_steps_from_the_pseudo_inverse() -> None:
    """x ← (δ/t)·F(x, t) + (1 − δ/t)·x from H†y + ε·n, and the last step is F."""
    problem, noise, seen = posed(), gaussian(3, 3, 16, 16, seed=2).float(), []

    def denoiser(x: Tensor, time: float, problem: Problem) -> Tensor:
        seen.append(time)
        return 0.5 * x + time

    x, delta = problem.pinv() + 0.1 * noise, 0.25
    for t in (1.0, 0.75, 0.5, 0.25):
        x = delta / t * (0.5 * x + t) + (1 - delta / t) * x
    found = InDI(num_steps=4, epsilon=0.1)(denoiser, noise, problem, Draws([0]))
    torch.testing.assert_close(found, x)
    assert seen == [1.0, 0.75, 0.5, 0.25]


def test_the_loss_of_indi() -> None:
    config = dataclasses.replace(make_config("tiny", "blind"), objective="indi")
    loss, problem = InDILoss(Denoiser(config)), posed()
    x, noise = (gaussian(3, 3, 16, 16, seed=s).float() for s in (3, 4))
    times = torch.tensor([0.2, 0.6, 1.0])
    t = times.view(3, 1, 1, 1)
    mixed = (1 - t) * x + t * problem.pinv() + t * 0.01 * noise
    expected = (loss.denoiser(mixed, times, problem) - x).abs().mean((1, 2, 3))
    torch.testing.assert_close(loss(x, times, noise, problem), expected)


def test_the_times_of_indi() -> None:
    """Uniform in (0, 1], and 1 for a share of the samples."""
    config = TrainConfig(objective="indi", degradation="Box", mmse_share=0.25)
    times = InDILoss(Denoiser(make_config("tiny", "blind"))).levels(Draws(range(4000)), config)
    assert times.min() > 0 and times.max() == 1
    assert (times == 1).double().mean().item() == pytest.approx(0.25, abs=0.03)
    quarters = times[times < 1].quantile(torch.tensor([0.25, 0.5, 0.75]))
    torch.testing.assert_close(quarters, torch.tensor([0.25, 0.5, 0.75]), rtol=0, atol=0.03)


def trained(*options: str) -> Denoiser:
    arguments = [
        "--preset=tiny", *SMALL, "--blind-train", "--batch=8", "--duration=320", "--lr=2e-3",
        "--ramp=32", "--workers=0", "--outdir=run", "--log-every=64", "--validate-every=320",
        "--validate-images=4", "--sheet-every=320", "--sheet-images=1", "--ema-halflife=32",
        *options,
    ]  # fmt: skip
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    denoiser = load_weights("run/weights.safetensors")
    assert isinstance(denoiser, Denoiser)
    return denoiser


def test_indi_is_trained_restores_and_stands_in_tables() -> None:
    assert trained("--objective=indi").config.objective == "indi"
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in log if "loss" in entry]
    assert losses[-1] < 0.9 * losses[0], losses
    assert [entry["images"] for entry in log if "heldout_psnr" in entry] == [0, 320]
    assert list(Path("run").glob("*.png"))
    result = gen("run/weights.safetensors", "--sampler=indi", "--sampler-opt=num_steps=3")
    assert result.exit_code == 0, result.output
    values = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert {"psnr", "ssim"} <= set(values["InDI"])
    arguments = ["--net", "run/weights.safetensors", "--sampler=indi", "--sampler-opt=num_steps=3"]
    result = Runner().invoke(
        restore.main,
        ["--image", str(photo()), "--degradation=Box", "--outdir=restored", *arguments],
    )
    assert result.exit_code == 0, result.output
    assert Path("restored/mmse.png").is_file()


def test_eps_starts_from_palette_and_stands_in_tables_by_its_name() -> None:
    trained("--max-minutes=0.0001")
    Path("run").rename("palette")
    Path("eps.yaml").write_text("network: {fused: true}\n")
    init = "--init=palette/weights.safetensors"
    assert trained("--config=eps.yaml", init, "--duration=16").config.fused
    result = gen("run/weights.safetensors", "--sampler=dpm", "--sampler-opt=num_steps=3")
    assert result.exit_code == 0, result.output
    values = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert "EPS sample (dpm)" in values


def photo() -> Path:
    from PIL import Image

    Image.fromarray((gaussian(16, 16, 3).numpy() * 40 + 128).clip(0, 255).astype("uint8")).save(
        "photo.png"
    )
    return Path("photo.png")


# ---- which sampler drives what


def test_every_objective_has_a_loss_and_a_sampler() -> None:
    assert set(LOSSES) == set(OBJECTIVES)
    assert all(sampler_names(objective) for objective in OBJECTIVES)
    with pytest.raises(ValueError, match="objective foo must be denoising or"):
        dataclasses.replace(make_config("tiny"), objective="foo")


def gen(net: str, *options: str) -> Result:
    arguments = ["gen", "--net", net, *SMALL, "--images=2", "--outdir=out", *options]
    return Runner().invoke(calculate_metrics.main, arguments)


@pytest.mark.parametrize(
    ("objective", "sampler", "fitting"),
    [
        ("indi", "heun", "indi"),
        ("indi", "mmse", "indi"),
        ("mmse", "dpm", "mmse"),
        ("denoising", "indi", "dpm or euler"),
    ],
)
def test_a_network_of_another_objective_is_refused(
    objective: str, sampler: str, fitting: str
) -> None:
    config = dataclasses.replace(make_config("tiny", "blind"), objective=objective)
    save_weights("net.safetensors", Denoiser(config), {})
    result = gen("net.safetensors", f"--sampler={sampler}")
    assert result.exit_code == 2
    (line,) = result.stderr.strip().splitlines()
    assert f"for the objective {objective}: --sampler {sampler}" in line and fitting in line
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("objective", "sampler"), [("denoising", "mmse"), ("indi", "indi"), ("mmse", "heun")]
)
def test_an_estimate_is_no_drawn_image(objective: str, sampler: str) -> None:
    config = dataclasses.replace(make_config("tiny", "blind"), objective=objective)
    save_weights("net.safetensors", Denoiser(config), {})
    arguments = ["gen", "--net=net.safetensors", "--images=2", "--outdir=out"]
    result = Runner().invoke(calculate_metrics.main, [*arguments, f"--sampler={sampler}"])
    assert result.exit_code == 2 and "draws none: give weights of" in result.stderr
    assert not Path("out").exists()


def test_networks_of_two_objectives_share_a_table() -> None:
    for objective in ("denoising", "indi"):
        config = dataclasses.replace(make_config("tiny", "blind"), objective=objective)
        save_weights(f"{objective}.safetensors", Denoiser(config), {})
    options = ["--net=indi.safetensors", "--sampler=mmse", "--sampler=indi"]
    result = gen("denoising.safetensors", *options, "--sampler-opt=indi.num_steps=2")
    assert result.exit_code == 0, result.output
    values = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert {"Palette MMSE", "InDI"} <= set(values)


def test_configurations_of_before_keep_their_meaning(tmp_path: Path) -> None:
    path = tmp_path / "old.yaml"
    path.write_text("degradation: Box\nmse_train: true\n")
    assert TrainConfig.load(path, {}).objective == "mmse"
    path.write_text("degradation: Box\nmse_train: false\n")
    assert TrainConfig.load(path, {}).objective == "denoising"
