"""Gaussian priors fitted to images: sample moments, and mixtures by expectation-maximisation."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from networks.analytic import GaussianMixture

_BLOCK = 2**24  # numbers at once: of images, times components, times values


def fit_gaussian(images: Tensor, ridge: float = 1e-6) -> GaussianMixture:
    """The sample mean and covariance of images `[n, C, h, w]` in [-1, 1].

    ridge is added to the variances, so that fewer images than values do no harm. Raises ValueError
    for fewer than 2 images.
    """
    if len(images) < 2:
        raise ValueError(f"a covariance needs at least 2 images, not {len(images)}")
    x = images.flatten(1).double()
    covariance = torch.cov(x.mT)
    covariance.diagonal().add_(ridge)
    return GaussianMixture.gaussian(x.mean(0), covariance, images.shape[1:])


def fit_mixture(
    images: Tensor,
    components: int,
    seed: int = 0,
    iterations: int = 100,
    tol: float = 1e-4,
    ridge: float = 1e-6,
    progress: Callable[[float], object] = lambda objective: None,
) -> GaussianMixture:
    """A mixture with full covariances, by expectation-maximisation from k-means++ centres.

    It maximises the likelihood of images `[n, C, h, w]` times a prior that counts as one more image
    for each weight, and for each Σ_k as one with the covariance of them all, so that no component
    collapses onto few. `progress` sees this objective for each image, in nats, after each step: it
    never falls. Ends after `iterations`, or when a step gains less than `tol` nats. A function of
    the images and the seed. Raises ValueError for fewer images than components.
    """
    x = images.flatten(1).double()
    n, D = x.shape
    if not 1 <= components <= n:
        raise ValueError(f"{components} components cannot be fitted to {n} images")
    whole = fit_gaussian(images, ridge).covariances[0, 0]
    generator = torch.Generator().manual_seed(seed)
    nearest = torch.cdist(x, _centres(x, components, generator)).argmin(1)
    shares = torch.nn.functional.one_hot(nearest, components).to(x)  # [n, K]
    means = x[:1].expand(components, D)
    block = max(1, _BLOCK // (components * D))
    previous = -math.inf
    for _ in range(iterations):
        weights, means, covariances = _maximise(x, shares, means, whole)
        mixture = GaussianMixture.from_covariances(weights, means, covariances, images.shape[1:])
        logs = torch.cat([mixture.component_log_densities(part) for part in x.split(block)])
        shares, likelihood = logs.softmax(1), logs.logsumexp(1).sum().item()
        objective = (likelihood + _log_prior(mixture, whole)) / n
        progress(objective)
        if objective < previous + tol:
            break
        previous = objective
    return mixture


def _maximise(
    x: Tensor, shares: Tensor, means: Tensor, whole: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Weights `[K]`, means `[K, D]` and covariances `[K, D, D]` for given shares `[n, K]`."""
    n, counts = len(x), shares.sum(0)
    weights = (counts + 1) / (n + len(counts))
    empty = counts < 1e-9  # keeps its mean
    found = shares.mT @ x / torch.where(empty, 1, counts)[:, None]
    means = torch.where(empty[:, None], means, found)
    covariances = []
    for share, count, mean in zip(shares.mT, counts, means, strict=True):
        centred = (x - mean) * share.sqrt()[:, None]
        covariances.append((centred.mT @ centred + whole) / (count + 1))
    return weights, means, torch.stack(covariances)


def _log_prior(mixture: GaussianMixture, whole: Tensor) -> float:
    """Σ_k of log w_k − ½(log det Σ_k + tr Σ_k⁻¹Σ): what `_maximise` adds to the likelihood."""
    assert mixture.basis is not None
    variances, basis = mixture.variances[0], mixture.basis[0]
    along = ((basis.mT @ whole) * basis.mT).sum(-1)  # of Σ in the directions of each Q_k
    exists = variances > 0  # no component leaves the support of Σ
    variances = torch.where(exists, variances, 1)
    energies = torch.where(exists, variances.log() + along / variances, 0).sum()
    return (mixture.log_weights.sum() - energies / 2).item()


def _centres(x: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Images drawn one after the other, with probability as their squared distance to those before
    (Arthur and Vassilvitskii, "k-means++", 2007)."""
    distances = torch.ones(len(x), dtype=x.dtype, device=x.device)
    centres = []
    for _ in range(count):
        u = torch.rand((), generator=generator, dtype=x.dtype).to(x.device)
        edges = distances.cumsum(0)
        index = int(torch.searchsorted(edges, u * edges[-1]).clamp(max=len(x) - 1))
        centres.append(x[index])
        own = (x - x[index]).square().sum(1)
        distances = own if len(centres) == 1 else torch.minimum(distances, own)
    return torch.stack(centres)
