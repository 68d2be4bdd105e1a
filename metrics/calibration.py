"""Whether samples of a posterior scatter as much as the truth does: pure functions of tensors.

Every statistic is exact: truth and K samples that are drawn from the posterior can be exchanged, so
the rank of the truth among them is uniform on 0 ... K, for any K and any rounding of the pixels.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_LEVELS = (50, 90, 95)  # per cent, of central intervals
_SCALED = 0.9  # share of the pixels inside scaled intervals, and of the images for which it holds
FEWEST = 9  # images that the scale takes
_ROUNDING = 1 / 12  # variance of the rounding to a level of uint8


def names(count: int) -> list[str]:
    """The statistics of an image with `count` samples."""
    central = [f"coverage_{level}" for level in _levels(count)]
    plain = ["mean_psnr", "squared_error", "variance", "rank_mean", "rank_spread"]
    return [*plain, *central, "tarp_spread", "scale_90"]


def statistics(samples: Tensor, truth: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """What K samples say of each of B images, float64 `[B]` by name, and two histograms.

    samples: `[K, B, C, h, w]`, K at least 2; truth and reference (any images that are drawn without
    a look at the truth): `[B, C, h, w]`; all in levels of uint8, 0 to 255. Of posterior samples the
    expectations are those in brackets.

    - mean_psnr: of the mean of the samples, dB; squared_error: its mean over the pixels;
      variance: of the samples, unbiased, mean over the pixels [squared_error / (1 + 1/K)].
    - rank_mean: rank of the true pixel among the samples, of 0 to 1 [1/2]; rank_spread: its mean
      square from 1/2, over that of uniform ranks [1; more if the samples are too narrow].
    - coverage_50, _90, _95: share of the pixels inside central intervals [0.5, 0.9, 0.95].
    - tarp_spread: as rank_spread, of the distance from the reference among those of the samples
      (Lemos et al., "Sampling-based accuracy testing of posterior estimators", 2023) [1].
    - scale_90: the s for which 90 % of the pixels lie within the mean ± s standard deviations.

    Ranks, coverages and scales are over the pixels in which samples and truth are not all equal.
    rank_histogram and tarp_histogram are shares of the ranks 0 to K, `[B, K + 1]` [1 / (K + 1)].
    """
    count = len(samples)
    flat, true = samples.flatten(2).double(), truth.flatten(1).double()
    mean, variance = flat.mean(0), flat.var(0)
    squares = (true - mean).square()
    known = (samples == truth).all(0).flatten(1)
    known &= ~known.all(1, keepdim=True)  # of an image that is known all over, every pixel counts
    ranks = rank_histogram(flat, true, ~known)
    distances = torch.stack([_distance(x, reference) for x in (*samples, truth)])[..., None]
    tarp = rank_histogram(distances[:-1], distances[-1], torch.ones_like(distances[-1]).bool())
    error = squares.mean(1)
    return {
        "mean_psnr": 10 * torch.log10(255**2 / error),
        "squared_error": error,
        "variance": variance.mean(1),
        "rank_mean": ranks @ _uniform(count).to(ranks),
        "rank_spread": rank_spread(ranks),
        **{f"coverage_{level}": coverage(ranks, level) for level in _levels(count)},
        "tarp_spread": rank_spread(tarp),
        "scale_90": _scale(squares.sqrt() / (variance + _ROUNDING).sqrt(), ~known),
        "rank_histogram": ranks,
        "tarp_histogram": tarp,
    }


def rank_histogram(samples: Tensor, truth: Tensor, chosen: Tensor) -> Tensor:
    """Shares of the ranks of the truth `[B, D]` among samples `[K, B, D]`, float64 `[B, K + 1]`.

    The rank is the number of samples below the truth; the ranks between equal values share it
    evenly. chosen: bool `[B, D]`, the values that count, at least one of each image.
    """
    below, equal = (samples < truth).sum(0), (samples == truth).sum(0)
    weight = chosen / chosen.sum(1, keepdim=True) / (equal + 1.0)
    steps = truth.new_zeros(len(truth), len(samples) + 2, dtype=torch.float64)
    steps.scatter_add_(1, below, weight.double())
    steps.scatter_add_(1, below + equal + 1, -weight.double())
    return steps.cumsum(1)[:, :-1]


def rank_spread(histogram: Tensor) -> Tensor:
    """Mean square of ranks from their middle, over that of uniform ranks, of `[..., K + 1]`."""
    square = (_uniform(histogram.shape[-1] - 1).to(histogram) - 0.5).square()
    return histogram @ square / square.mean()


def coverage(histogram: Tensor, level: float) -> Tensor:
    """Share of the truth inside central intervals of `level` per cent, from ranks `[..., K + 1]`.

    Between the j-th smallest and the j-th largest of K samples lies a share 1 − 2j / (K + 1) of a
    continuous distribution. A level between two such shares is interpolated.
    """
    count = histogram.shape[-1] - 1
    outside = _outside(level, count)
    j = math.floor(outside)
    wide, narrow = (histogram[..., i : count + 1 - i].sum(-1) for i in (j, j + 1))
    return wide + (outside - j) * (narrow - wide)


def coverages(histogram: Tensor) -> list[tuple[float, float]]:
    """Shares between two of K samples and their coverage, from ranks `[K + 1]` over all images."""
    levels = [1 - 2 * j / len(histogram) for j in range(1, len(histogram) // 2)]
    return [(level, coverage(histogram, 100 * level).item()) for level in levels]


def tarp_curve(histogram: Tensor) -> tuple[Tensor, Tensor]:
    """Credibility levels and their expected coverage, `[K + 2]` each, from ranks `[K + 1]` over all
    images. Of posterior samples they are equal."""
    shares = (histogram / histogram.sum()).cumsum(0)
    levels = torch.arange(len(histogram) + 1).to(histogram) / len(histogram)
    return levels, torch.cat([shares.new_zeros(1), shares])


def conformal_scale(scales: Sequence[float]) -> float:
    """The scale with which intervals hold for a new image too, of those of n images (`scale_90`).

    The ⌈0.9 (n + 1)⌉-th smallest: with a probability of at least 90 %, at least 90 % of the pixels
    of a new image lie within the mean ± this many standard deviations (split conformal prediction,
    Vovk et al. 2005). Infinite for fewer than `FEWEST` images.
    """
    place = math.ceil(_SCALED * (len(scales) + 1) - 1e-9)
    known = sorted(math.inf if math.isnan(scale) else scale for scale in scales)
    return known[place - 1] if place <= len(scales) else math.inf


def _outside(level: float, count: int) -> float:
    """Samples on each side of a central interval, a whole number or not."""
    return round((1 - level / 100) / 2 * (count + 1), 9)


def _levels(count: int) -> list[int]:
    """Those of intervals that lie between two samples: 90 % needs 19 of them, 95 % needs 39."""
    return [level for level in _LEVELS if _outside(level, count) >= 1]


def _uniform(count: int) -> Tensor:
    return torch.linspace(0, 1, count + 1, dtype=torch.float64)


def _distance(images: Tensor, reference: Tensor) -> Tensor:
    return (images.double() - reference.double()).square().flatten(1).sum(1)


def _scale(ratios: Tensor, chosen: Tensor) -> Tensor:
    """The smallest s `[B]` that 90 % of the chosen ratios of each image do not exceed."""
    rows = [row[mask] for row, mask in zip(ratios, chosen, strict=True)]
    return torch.stack([row.kthvalue(math.ceil(_SCALED * len(row) - 1e-9)).values for row in rows])
