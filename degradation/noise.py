"""Measurement noise: white, or that of counted photons."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from degradation.base import LinearOperator, Shape
from degradation.family import Family
from degradation.mask import Mask
from degradation.problem import Problem
from degradation.randomness import Draws

_UNIT = 0.01  # how far the measurement of a white image may be from white
_NEGATIVE = 0.07  # of all weights, root mean square: dropped singular values leave up to 0.045,
# kernels with negative lobes (bicubic, sinc) have 0.1 and more
_BELOW = 0.02  # how far below black the measurement of an image of 0 and 1 may be: dropped singular
# values leave up to 0.005, negative lobes 0.08 and more


class Noise:
    """What turns Hx into a measurement."""

    def measure(
        self, degradation: LinearOperator, x: Tensor, draws: Draws, labels: Tensor | None = None
    ) -> Problem:
        """The problem y = Hx + n of clean images x `[B, C, h, w]` in [-1, 1] with these classes."""
        y, level = self.added(degradation, degradation.H(x), draws)
        return Problem(degradation, y, level, labels)

    def added(self, degradation: LinearOperator, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """y `[B, M]` with noise, and the standard deviation `[B]` of this noise."""
        raise NotImplementedError

    def check(self, degradation: LinearOperator) -> None:
        """Raise ValueError for operators that cannot be measured so."""


@dataclass(frozen=True)
class GaussianNoise(Noise):
    """White noise of standard deviation `level` on every existing row of y.

    Images are in [-1, 1], so a level of 0.1 is 5 % of the range of a pixel.
    """

    level: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.level < float("inf"):
            raise ValueError(f"the noise level must be a number ≥ 0, not {self.level}")

    def added(self, degradation: LinearOperator, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        if self.level:
            y = y + self.level * _white(y, draws) * degradation.rows
        return y, self.level_of(degradation, y)

    def level_of(self, degradation: LinearOperator, y: Tensor) -> Tensor:
        """Standard deviation of the noise on measurements y `[B, M]`: `[B]`."""
        return torch.full((len(y),), self.level, dtype=y.dtype, device=y.device)


@dataclass(frozen=True)
class DrawnNoise(Noise):
    """White noise with a level of its own for each image, to train one network for all of them.

    The standard deviation is uniform in [lowest, highest], or 0 for a share of the images. A run's
    settings (`TrainConfig`) hold them in range.
    """

    lowest: float
    highest: float
    clean_share: float = 0.0

    def __post_init__(self) -> None:
        _check_range(self.highest)

    def added(self, degradation: LinearOperator, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        uniform = draws.uniform((), "noise level").to(y)
        clean = draws.uniform((), "noise level/clean") < self.clean_share
        level = torch.where(clean, 0, self.lowest + (self.highest - self.lowest) * uniform)
        return y + level[:, None] * _white(y, draws) * degradation.rows, level


def _white(y: Tensor, draws: Draws) -> Tensor:
    return draws.normal(y.shape[1:], "measurement noise").to(y)


_MOST_PHOTONS = 1e9  # its noise is then far below float32


@dataclass(frozen=True)
class PoissonNoise(Noise):
    """Photon noise: y = 2n/λ − 1, n ~ Poisson(λ (v + 1)/2) for every existing row v of Hx.

    λ = `peak` is the expected number of photons where v is white (1); where it is black (−1) there
    are none. v has to be an intensity, a weighted mean of pixels: pixels that are visible, or blur
    with weights that are not negative and sum to 1. `check` raises ValueError for other operators.
    `measure` relies on it, and raises one only where a v lies clearly outside [-1, 1].

    Blur without its small singular values is such a mean only nearly. Around bright edges on black
    v falls below −1 by a few thousandths, and is taken for −1.
    """

    peak: float

    def __post_init__(self) -> None:
        if not 0 < self.peak <= _MOST_PHOTONS:
            accepted = f"a number of photons above 0, at most {_MOST_PHOTONS:g}"
            raise ValueError(f"the peak must be {accepted}, not {self.peak}")

    def added(self, degradation: LinearOperator, y: Tensor, draws: Draws) -> tuple[Tensor, Tensor]:
        """By the inverse distribution function of uniform numbers."""
        rows = degradation.rows
        if (torch.where(rows, y, 0).abs() > 1 + 2 * _BELOW).any():
            raise ValueError(_refusal(degradation) + "; the images must be in [-1, 1]")
        a, b = (draws.uniform(y.shape[1:], f"photons/{part}")[rows].double() for part in "ab")
        uniform = a + (b - 0.5) * 2.0**-23  # 23 bits each: tails to 1e-14
        mean = (self.peak / 2 * (y[rows].double() + 1)).clamp(min=0)
        counts = poisson_quantile(uniform, mean)
        y = y.masked_scatter(rows, (2 / self.peak * counts - 1).to(y))
        return y, self.level_of(degradation, y)

    def level_of(self, degradation: LinearOperator, y: Tensor) -> Tensor:
        """√(2 (v + 1)/λ), root mean square over the existing rows, with y in the place of v: `[B]`.

        At least that of one photon in all, because a measurement without photons is not exact.
        """
        rows = degradation.rows
        count = rows.sum(1)
        photons = (self.peak / 2 * torch.where(rows, y + 1, 0)).sum(1).clamp(min=1)
        return 2 / self.peak * torch.where(count > 0, photons / count.clamp(min=1), 0).sqrt()

    def check(self, degradation: LinearOperator) -> None:
        """Every row must see a white image as white; the weights of one row, as a sample, must not
        be negative."""
        rows = degradation.rows
        if isinstance(degradation, Mask) or not rows.any():
            return
        images = torch.ones(len(degradation), *degradation.image_shape)
        white = degradation.H(images.to(degradation.largest_gain))
        one = torch.nn.functional.one_hot(rows.byte().argmax(1), rows.shape[1]) * rows
        weights = degradation.H_adjoint(one.to(white)).flatten(1)
        mean = ((white - 1).abs() < _UNIT)[rows].all()
        negative = weights.clamp(max=0).norm(dim=1) > _NEGATIVE * weights.norm(dim=1)
        if not mean or negative.any():
            raise ValueError(_refusal(degradation))


def _refusal(degradation: LinearOperator) -> str:
    name = type(degradation).__name__
    return (
        f"Poisson noise needs measurements that are intensities, and {name} here gives others: "
        "use masks, or blur with weights that are not negative and sum to 1"
    )


def make_noise(
    noise_level: float = 0.0, poisson_peak: float | None = None
) -> GaussianNoise | PoissonNoise:
    """The noise that options ask for. ValueError for values out of range, or both kinds."""
    if poisson_peak is None:
        _check_range(noise_level)
        return GaussianNoise(noise_level)
    if noise_level:
        raise ValueError(
            f"noise level {noise_level} and Poisson peak {poisson_peak} are two kinds of noise: "
            "give one of them"
        )
    return PoissonNoise(poisson_peak)


def _check_range(level: float) -> None:
    if 2 < level < math.inf:
        raise ValueError(
            f"noise level {level:g} is above the range of images in [-1, 1]: if it is in units of "
            f"0 to 255, give {level / 127.5:.4g}"
        )


def check_noise(noise: Noise, family: Family, image_shape: Shape) -> None:
    """Raise ValueError if an operator of a family cannot be measured with this noise: the first
    few of each structure are tried."""
    if isinstance(noise, PoissonNoise):
        for structure in family.structures():
            noise.check(family.sample(image_shape, structure, range(4)))


def poisson_quantile(uniform: Tensor, mean: Tensor) -> Tensor:
    """The smallest n with P(Poisson(mean) ≤ n) ≥ uniform, for numbers in (0, 1): float64.

    P(Poisson(μ) ≤ n) is the regularised upper incomplete gamma function Q(n + 1, μ). By bisection,
    exact for any mean: no normal approximation.
    """
    mean, uniform = mean.double(), uniform.double()
    spread = 10 * mean.sqrt() + 24  # P(|n − μ| > spread) is below the last bit of `uniform`
    low = (mean - spread).floor().clamp(min=0) - 1  # too small
    high = (mean + spread).ceil()  # enough
    steps = math.ceil(math.log2(max(2.0, float((high - low).max())))) if len(mean) else 0
    for _ in range(steps):
        middle = ((low + high) / 2).floor()
        enough = torch.special.gammaincc(middle.clamp(min=0) + 1, mean) >= uniform
        enough &= middle >= 0
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    return high
