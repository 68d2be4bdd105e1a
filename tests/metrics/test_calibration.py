"""Calibration of samples: exact posteriors pass, samplers that are 20 % too narrow do not.

The priors are Gaussian, so that posteriors are known. Statistics are means over 256 images, each
with 39 samples. Three standard errors tell apart.
"""

import math

import numpy as np
import pytest
import torch
from helpers import gaussian
from torch import Tensor

from degradation import Draws, GaussianNoise, MissingPatches
from metrics.calibration import (
    conformal_scale,
    coverage,
    names,
    rank_histogram,
    rank_spread,
    statistics,
    tarp_curve,
)
from metrics.means import summaries
from metrics.sampled import calibration
from networks import GaussianMixture, posterior, posterior_mean

SHAPE = (3, 4, 4)
IMAGES, SAMPLES = 256, 39
EXPECTED = {
    "rank_mean": 0.5, "rank_spread": 1, "coverage_50": 0.5, "coverage_90": 0.9,
    "coverage_95": 0.95, "tarp_spread": 1,
}  # fmt: skip


def world(noise_level: float, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """True images, samples of their posteriors, and posterior means, in [-1, 1]."""
    factor = gaussian(48, 48, seed=seed) / 48**0.5
    prior = GaussianMixture.gaussian(torch.zeros(48), 0.09 * factor @ factor.mT, SHAPE)
    seeds = range(1000 * seed, 1000 * seed + IMAGES)
    truth = prior.sample(Draws(seeds)).float()
    operator = MissingPatches().sample(SHAPE, None, list(seeds))
    problem = GaussianNoise(noise_level).measure(operator, truth, Draws(seeds))
    own = posterior(prior, problem)
    samples = [own.sample(Draws([10**6 * k + s for s in seeds])) for k in range(1, SAMPLES + 1)]
    return truth, torch.stack(samples).float(), posterior_mean(prior, problem).float()


def levels(x: Tensor) -> Tensor:
    return 127.5 * x + 127.5


@pytest.fixture(scope="module", params=[0.2, 0.0], ids=["noise", "no noise"])
def measured(request: pytest.FixtureRequest) -> dict[str, dict[str, Tensor]]:
    """Statistics of the oracle, and of a sampler whose samples are too near to their mean.

    Without noise a part of the pixels is known, and all are rounded to a level.
    """
    truth, samples, mean = world(request.param)
    rounded = torch.round if request.param == 0 else lambda x: x
    reference = 255 * torch.rand(truth.shape, generator=torch.Generator().manual_seed(0))
    return {
        name: statistics(rounded(levels(x)), rounded(levels(truth)), reference)
        for name, x in (("exact", samples), ("narrow", mean + 0.8 * (samples - mean)))
    }


def of_all(found: dict[str, Tensor]) -> dict[str, dict[str, float]]:
    """Means of what is known of each image; the ratio as metrics.json has it."""
    values = {name: v.tolist() for name, v in found.items() if v.ndim == 1}
    histograms = torch.stack([found[f"{kind}_histogram"].sum(0) for kind in ("rank", "tarp")])
    return calibration(summaries(values), values, histograms)


def errors(found: dict[str, Tensor]) -> dict[str, float]:
    """By how many standard errors the statistics miss what posterior samples have."""
    cell = of_all(found)
    missed = {
        name: (cell[name]["mean"] - expected) / cell[name]["standard_error"]
        for name, expected in EXPECTED.items()
    }
    ratio = cell["spread_error"]
    missed["spread_error"] = (ratio["mean"] - 1) / (ratio["high"] - ratio["low"]) * 2 * 1.96
    return missed


def test_the_oracle_passes(measured):
    for name, error in errors(measured["exact"]).items():
        assert abs(error) < 3, (name, error)


def test_samples_that_are_too_narrow_do_not_pass(measured):
    found = errors(measured["narrow"])
    assert abs(found.pop("rank_mean")) < 3  # they are not biased
    for name, error in found.items():
        assert error < -3 if name.startswith(("coverage", "spread")) else error > 3, (name, error)
    ratio = of_all(measured["narrow"])["spread_error"]
    assert ratio["mean"] == pytest.approx(0.8, abs=0.03) and ratio["high"] < 0.9


def test_scaled_intervals_hold_for_new_images_whatever_the_sampler(measured):
    """At least 90 % of them in expectation, here of 128; 4 standard deviations are 11 %."""
    scales = {}
    for name, found in measured.items():
        scale = conformal_scale(found["scale_90"][:128].tolist())
        held = (found["scale_90"][128:] <= scale).double().mean().item()
        assert held > 0.79
        scales[name] = scale
    assert scales["narrow"] / scales["exact"] == pytest.approx(1.25, abs=0.1)


def test_a_scale_needs_nine_images():
    assert conformal_scale([3.0, 1.0, 2.0, *[0.0] * 6]) == 3.0
    assert conformal_scale([1.0] * 8) == math.inf
    assert conformal_scale([float(i) for i in range(1, 20)]) == 18.0  # ⌈0.9 · 20⌉


def test_statistics_of_an_image_by_hand():
    samples = torch.tensor([[10.0, 0.0], [20.0, 0.0], [30.0, 0.0]]).view(3, 1, 1, 1, 2)
    truth = torch.tensor([26.0, 0.0]).view(1, 1, 1, 2)
    found = statistics(samples, truth, torch.full_like(truth, 40.0))
    assert found["squared_error"].item() == 18.0 and found["variance"].item() == 50.0
    assert found["mean_psnr"].item() == pytest.approx(10 * math.log10(255**2 / 18))
    # The second pixel is known. The first one has two samples below it, of three.
    assert found["rank_histogram"].tolist() == [[0, 0, 1, 0]]
    assert found["rank_mean"].item() == pytest.approx(2 / 3)
    assert found["coverage_50"].item() == 1
    assert found["scale_90"].item() == pytest.approx(6 / math.sqrt(100 + 1 / 12))
    assert found["tarp_histogram"].tolist() == [[0, 1, 0, 0]]  # nearer than 10 and 20, not 30
    assert set(found) == {*names(3), "rank_histogram", "tarp_histogram"}


def test_an_image_that_is_known_all_over_says_nothing_against_its_samples():
    same = torch.full((19, 2, 3, 2, 2), 7.0)
    found = statistics(same, same[0], torch.zeros_like(same[0]))
    for name in ("rank_mean", "rank_spread", "coverage_50", "coverage_90", "tarp_spread"):
        assert found[name].tolist() == pytest.approx([EXPECTED[name]] * 2)
    assert found["scale_90"].tolist() == [0, 0]


def test_equal_values_share_their_ranks():
    samples = torch.tensor([1.0, 2.0, 2.0, 3.0]).view(4, 1, 1)
    everything = torch.ones(1, 1, dtype=torch.bool)
    found = rank_histogram(samples, torch.tensor([[2.0]]), everything)
    assert found[0].tolist() == pytest.approx([0, 1 / 3, 1 / 3, 1 / 3, 0])
    found = rank_histogram(samples, torch.tensor([[0.0]]), everything)
    assert found[0].tolist() == pytest.approx([1, 0, 0, 0, 0])


@pytest.mark.parametrize("count", [3, 4, 19, 20, 39, 40])
def test_uniform_ranks_cover_what_they_should(count):
    uniform = torch.full((count + 1,), 1 / (count + 1), dtype=torch.float64)
    assert rank_spread(uniform).item() == pytest.approx(1)
    found = [name for name in names(count) if name.startswith("coverage_")]
    assert ("coverage_90" in found, "coverage_95" in found) == (count >= 19, count >= 39)
    for name in found:
        level = int(name[-2:])
        assert coverage(uniform, level).item() == pytest.approx(level / 100)
    expected, found = tarp_curve(uniform)
    assert found.tolist() == pytest.approx(expected.tolist())


@pytest.fixture
def distant() -> tuple[np.ndarray, np.ndarray, np.ndarray, Tensor, np.ndarray]:
    """Samples, truth, references, TARP's curve, and the number of samples nearer than the truth."""
    draws = np.random.default_rng(0)
    truth, samples = draws.normal(size=(60, 12)), 0.7 * draws.normal(size=(9, 60, 12))
    reference = draws.uniform(size=(60, 12))
    tensors = (torch.tensor(x).unflatten(-1, (3, 2, 2)) for x in (samples, truth, reference))
    curve = tarp_curve(statistics(*tensors)["tarp_histogram"].sum(0))[1]
    nearer = np.square(samples - reference).sum(-1) < np.square(truth - reference).sum(-1)
    return samples, truth, reference, curve, nearer.sum(0)


def test_tarp_counts_the_samples_that_are_nearer_to_the_reference(distant):
    *_, curve, nearer = distant
    assert curve.tolist() == pytest.approx([(nearer < j).mean() for j in range(11)])


def test_coverage_is_that_of_the_package_tarp(distant):
    tarp = pytest.importorskip("tarp", exc_type=ImportError)
    samples, truth, reference, curve, nearer = distant
    covered, levels = tarp.get_tarp_coverage(
        samples, truth, references=reference, norm=False, num_alpha_bins=8
    )
    for level, value in zip(levels[:-1], covered[:-1], strict=True):
        assert curve[math.ceil(9 * level - 1e-9)].item() == pytest.approx(value, abs=1e-9)
