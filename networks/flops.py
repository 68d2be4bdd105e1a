"""Floating-point operations of a network, counted from its configuration.

A multiplication and an addition are two. What is left out (norms, activations, embeddings, masks)
is a fraction of a percent of arithmetic, though not of time.
"""

import math
from dataclasses import dataclass

from degradation import DenseMatrix, LinearOperator, StridedConvolution
from networks.invfusion import LevelConfig, NetworkConfig


@dataclass(frozen=True)
class Operations:
    """Of one forward pass on one image, by component."""

    linear: float  # projections, feed-forward layers, merges and splits of tokens
    attention: float  # q·kᵀ and the sum over values, of the keys that a query sees
    mixing: float  # T of the Feature Degradation Layers
    operator: float  # H and H† of the features

    @property
    def total(self) -> float:
        return self.linear + self.attention + self.mixing + self.operator


def count_operations(config: NetworkConfig, operator: LinearOperator | None = None) -> Operations:
    """operator: what the feature layers apply; its batch does not matter, None for none."""
    sums = {name: 0.0 for name in ("linear", "attention", "mixing", "operator")}
    sums["linear"] += _between_levels(config)
    for i, level in enumerate(config.levels):
        h, w = _tokens(config, i)
        blocks = level.depth * (1 if i == len(config.levels) - 1 else 2)  # down and up
        sums["linear"] += blocks * h * w * _linear(level)
        sums["attention"] += blocks * h * w * _attention(level, h, w)
        if level.joint and operator is not None:
            stack = level.width * h * w // math.prod(config.image_shape)
            rows = operator.rows.shape[1]
            sums["mixing"] += blocks * 2 * stack * (stack + 1) * rows
            sums["operator"] += blocks * stack * _round_trip(operator)
    return Operations(**sums)


def _tokens(config: NetworkConfig, level: int) -> tuple[int, int]:
    h, w = (side // (config.patch * 2**level) for side in config.image_shape[1:])
    return h, w


def _between_levels(config: NetworkConfig) -> float:
    (h, w), levels = _tokens(config, 0), config.levels
    pixels = config.image_shape[0] * config.patch**2
    total = 2 * h * w * levels[0].width * pixels * (config.in_mult + config.out_mult)
    for i in range(len(levels) - 1):
        h, w = _tokens(config, i + 1)
        total += 2 * (2 * h * w * 4 * levels[i].width * levels[i + 1].width)  # merge and split
    return float(total)


def _linear(level: LevelConfig) -> float:
    """A block's, for each token."""
    d, d_ff = level.width, level.d_ff or 3 * level.width
    return 2.0 * (4 * d * d + 3 * d * d_ff + (3 * d * d if level.joint else 0))


def _attention(level: LevelConfig, h: int, w: int) -> float:
    """A block's, for each token."""
    kernel = level.kernel or max(h, w)
    keys = min(kernel, h) * min(kernel, w) * (2 if level.joint else 1)
    return 4.0 * keys * level.width


def _round_trip(operator: LinearOperator) -> float:
    """H and H† of one image; of operators that are neither matrix nor blur nothing is counted."""
    n, rows = operator.numel, operator.rows.shape[1]
    if isinstance(operator, DenseMatrix):
        return 4.0 * rows * n + 4.0 * rows * rows
    if isinstance(operator, StridedConvolution):
        samples = rows // operator.image_shape[0]
        if operator.small:
            return 4.0 * samples * n
        # s² transforms of the coarse grid each way (5/2·n·log₂n a real one), products of spectra.
        return 2 * (2.5 * n * math.log2(samples) + 4.0 * n)
    return 0.0
