"""The noise levels that training draws, and its loss by hand."""

import math

import numpy as np
import pytest
import torch

from degradation import Draws, Problem
from networks import Denoiser, make_config
from training.loss import DenoisingLoss, draw_sigma

# ---- the loss ------------------------------------------------------------------------------------


def test_log_sigma_is_normal():
    logs = draw_sigma(Draws(range(20_000)), -0.8, 1.6).log().double()
    quantiles = torch.distributions.Normal(-0.8, 1.6).cdf(logs).sort().values
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    assert (quantiles - uniform).abs().max() < 1.63 / math.sqrt(20_000)  # Kolmogorov, 1 %


def test_a_share_of_the_sigmas_is_that_of_the_mmse_estimate():
    draws = Draws(range(20_000))
    plain, mixed = draw_sigma(draws, -0.8, 1.6), draw_sigma(draws, -0.8, 1.6, mmse_share=0.3)
    chosen = mixed == 100
    assert chosen.double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_000))
    assert torch.equal(mixed[~chosen], plain[~chosen])
    # Those chosen are no special ones: their own σ would have had the same law.
    gap = plain[chosen].log().mean() - plain[~chosen].log().mean()
    assert abs(gap) < 4 * 1.6 / math.sqrt(20_000 * 0.21)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_share_of_none_or_all_is_exact(share, expected):
    sigma = draw_sigma(Draws(range(1000)), -0.8, 1.6, mmse_share=share)
    assert sigma.eq(100).double().mean() == expected


def test_sigma_of_a_sample_depends_on_its_seed_alone():
    batch = draw_sigma(Draws([5, 6, 7]), -0.8, 1.6, mmse_share=0.5)
    alone = draw_sigma(Draws([6]), -0.8, 1.6, mmse_share=0.5)
    torch.testing.assert_close(batch[1], alone[0])


@pytest.fixture
def skipping() -> Denoiser:
    """A new network, which is its skip connection, with an uncertainty that varies with σ."""
    denoiser = Denoiser(make_config("tiny"))
    torch.nn.init.normal_(denoiser.logvar.linear.weight, std=0.1)
    return denoiser


def test_loss_is_the_weighted_error_with_learned_uncertainty(skipping):
    images, noise = torch.randn(2, 3, 3, 16, 16)
    sigma = torch.tensor([0.1, 1.0, 30.0])
    u = skipping.log_variance(sigma).detach()
    assert u.std() > 0.1
    problem = Problem.without_measurement(3, (3, 16, 16))
    loss = DenoisingLoss(skipping)(images, sigma, noise, problem)
    for i, s in enumerate(sigma.tolist()):
        noisy = images[i].numpy() + s * noise[i].numpy()
        error = 0.5**2 / (s**2 + 0.5**2) * noisy - images[i].numpy()
        weight = (s**2 + 0.5**2) / (s * 0.5) ** 2
        expected = np.mean(weight / math.exp(u[i]) * error**2 + u[i].item())
        assert loss[i].item() == pytest.approx(expected, rel=1e-5)
