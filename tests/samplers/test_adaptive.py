"""Severity-adaptive sampling on images whose posterior is a known Gaussian, harder and easier."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from degradation import Draws, NullOperator, Problem
from samplers import DPM, Adaptive, CountingDenoiser, Heun, Sampler, make_sampler

SHAPE, COUNT = (3, 6, 6), 400
MEAN = torch.linspace(-0.6, 0.6, 108).view(SHAPE)
SPECTRUM = (torch.linspace(0, 1, 108) + 0.05).pow(-2)
SPECTRUM = (SPECTRUM / SPECTRUM.mean()).view(SHAPE)  # half the variance in 5 directions
ERRORS = torch.tensor([1e-4, 1e-2, 0.1])
"""Squared error per value of the MMSE estimate, for each class of images."""


def posed(classes: list[int]) -> Problem:
    labels = torch.tensor(classes)
    return Problem(NullOperator(len(labels), SHAPE), torch.zeros(len(labels), 1), 0.0, labels)


def exact(x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
    """E[x0 | x, y] of N(MEAN, error · SPECTRUM), the error that of the class."""
    variance = ERRORS[problem.class_labels].view(-1, 1, 1, 1) * SPECTRUM
    return MEAN + variance / (variance + sigma**2) * (x - MEAN)


def sampled(sampler: Sampler, classes: list[int]) -> tuple[Tensor, float]:
    """Samples and the evaluations that one took on average."""
    draws = Draws(range(len(classes)))
    counter = CountingDenoiser(exact, len(classes))
    x = sampler(counter, draws.normal(SHAPE, "latent"), posed(classes), draws)
    return x, counter.calls


def errors(x: Tensor, label: int) -> tuple[float, float]:
    """Of the mean, and of the standard deviations, both squared and over the total variance."""
    variance = ERRORS[label] * SPECTRUM
    mean = (x.mean(0) - MEAN).square().sum() / variance.sum()
    std = (x.std(0) - variance.sqrt()).square().sum() / variance.sum()
    return mean.item(), std.item()


def severity(sampler: Adaptive, denoiser: Any, problem: Problem, draws: Draws) -> tuple:
    run = sampler.begin(denoiser, problem, draws)
    return sampler.severity(run, draws.normal(SHAPE, "latent"))


def test_the_severity_is_the_error_of_the_estimate() -> None:
    draws = Draws(range(3 * COUNT))
    problem = posed([0, 1, 2] * COUNT)
    found = severity(Adaptive(), exact, problem, draws)
    torch.testing.assert_close(found[0][::3], MEAN.expand(COUNT, *SHAPE), atol=1e-3, rtol=0)
    means = found[1].view(COUNT, 3).mean(0)
    assert (means / ERRORS - 1).abs().max() < 0.1
    probe = Adaptive(probe=0.1)  # of directions that vary by more than this it sees little
    seen = severity(probe, exact, problem, draws)[1]
    assert (seen[2::3] < 0.2 * ERRORS[2]).all()


def test_fewer_evaluations_where_little_is_open_and_no_worse_samples() -> None:
    taken = []
    for label in range(3):
        (x, evaluations), (full, most) = (
            sampled(s, [label] * COUNT) for s in (Adaptive(num_steps=20), DPM(num_steps=20))
        )
        taken.append(evaluations)
        for found, reference in zip(errors(x, label), errors(full, label), strict=True):
            assert found < 1.2 * reference + 0.005
        assert evaluations < most == 20
    assert taken[0] < 9 and taken[0] + 3 < taken[1] < taken[2] - 1, taken
    together = sampled(Adaptive(num_steps=20), [0, 1, 2] * COUNT)[1]
    assert together == pytest.approx(sum(taken) / 3, abs=0.2)


def test_an_error_that_cannot_be_predicted_is_taken_to_be_large() -> None:
    def against(x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        # turns noise round, which no posterior does
        return MEAN - 0.1 * (x - MEAN) if float(sigma) < 50 else MEAN.expand_as(x)

    found = severity(Adaptive(), against, posed([0, 1]), Draws(range(2)))
    assert torch.equal(found[1], torch.ones(2))


def test_the_start_of_the_paper_loses_variance() -> None:
    """c = 1.2 is for errors like white noise."""
    x, _ = sampled(Adaptive(spread=1.2), [1] * COUNT)
    assert x.var(0).sum() < 0.5 * (ERRORS[1] * SPECTRUM).sum()


def test_an_image_does_not_depend_on_its_batch() -> None:
    for inner in ("dpm", "heun"):
        sampler = Adaptive(of=inner, num_steps=5)
        together, evaluations = sampled(sampler, [2, 0, 1, 0])
        alone, own = sampled(sampler, [2])
        torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
        assert own != evaluations
    assert Adaptive(of="heun").sampler == Heun(num_steps=20)


def test_one_that_draws_noise_draws_each_images_own() -> None:
    from samplers.base import SAMPLERS

    class Stochastic(DPM):
        def __init__(self, num_steps: int = 20):
            super().__init__(num_steps=num_steps, eta=1.0)

    SAMPLERS["stochastic"] = Stochastic
    try:
        sampler = Adaptive(of="stochastic", num_steps=6)
        together, alone = sampled(sampler, [2, 0, 1])[0], sampled(sampler, [2])[0]
    finally:
        del SAMPLERS["stochastic"]
    torch.testing.assert_close(together[:1], alone, atol=1e-5, rtol=1e-5)
    assert not math.isclose(together[0].std().item(), sampled(Adaptive(), [2])[0].std().item())


@pytest.mark.parametrize("of", ["ddrm", "adaptive"])
def test_what_has_no_levels_or_no_estimate_is_refused(of: str) -> None:
    import zero_shot  # noqa: F401

    with pytest.raises(ValueError, match=f"of={of} must be heun"):
        make_sampler("adaptive", {"of": of})


def test_the_most_evaluations_are_those_of_an_unknown_image() -> None:
    for of, most in (("dpm", 22), ("heun", 41)):
        counter = CountingDenoiser(lambda x, sigma, problem: (sigma < 99) * 1e3 * x, 1)
        draws = Draws([0])
        Adaptive(of=of)(counter, draws.normal(SHAPE, "latent"), posed([0]), draws)
        assert counter.calls == most
