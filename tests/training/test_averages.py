"""Power-function averages: their profile, their tracking, and making them after training."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from runner import Runner

from networks import Denoiser, load_weights, make_config, read_summary, save_weights
from training.posthoc import main, reconstruct
from training.schedule import WIDEST, coefficients, power_decay, power_exponent

BATCH = 4


@pytest.mark.parametrize("exponent", [0.0, 1.0, 6.94, 16.97])
def test_exponent_is_the_inverse_of_the_width_of_the_profile(exponent):
    t = (np.arange(200_000) + 0.5) / 200_000
    share = (exponent + 1) * t**exponent / len(t)
    assert share.sum() == pytest.approx(1, rel=1e-4)
    mean = (share * t).sum()
    width = math.sqrt((share * (t - mean) ** 2).sum())
    assert power_exponent(min(width, WIDEST)) == pytest.approx(exponent, abs=1e-3)


@pytest.mark.parametrize("width", [0.0, 1e-200, -0.1, 0.3, math.nan])
def test_a_width_out_of_range_is_refused(width):
    with pytest.raises(
        ValueError, match=r"sigma_rel=.* must be at least 0.0001 and at most 0\.288"
    ):
        power_exponent(width)


def tracked(values: np.ndarray, sigma_rel: float) -> np.ndarray:
    """The average after every step of `[steps, n]` weights, by its recursion."""
    average, averages, exponent = np.zeros(values.shape[1]), [], power_exponent(sigma_rel)
    for step, value in enumerate(values, 1):
        decay = power_decay(step * BATCH, batch=BATCH, exponent=exponent)
        average = decay * average + (1 - decay) * value
        averages.append(average)
    return np.stack(averages)


@pytest.mark.parametrize("sigma_rel", [0.05, 0.15, WIDEST])
def test_recursion_tracks_the_profile(sigma_rel):
    """Each step's share in the average, taken from unit weights, is (γ + 1)·τ^γ / t^(γ + 1)."""
    steps, exponent = 400, power_exponent(sigma_rel)
    shares = tracked(np.eye(steps), sigma_rel)[-1]
    edges = np.linspace(0, 1, steps + 1) ** (exponent + 1)
    assert shares.sum() == pytest.approx(1, rel=1e-12)
    assert np.abs(np.cumsum(shares) - edges[1:]).max() < 0.02


def path_of_weights(steps: int) -> np.ndarray:
    """Weights that wander as those of a training do, `[steps, 50]`."""
    generator = np.random.default_rng(0)
    drift = np.log1p(np.arange(steps))[:, None] * generator.normal(size=50)
    return drift + generator.normal(size=(steps, 50)).cumsum(0) / math.sqrt(steps)


@pytest.mark.parametrize("sigma_rel", [0.03, 0.07, 0.1, 0.15, 0.25])
def test_a_sum_of_snapshots_is_near_the_average_that_was_tracked(sigma_rel):
    steps, every, widths = 2048, 64, (0.05, 0.1)
    weights = path_of_weights(steps)
    expected = tracked(weights, sigma_rel)[-1]
    snapshots = {width: tracked(weights, width) for width in widths}
    found = [(t, width) for width in widths for t in range(every, steps + 1, every)]
    factors = coefficients(
        [t for t, _ in found], [power_exponent(w) for _, w in found], steps,
        power_exponent(sigma_rel),
    )  # fmt: skip
    assert factors.sum() == pytest.approx(1)
    made = sum(f * snapshots[w][t - 1] for f, (t, w) in zip(factors, found, strict=True))
    nearest = min(np.linalg.norm(snapshots[w][-1] - expected) for w in widths)
    error = np.linalg.norm(made - expected)
    # A wide average reaches back to weights before the first snapshot.
    assert error < (0.01 if sigma_rel < 0.2 else 0.03) * np.linalg.norm(weights[-1] - expected)
    assert sigma_rel in widths or error < 0.1 * nearest


