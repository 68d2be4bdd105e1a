"""One network for a range of noise levels: every image draws its own, and the network is told."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from runner import Runner

import train
from degradation import DrawnNoise, Draws, Mask, NullOperator
from networks import Denoiser, load_weights, make_config, read_summary
from training.config import TrainConfig

SHAPE = (3, 16, 16)


def visible(batch: int) -> Mask:
    return Mask(torch.ones(batch, 1, 16, 16), SHAPE)


def test_levels_are_uniform_in_the_range_and_zero_for_the_clean_share() -> None:
    batch = 4000
    noise = DrawnNoise(0.02, 0.1, clean_share=0.25)
    x = torch.zeros(batch, *SHAPE)
    problem = noise.measure(visible(batch), x, Draws(range(batch)))
    level = problem.levels
    clean = level == 0
    assert clean.float().mean().item() == pytest.approx(0.25, abs=0.03)  # 4 deviations
    assert level[~clean].min() >= 0.02 and level.max() <= 0.1
    assert level[~clean].mean().item() == pytest.approx(0.06, abs=0.002)
    # The problem says the level that its y has.
    assert torch.equal(problem.y[clean], torch.zeros_like(problem.y[clean]))
    ratio = problem.y[~clean].std(1) / level[~clean]
    torch.testing.assert_close(ratio, torch.ones_like(ratio), atol=0.15, rtol=0)


def test_a_level_is_a_function_of_the_seed() -> None:
    noise, x = DrawnNoise(0, 0.1), torch.zeros(3, *SHAPE)
    together = noise.measure(visible(3), x, Draws([5, 6, 7]))
    alone = noise.measure(visible(1), x[:1], Draws([6]))
    assert torch.equal(together.levels[1:2], alone.levels)
    assert torch.equal(together.y[1:2], alone.y)


def test_rows_that_do_not_exist_stay_zero() -> None:
    problem = DrawnNoise(0.05, 0.1).measure(
        NullOperator(2, SHAPE), torch.ones(2, *SHAPE), Draws([0, 1])
    )
    assert not problem.y.any()


def test_the_network_is_told_of_the_noise_level() -> None:
    """Where the operator hides it: H†y of a null operator is zero at any level."""
    torch.manual_seed(0)
    x = torch.randn(2, *SHAPE)
    nets = [
        Denoiser(replace(make_config("tiny"), noise_conditioning=told)) for told in (True, False)
    ]
    for net, differs in zip(nets, (True, False), strict=True):
        for parameter in net.parameters():
            parameter.data += 0.05 * torch.randn_like(parameter)  # no layer stays zero
        problem = DrawnNoise(0, 0.1).measure(NullOperator(2, SHAPE), x, Draws([0, 1]))
        quiet = replace(problem, noise_level=torch.zeros(2))
        with torch.no_grad():
            change = (net(x, 1.0, problem) - net(x, 1.0, quiet)).abs().max()
        assert (change > 1e-4) == differs


def test_a_run_over_a_range(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    arguments = [
        "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "--degradation=Box",
        "--noise-range=[0, 0.1]", "--clean-share=0.3", "--ramp=0", "--batch=4",
        "--duration=8", "--workers=0", "--outdir=run", "--validate-images=2",
    ]  # fmt: skip
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 0, result.output
    denoiser = load_weights("run/weights.safetensors")
    assert denoiser.config.noise_conditioning  # type: ignore[union-attr]
    assert read_summary("run/weights.safetensors")["noise_range"] == [0, 0.1]
    resumed = Runner().invoke(train.main, ["--resume=run", "--duration=12"])
    assert resumed.exit_code == 0, resumed.output


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"noise_range": (0.1, 0)}, "noise_range=.* must be two rising numbers"),
        ({"noise_range": (0.1,)}, "noise_range=.* must be two rising numbers"),
        ({"noise_range": (0, 0.1), "noise_level": 0.1}, "noise_level=0.1 and noise_range="),
        ({"noise_range": (0, 0.1), "poisson_peak": 9.0}, "noise_range=.* and poisson_peak="),
        ({"clean_share": 0.5}, "clean_share=0.5 goes with a noise_range"),
        ({"clean_share": 2, "noise_range": (0, 0.1)}, "clean_share=2 must be between 0 and 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        TrainConfig(**settings)
