"""Fitted priors: sample moments, and expectation-maximisation."""

import itertools
import math

import pytest
import torch
from helpers import gaussian

from datautils.photos import Photos
from degradation import Draws
from metrics.pixel import to_float
from networks import GaussianMixture, fit_gaussian, fit_mixture, fitting

SHAPE = (1, 2, 2)
D = 4


def known(seed: int = 0) -> GaussianMixture:
    """Three components some standard deviations apart."""
    root = gaussian(3, D, D, seed=seed) / 2
    means = torch.tensor([[3.0, 0, 0, 0], [0, -3, 0, 1], [-3, 3, 3, 0]])
    return GaussianMixture.from_covariances([0.5, 0.3, 0.2], means, root @ root.mT, SHAPE)


def photos(count: int, split: str = "train") -> torch.Tensor:
    crops = Photos(8, split, size=count)
    return to_float(torch.stack([crops[i][0] for i in range(count)]))


def test_a_gaussian_has_the_sample_moments():
    images = torch.randn(50, 3, 4, 4) * torch.rand(3, 4, 4)
    prior = fit_gaussian(images, ridge=0.01)
    flat = images.flatten(1).double()
    torch.testing.assert_close(prior.mean()[0], images.double().mean(0))
    expected = torch.cov(flat.T) + 0.01 * torch.eye(48)
    torch.testing.assert_close(prior.covariance()[0], expected)
    assert prior.image_shape == (3, 4, 4)
    with pytest.raises(ValueError, match="a covariance needs at least 2 images, not 1"):
        fit_gaussian(images[:1])


def test_a_mixture_is_recovered_from_its_samples():
    truth = known()
    x = truth.sample(Draws(range(6000)))
    found = fit_mixture(x, 3)
    order = torch.cdist(truth.means[0], found.means[0]).argmin(1)
    assert order.unique().numel() == 3
    torch.testing.assert_close(
        found.log_weights[0, order].exp(), truth.log_weights[0].exp(), rtol=0, atol=0.02
    )
    torch.testing.assert_close(found.means[0, order], truth.means[0], rtol=0, atol=0.08)
    torch.testing.assert_close(found.covariances[0, order], truth.covariances[0], rtol=0, atol=0.15)
    unseen = truth.sample(Draws(range(10_000, 14_000)))
    loss = (truth.log_density(unseen) - found.log_density(unseen)).mean()
    assert 0 < loss < 0.02  # nats an image: about the number of parameters over 2n


@pytest.mark.parametrize("seed", range(4))
def test_the_objective_never_falls(seed):
    x, objectives = known().sample(Draws(range(300))), []
    fit_mixture(x, 5, seed, progress=objectives.append)
    assert len(objectives) > 3
    assert all(b > a - 1e-10 for a, b in itertools.pairwise(objectives))


def test_the_likelihood_rises_with_the_components():
    x = known().sample(Draws(range(2000)))
    likelihoods = [fit_mixture(x, k).log_density(x).mean() for k in (1, 2, 3)]
    assert likelihoods[0] + 0.3 < likelihoods[1] < likelihoods[2] - 0.3


def test_one_component_is_the_gaussian():
    x = known().sample(Draws(range(500)))
    one, plain = fit_mixture(x, 1), fit_gaussian(x)
    torch.testing.assert_close(one.mean(), plain.mean())
    torch.testing.assert_close(one.covariance(), plain.covariance(), rtol=0.01, atol=0)


def test_a_fit_follows_from_images_and_seed():
    x = known().sample(Draws(range(500)))
    first, again, other = (fit_mixture(x, 4, seed) for seed in (1, 1, 2))
    for name in ("log_weights", "means", "variances", "basis"):
        assert torch.equal(getattr(first, name), getattr(again, name))
    assert not torch.equal(first.means, other.means)


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(8, *SHAPE),  # all the same
        gaussian(3, *SHAPE).repeat(5, 1, 1, 1),  # many times the same three
        gaussian(5, *SHAPE),  # as many as components
        torch.cat((gaussian(40, *SHAPE), 1e3 * torch.ones(1, *SHAPE))),  # one far from all others
    ],
    ids=["constant", "repeated", "few", "outlier"],
)
def test_no_component_collapses(x):
    found = fit_mixture(x, 5)
    assert found.log_density(x.double()).isfinite().all()
    assert found(x.double(), 0.1).isfinite().all()
    assert (found.variances > 0).all()


@pytest.mark.parametrize("components", [0, 4])
def test_too_few_images_are_refused(components):
    with pytest.raises(ValueError, match=f"{components} components cannot be fitted to 3 images"):
        fit_mixture(gaussian(3, *SHAPE), components)


def test_a_mixture_is_the_better_prior_of_photos():
    """Mean error of denoising unseen crops, with the same noise for both."""
    train, heldout = photos(3000), photos(256, "heldout")
    noisy = heldout + 0.2 * gaussian(*heldout.shape, dtype=torch.float32)
    one, several = fit_gaussian(train), fit_mixture(train, 4, iterations=10)
    errors = [(prior(noisy, 0.2) - heldout).square().mean() for prior in (one, several)]
    assert errors[1] < 0.97 * errors[0] < 0.97 * 0.2**2 / 2
    densities = [prior.log_density(heldout, 0.02).mean() for prior in (one, several)]
    assert densities[1] > densities[0] + 10


def test_a_constant_pixel_and_no_ridge():
    """All covariances are singular in the same direction, in which there is no density."""
    images = known().sample(Draws(range(300)))
    images[:, 0, 0, 1] = 0.5
    objectives = []
    mixture = fit_mixture(images, 2, ridge=0.0, iterations=5, progress=objectives.append)
    assert all(math.isfinite(value) for value in objectives)
    assert objectives == sorted(objectives)
    assert mixture.sample(Draws(range(5)))[:, 0, 0, 1].sub(0.5).abs().max() < 1e-6


def test_blocks_of_images_change_nothing(monkeypatch):
    images = known().sample(Draws(range(60)))
    whole = fit_mixture(images, 3, iterations=4)
    monkeypatch.setattr(fitting, "_BLOCK", 7 * 3 * D)
    torch.testing.assert_close(fit_mixture(images, 3, iterations=4).means, whole.means)