def test_an_average_that_was_tracked_is_its_own_snapshot():
    times, widths = [400, 800, 400, 800], [0.05, 0.05, 0.1, 0.1]
    exponents = [power_exponent(width) for width in widths]
    found = coefficients(times, exponents, 800, exponents[1])
    np.testing.assert_allclose(found, [0, 1, 0, 0], atol=1e-9)


# ---- the command ---------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[float, dict]]:
    """Snapshots of 32 steps of a network whose weights wander, and the averages of any width."""
    folder = tmp_path_factory.mktemp("run")
    level = {"depth": 1, "width": 48, "kernel": None, "d_head": 16}
    denoiser = Denoiser(make_config("tiny", network={"levels": [level], "mapping_depth": 1}))
    generator = torch.Generator().manual_seed(0)
    widths = (0.05, 0.1, 0.15)
    averages = {
        width: {name: p.detach().clone() for name, p in denoiser.named_parameters()}
        for width in widths
    }
    for step in range(1, 33):
        for name, p in denoiser.named_parameters():
            p.data += torch.randn(p.shape, generator=generator) / step
            for width, average in averages.items():
                decay = power_decay(step * 4, batch=4, exponent=power_exponent(width))
                average[name].lerp_(p.data, 1 - decay)
        for width in widths[:2]:
            copy = Denoiser(denoiser.config)
            copy.load_state_dict(denoiser.state_dict() | averages[width])
            path = folder / "snapshots" / f"{4 * step:012d}-power-{width:g}.safetensors"
            if step % 2 == 0:
                save_weights(path, copy, {"images": 4 * step, "sigma_rel": width})
    return folder, averages


def invoke(*arguments: object):
    return Runner().invoke(main, [str(argument) for argument in arguments])


def test_the_command_makes_a_weights_file_of_another_width(run, tmp_path):
    folder, averages = run
    out = tmp_path / "w.safetensors"
    assert invoke(folder, "--sigma-rel", 0.15, "--dest", out).exit_code == 0
    made, expected = load_weights(out), averages[0.15]
    assert read_summary(out) == {"images": 128, "sigma_rel": 0.15}
    last = load_weights(sorted((folder / "snapshots").iterdir())[-1])
    for (name, p), old in zip(made.named_parameters(), last.parameters(), strict=True):
        assert (p - expected[name]).norm() < 0.1 * (old - expected[name]).norm() + 1e-6


def test_a_tracked_width_comes_back(run):
    folder, averages = run
    made, _ = reconstruct(folder, 0.1)
    for name, p in made.named_parameters():
        torch.testing.assert_close(p.detach(), averages[0.1][name], rtol=1e-5, atol=1e-6)


def test_weights_that_are_no_snapshot_are_refused(run, tmp_path):
    (tmp_path / "snapshots").mkdir()
    save_weights(tmp_path / "snapshots" / "x.safetensors", Denoiser(make_config("tiny")), {})
    result = invoke(tmp_path, "--sigma-rel", 0.1, "--dest", tmp_path / "w.safetensors")
    assert result.exit_code == 2 and "x.safetensors is no snapshot" in result.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sigma-rel", 0.5], "sigma_rel=0.5"),
        (["--sigma-rel", 0.1, "--images", 4], "between the snapshots, 8 to 128"),
        (["--sigma-rel", 0.1, "--images", 999], "between the snapshots, 8 to 128"),
        (["--sigma-rel", 0.1, "--images", 0], "between the snapshots, 8 to 128"),
    ],
)
def test_the_command_refuses_in_a_sentence(run, tmp_path, options, words):
    result = invoke(run[0], *options, "--dest", tmp_path / "w.safetensors")
    assert result.exit_code == 2 and words in result.stderr and result.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_run_without_snapshots_is_refused(tmp_path):
    result = invoke(tmp_path, "--sigma-rel", 0.1, "--dest", tmp_path / "w.safetensors")
    assert result.exit_code == 2 and "ema-sigma-rel" in result.stderr
