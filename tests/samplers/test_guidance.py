"""Guidance by class: its equation, what each evaluation sees, and what is computed once.

`test_the_recorded_run` replays a recorded run of an independent implementation, and is skipped
without it; `test_guidance_extrapolates_from_no_class_to_the_class` checks the equation itself.
"""

from dataclasses import replace

import pytest
import torch
from exact_gaussian import recorded_denoiser
from helpers import gaussian
from torch import Tensor

from degradation import Draws, Mask, Problem
from networks import PRESETS, Denoiser
from samplers import MMSE, CountingDenoiser, Guided, Heun

SHAPE = (3, 4, 4)


def labelled(labels: list[int], seed: int = 0) -> Problem:
    """In-painting problems with half of the pixels, of these classes."""
    mask = (gaussian(len(labels), 1, 4, 4, seed=seed) > 0).float()
    mask[:, :, 0, 0] = 1
    op = Mask(mask, SHAPE)
    images = gaussian(len(labels), *SHAPE, seed=seed + 1, dtype=torch.float32)
    return Problem(op, op.H(images), 0.1, torch.tensor(labels))


class ByClass:
    """x/(1 + σ²) + H†y + label: linear in all it is given; remembers its problems."""

    def __init__(self) -> None:
        self.problems: list[Problem] = []

    def prepare(self, problem: Problem) -> Problem:
        return replace(problem, prepared=problem.pinv())

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        self.problems.append(problem)
        assert problem.class_labels is not None
        level = torch.as_tensor(sigma).view(-1, 1, 1, 1)
        return x / (1 + level**2) + pinv_of(problem) + problem.class_labels.view(-1, 1, 1, 1)


def pinv_of(problem: Problem) -> Tensor:
    return problem.pinv() if problem.prepared is None else problem.prepared


@pytest.mark.parametrize("scale", [-0.5, 0.0, 0.3, 1.0, 2.0])
def test_guidance_extrapolates_from_no_class_to_the_class(scale):
    problem, x, sigma = labelled([4, 0, -1]), gaussian(3, *SHAPE), torch.tensor([0.1, 1, 7])
    out = Guided(ByClass(), scale)(x, sigma, problem)
    null = x / (1 + sigma.view(-1, 1, 1, 1) ** 2) + problem.pinv() - 1
    expected = null + scale * torch.tensor([5, 1, 0]).view(-1, 1, 1, 1)
    torch.testing.assert_close(out, expected)


@pytest.mark.parametrize(
    ("scale", "seen"), [(0.0, [[-1, -1]]), (1.0, [[2, 3]]), (2.0, [[2, 3], [-1, -1]])]
)
def test_only_the_evaluations_that_count_are_made(scale, seen):
    problem, network = labelled([2, 3]), ByClass()
    Guided(network, scale)(gaussian(2, *SHAPE), 1.0, problem)
    assert [given.class_labels.tolist() for given in network.problems] == seen
    for given in network.problems:
        assert given.degradation is problem.degradation and given.y is problem.y
        assert torch.equal(given.levels, problem.levels)
    assert problem.class_labels.tolist() == [2, 3]


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_a_problem_without_labels_is_refused(scale):
    problem = labelled([0]).with_classes(None)
    with pytest.raises(ValueError, match="class labels"):
        Guided(ByClass(), scale)(gaussian(1, *SHAPE), 1.0, problem)


def test_calls_of_the_network_and_evaluations():
    network = CountingDenoiser(ByClass())
    evaluations = CountingDenoiser(Guided(network, 2.0))
    Heun(num_steps=5)(evaluations, gaussian(1, *SHAPE), labelled([1]), Draws([0]))
    assert (evaluations.calls, network.calls) == (9, 18)


# What is computed once


class CountedMask(Mask):
    """A mask that counts its pseudo-inverses."""

    pinvs = 0

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        type(self).pinvs += 1
        return super().H_pinv(y, noise_level)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.0])
def test_a_sampling_run_computes_the_pseudo_inverse_once(monkeypatch, scale):
    monkeypatch.setattr(CountedMask, "pinvs", 0)
    op = CountedMask(torch.ones(1, 1, 4, 4), SHAPE)
    problem = Problem(op, op.H(gaussian(1, *SHAPE, dtype=torch.float32)), 0.1, torch.tensor([1]))
    Heun(num_steps=4)(Guided(ByClass(), scale), gaussian(1, *SHAPE), problem, Draws([0]))
    assert CountedMask.pinvs == 1


def test_a_network_is_guided_by_its_classes():
    denoiser = Denoiser(replace(PRESETS["tiny"], num_classes=3)).eval()
    for parameter in denoiser.parameters():
        if parameter.ndim > 1:  # no layer is left at zero
            torch.nn.init.normal_(parameter, std=0.1)
    guided = Guided(denoiser, 2.0)
    problem = Problem.without_measurement(2, (3, 16, 16), torch.tensor([0, 2]))
    noise = gaussian(2, 3, 16, 16, dtype=torch.float32)
    with torch.no_grad():
        out = MMSE()(guided, noise, problem, Draws([0, 1]))
        known = MMSE()(denoiser, noise, problem, Draws([0, 1]))
        null = MMSE()(denoiser, noise, problem.with_classes(torch.tensor([-1, -1])), Draws([0, 1]))
    assert (known - null).abs().max() > 1e-3
    torch.testing.assert_close(out, 2 * known - null)


def test_the_recorded_run(golden):
    """Its guide, which stands for "no class", is 0.9·D with D exact for a Gaussian prior."""
    records = golden("samplers")
    meta, run = records["meta"], records["runs"]["edm/guidance2"]
    exact = recorded_denoiser(meta)

    def denoiser(x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        assert problem.class_labels is not None
        share = torch.where(problem.class_labels == -1, 0.9, 1.0)
        return exact(x, sigma, problem) * share.view(-1, 1, 1, 1)

    problem = Problem.without_measurement(2, (3, 8, 8), torch.tensor([0, 0]))
    sampler = Heun(run["num_steps"], meta["sigma_min"], meta["sigma_max"], meta["rho"])
    out = sampler(Guided(denoiser, run["guidance"]), meta["noise"], problem, Draws([0, 0]))
    torch.testing.assert_close(out, run["out"], rtol=0, atol=1e-5)
