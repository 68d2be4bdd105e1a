"""Learning rate and weight average as functions of the images seen."""

from collections.abc import Iterable

import torch
from torch import Tensor


def learning_rate(
    images: int,
    progress: float,
    *,
    lr: float,
    batch: int,
    ramp: int,
    decay: float | None,
    cooldown: float,
) -> float:
    """Linear ramp, inverse square root decay (EDM2, Eq. 67), and a last linear fall to zero.

    images: seen when the step is done; progress: share of the run that is over, in [0, 1];
    decay: in steps.
    """
    rate = lr * min(images / ramp, 1) if ramp else lr
    if decay:
        rate /= max(images / (decay * batch), 1) ** 0.5
    if cooldown:
        rate *= min((1 - progress) / cooldown, 1)
    return max(rate, 0.0)


def ema_decay(images: int, *, batch: int, halflife: float, ramp: float) -> float:
    """Factor β = 0.5^(batch / h) of the old average, h = min(halflife, ramp · images seen)."""
    h = min(halflife, ramp * images) if ramp else halflife
    return 0.5 ** (batch / max(h, 1e-8))


@torch.no_grad()
def update_average(average: Iterable[Tensor], weights: Iterable[Tensor], decay: float) -> None:
    """average ← decay·average + (1 − decay)·weights, in place."""
    torch._foreach_lerp_(list(average), list(weights), 1 - decay)
