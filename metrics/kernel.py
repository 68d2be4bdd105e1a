"""The kernel distance of two sets of features: the squared maximum mean discrepancy (MMD).

With the features of Inception it is KID (Bińkowski et al., "Demystifying MMD GANs", 2018).
"""

import torch
from torch import Tensor

_ROWS = 1000  # of the kernel matrix at once


def kernel_distance(x: Tensor, y: Tensor, *, within_y: float | None = None) -> float:
    """The unbiased estimate of the squared MMD of features `[n, d]` and `[m, d]`, in float64;
    n and m are at least 2.

    The kernel is (a·b / d + 1)³. All pairs of different images count (the U-statistic), where the
    paper and torch-fidelity average over random subsets of 1000: the expectation is the same, the
    variance is smaller, and nothing is random. It can be below 0. within_y: `within(y)`, where it
    is known already.
    """
    second = within(y) if within_y is None else within_y
    return within(x) + second - 2 * _total(x, y) / (len(x) * len(y))


def within(x: Tensor) -> float:
    """The mean kernel of two different images of a set `[n, d]`."""
    own = (x.double().square().mean(1) + 1).pow(3).sum().item()
    return (_total(x, x) - own) / (len(x) * (len(x) - 1))


def _total(x: Tensor, y: Tensor) -> float:
    x, y = x.cpu().double(), y.cpu().double()
    parts = [(rows @ y.mT / x.shape[1] + 1).pow(3).sum() for rows in x.split(_ROWS)]
    return torch.stack(parts).sum().item()
