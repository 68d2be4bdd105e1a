"""Gaussian mixtures over images: denoiser, density and posterior in closed form.

Noise of level σ turns N(μ, Σ) into N(μ, Σ + σ²I), and a linear measurement turns a mixture into
another one. So everything that a sampler approximates is known here: the ground truth for
posterior samplers, and a denoiser for zero-shot samplers without any training.
"""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import torch
from torch import Tensor

from degradation import Draws, Problem

_STATE = ("log_weights", "means", "variances", "basis")


@dataclass(frozen=True)
class PriorConfig:
    """What a prior has in common with the configuration of a network."""

    image_shape: tuple[int, int, int]
    num_classes: int = 0

    def __post_init__(self) -> None:
        if min(self.image_shape) < 1:
            raise ValueError(f"image_shape {self.image_shape} must be three positive numbers")


class GaussianMixture:
    """B mixtures p(x0) = Σ_k w_k N(x0; μ_k, Σ_k) over images of D = C·h·w values, in float64.

    log_weights: `[B, K]`, normalised here; means: μ_k, `[B, K, D]`. Σ_k = Q_k diag(λ_k) Q_kᵀ with
    variances λ_k `[B, K, D]`, 0 in a degenerate direction, and basis Q_k `[B, K, D, D]`, or None
    where all Q_k = I; both may have 1 in the place of K: one covariance for all components.

    A prior has B = 1, a posterior one mixture for each problem. Methods take n·B images, n blocks
    of the batch as `Problem.expand(n)` orders them. Calling a mixture makes it a denoiser.
    """

    def __init__(
        self,
        log_weights: Tensor,
        means: Tensor,
        variances: Tensor,
        basis: Tensor | None,
        image_shape: Sequence[int],
    ):
        channels, h, w = image_shape
        self.image_shape, self.config = (channels, h, w), PriorConfig((channels, h, w))
        self.log_weights = log_weights.double().log_softmax(-1)
        self.means, self.variances = means.double(), variances.double()
        self.basis = None if basis is None else basis.double()
        (B, K), D, covariances = log_weights.shape, channels * h * w, variances.shape[1]
        found = [tuple(t.shape) for t in (means, variances, basis) if t is not None]
        wanted = [(B, K, D), (B, covariances, D), (B, covariances, D, D)]
        if covariances not in (1, K) or found != wanted[: len(found)]:
            raise ValueError(
                f"a mixture of weights [{B}, {K}] over images {self.image_shape} cannot have "
                f"means, variances and bases {', '.join(map(str, found))}"
            )
        if (self.variances < 0).any():
            raise ValueError("the variances of a mixture must not be negative")
        self.coordinates = self._rotated(self.means[:, :, None])[:, :, 0]  # Q_kᵀμ_k

    @classmethod
    def from_covariances(
        cls,
        weights: Tensor | Sequence[float],
        means: Tensor,
        covariances: Tensor,
        image_shape: Sequence[int],
    ) -> Self:
        """One mixture: weights `[K]`, means `[K, D]`, covariances `[K or 1, D, D]`.

        Raises ValueError for negative weights, and for covariances that are not symmetric and
        positive semi-definite.
        """
        covariances = covariances.double()
        values, vectors = torch.linalg.eigh(covariances)
        scale = values.abs().amax(-1, keepdim=True)
        rounding = values.shape[-1] * torch.finfo(values.dtype).eps * scale
        asymmetry = (covariances - covariances.mT).abs().amax((-1, -2))
        if (values < -1e-8 * scale).any() or (asymmetry > 1e-6 * scale[:, 0]).any():
            raise ValueError("a covariance must be symmetric and positive semi-definite")
        variances = torch.where(values > rounding, values, 0)
        weights = torch.as_tensor(weights, dtype=torch.float64, device=means.device)
        if not ((weights >= 0).all() and weights.sum() > 0):
            raise ValueError("the weights of a mixture must be at least 0, and not all of them 0")
        logs = weights.log()
        return cls(logs[None], means[None], variances[None], vectors[None], image_shape)

    @classmethod
    def gaussian(cls, mean: Tensor, covariance: Tensor, image_shape: Sequence[int]) -> Self:
        """A single component: mean `[D]`, covariance `[D, D]`."""
        return cls.from_covariances([1.0], mean[None], covariance[None], image_shape)

    def __len__(self) -> int:
        return len(self.log_weights)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        """The mixtures of a sub-batch."""
        return self._map(lambda t: t[index])

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        same = self.means.device == torch.device(device)
        return self if same else self._map(lambda t: t.to(device))

    def _map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        other = copy.copy(self)
        vars(other).pop("covariances", None)
        tensors = self.state_dict() | {"coordinates": self.coordinates}
        vars(other).update({name: fn(value) for name, value in tensors.items()})
        return other

    def state_dict(self) -> dict[str, Tensor]:
        """The arguments of the constructor that are there, by name."""
        return {name: vars(self)[name] for name in _STATE if vars(self)[name] is not None}

    def mean(self) -> Tensor:
        """E[x0], float64 `[B, C, h, w]`."""
        mean = (self.log_weights.exp()[..., None] * self.means).sum(1)
        return mean.unflatten(-1, self.image_shape)

    def covariance(self) -> Tensor:
        """Cov[x0], float64 `[B, D, D]`."""
        weights = self.log_weights.exp()[..., None]
        between = self.means - (weights * self.means).sum(1, keepdim=True)
        within = (weights[..., None] * self.covariances).sum(1)
        return within + between.mT @ (weights * between)

    @cached_property
    def covariances(self) -> Tensor:
        """Σ_k, float64 `[B, K or 1, D, D]`; computed once."""
        if self.basis is None:
            return torch.diag_embed(self.variances)
        return (self.basis * self.variances[..., None, :]) @ self.basis.mT

    def sample(self, draws: Draws) -> Tensor:
        """One image for each seed, in blocks of the batch: float64 `[n·B, C, h, w]`."""
        u = self._blocks(draws.uniform((1,), "component").double())[:, 0]  # [B, n, 1]
        edges = self.log_weights.exp().cumsum(-1)[:, None, :-1]
        component = (u > edges).sum(-1)[..., None]  # [B, n, 1]
        roots = self.variances.sqrt()[:, :, None]
        normal = draws.normal((self.means.shape[-1],), "sample")
        offsets = self._unrotated(self._blocks(normal.double()) * roots)  # [B, K, n, D]
        index = torch.zeros_like(component) if self._shared else component
        offset = offsets.take_along_dim(index[:, None], 1)[:, 0]
        return self._images(self.means.take_along_dim(component, 1) + offset)

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem | None = None) -> Tensor:
        """E[x0 | x] for x = x0 + σε; the problem is not used: `[n·B, C, h, w]`, sigma a number or
        `[n·B]`; float32 out, float64 for float64. Differentiable.

        Σ_k r_k(x)·(μ_k + Σ_k(Σ_k + σ²I)⁻¹(x − μ_k)) with r_k ∝ w_k N(x; μ_k, Σ_k + σ²I).
        """
        offset, inverse, logits = self._weigh(x, sigma)
        shares = logits.softmax(1)
        anchors, rest = self._anchored
        gain = self.variances[:, :, None] * inverse
        estimates = anchors[:, :, None] + gain * offset
        if self._shared:  # (1 − gain)·Σ_k r_k(m_k − m_0)
            estimates = estimates + (1 - gain) * (shares.mT @ rest)[:, None]
        else:
            estimates = shares[..., None] * estimates
        images = self._images(self._unrotated(estimates).sum(1))
        return images.to(torch.promote_types(x.dtype, torch.float32))

    def log_density(self, x: Tensor, sigma: Tensor | float = 0.0) -> Tensor:
        """log p(x) of x = x0 + σε, float64 `[n·B]`.

        At σ = 0 a singular mixture has a density on its support alone, on which x is taken to lie.
        Raises ValueError if its components have supports of different dimensions.
        """
        rank = (self.variances > 0).sum(-1)
        if torch.as_tensor(sigma).min() <= 0 and (rank != rank[:, :1]).any():
            raise ValueError(
                "components whose supports have different dimensions have no common density at "
                "sigma 0"
            )
        return self._weigh(x, sigma)[2].logsumexp(1).mT.flatten()

    def component_log_densities(self, x: Tensor) -> Tensor:
        """log w_k N(x0; μ_k, Σ_k) of images or vectors, float64 `[n·B, K]`."""
        return self._weigh(x, 0.0)[2].permute(2, 0, 1).flatten(0, 1)

    def _weigh(self, x: Tensor, sigma: Tensor | float) -> tuple[Tensor, Tensor, Tensor]:
        """Q_kᵀ(x − μ_k) `[B, K, n, D]`, 1/(λ_k + σ²), log w_k N(x; μ_k, Σ_k + σ²I) `[B, K, n]`.

        Of a shared covariance the first is that of component 0 alone, `[B, 1, n, D]`: ratios of
        the densities are then exponentials of linear functions, a product with a small matrix.
        Directions with λ_k + σ² = 0 are left out.
        """
        anchors, rest = self._anchored
        offset = self._rotated(self._blocks(x.double().flatten(1))) - anchors[:, :, None]
        level = torch.as_tensor(sigma, dtype=torch.float64, device=x.device).square()
        level = self._blocks(level[:, None]) if level.ndim else level
        total = self.variances[:, :, None] + level
        exists = total > 0
        total = torch.where(exists, total, 1)
        inverse = exists / total
        density = (offset.square() * inverse).sum(-1)
        density = density + (exists * (math.tau * total).log()).sum(-1)
        logits = self.log_weights[..., None] - density / 2
        if self._shared:
            linear = (offset * inverse)[:, 0] @ rest.mT - inverse[:, 0] @ rest.square().mT / 2
            logits = logits + linear.mT
        return offset, inverse, logits

    @property
    def _shared(self) -> bool:
        return self.variances.shape[1] == 1

    @property
    def _anchored(self) -> tuple[Tensor, Tensor]:
        """Q_kᵀμ_k `[B, K, D]`; of a shared covariance that of component 0, `[B, 1, D]`, and by how
        much all the others differ from it, `[B, K, D]`."""
        first = self.coordinates[:, :1]
        return (first, self.coordinates - first) if self._shared else (self.coordinates, first)

    def _blocks(self, x: Tensor) -> Tensor:
        """`[n·B, D]` to `[B, 1, n, D]`."""
        if len(x) % len(self):
            raise ValueError(f"{len(x)} images are no multiple of {len(self)} mixtures")
        return x.unflatten(0, (-1, len(self))).movedim(0, 1)[:, None]

    def _images(self, x: Tensor) -> Tensor:
        """`[B, n, D]` to `[n·B, C, h, w]`."""
        return x.movedim(0, 1).flatten(0, 1).unflatten(-1, self.image_shape)

    def _rotated(self, x: Tensor) -> Tensor:
        """Q_kᵀx of `[B, 1 or K, n, D]`."""
        return x if self.basis is None else x @ self.basis

    def _unrotated(self, x: Tensor) -> Tensor:
        """Q_k x of `[B, K or 1, n, D]`."""
        return x if self.basis is None else x @ self.basis.mT
