"""Means of per-image values, with 95 % intervals by a bootstrap over the images.

The percentile bootstrap (Efron, "Bootstrap methods", 1979): 2000 times as many images as there are
are drawn with replacement, from a fixed seed, and the interval holds the central 95 % of the means.
"""

import math
import warnings
from collections.abc import Hashable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
_CENTRAL = (0.025, 0.975)
_AT_ONCE = 2**21  # images that are drawn at once: the memory is bounded

Key = TypeVar("Key", bound=Hashable)
Array = NDArray[np.float64]


class Difference(NamedTuple):
    """A mean difference, and the ends of its 95 % interval."""

    mean: float
    low: float
    high: float


def mean(values: Sequence[float] | Array) -> float:
    """The mean of the values that are not infinite; where all are, infinity, and NaN of none.

    Infinite values are left out, because a single exact restoration would make a mean PSNR
    infinite. A value that is not a number is a failure: it shows in the mean.
    """
    found = np.asarray(values, float)
    finite = found[~np.isinf(found)]
    return finite.mean().item() if len(finite) else math.inf if len(found) else math.nan


def summaries(values: Mapping[Key, Sequence[float]]) -> dict[Key, dict[str, float | int]]:
    """What values of the same images, at least one, amount to, by their keys.

    `mean` as above; `standard_error` (sample standard deviation / √count); `low` and `high`, the
    ends of the 95 % interval; `count` of the values in the mean; `infinite`, how many are left out.
    What one value or none leaves undefined is NaN.
    """
    if not values:
        return {}
    found, columns = {}, np.array([*values.values()], float)
    ends = interval(resampled_means(columns.T)).T.tolist()
    for key, column, (low, high) in zip(values, columns, ends, strict=True):
        finite = column[~np.isinf(column)]
        if len(finite) > 1:
            error = (finite.std(ddof=1) / len(finite) ** 0.5).item()
        else:
            error = low = high = math.nan
        found[key] = {
            "mean": mean(column), "standard_error": error, "low": low, "high": high,
            "count": len(finite), "infinite": len(column) - len(finite),
        }  # fmt: skip
    return found


def paired_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """The mean of first − second over the same images in the same order, and its 95 % interval.

    A pair with an infinite value is left out. Raises ValueError for unequal numbers.
    """
    a, b = np.asarray(first, float), np.asarray(second, float)
    if a.shape != b.shape:
        raise ValueError(f"pairs need equally many values, not {len(a)} and {len(b)}")
    finite = ~(np.isinf(a) | np.isinf(b))
    pairs = a[finite] - b[finite]
    if not len(pairs):
        return Difference(math.nan, math.nan, math.nan)
    low, high = interval(resampled_means(pairs[:, None]))[:, 0].tolist()
    return Difference(pairs.mean().item(), low, high)


def resampled_means(values: Array) -> Array:
    """Means `[2000, k]` of values `[n, k]` over images drawn with replacement.

    All columns, and all calls with n images, have the same draws. Infinite values are left out.
    """
    n, k = values.shape
    counted = ~np.isinf(values)
    columns = np.hstack([np.where(counted, values, 0.0), counted])
    draws, sums = np.random.default_rng(0), np.empty((RESAMPLES, 2 * k))
    step = max(1, _AT_ONCE // n)
    for start in range(0, RESAMPLES, step):
        rows = min(step, RESAMPLES - start)
        drawn = draws.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)
        sums[start : start + rows] = times.astype(float) @ columns
    with np.errstate(invalid="ignore"):  # 0 / 0 where all values are infinite
        return sums[:, :k] / sums[:, k:]


def interval(resampled: Array) -> Array:
    """The ends `[2, k]` of the 95 % intervals of resampled statistics `[2000, k]`."""
    with warnings.catch_warnings(action="ignore"):  # a column of infinite values alone
        return np.nanquantile(resampled, _CENTRAL, axis=0)
