"""Learning rate and averages of the weights as functions of the images seen.

Power-function averages, and how others are made of them afterwards: Karras et al., "Analyzing and
improving the training dynamics of diffusion models" (EDM2, 2024), section 3 and appendix C. The
average at time t gives the weights of time τ the share (γ + 1)·τ^γ / t^(γ+1): its width relative to
t, the standard deviation σ_rel, stays the same throughout a run.
"""

from collections.abc import Sequence

import numpy as np

from training.config import NARROWEST, WIDEST, TrainConfig


def learning_rate(config: TrainConfig, images: int, fraction: float) -> float:
    """Linear ramp, inverse square root decay (EDM2, Eq. 67), and a last linear fall to zero.

    images: seen when the step is done; fraction: share of the run that is over, in [0, 1].
    """
    rate = config.lr * min(images / config.ramp, 1) if config.ramp else config.lr
    if config.decay:
        rate /= max(images / (config.decay * config.batch), 1) ** 0.5
    if config.cooldown:
        rate *= min((1 - fraction) / config.cooldown, 1)
    return max(rate, 0.0)


def ema_decay(config: TrainConfig, images: int) -> float:
    """Factor β = 0.5^(batch / h) of the old average, h = min(halflife, ramp · images seen)."""
    h: float = config.ema_halflife
    if config.ema_ramp:
        h = min(h, config.ema_ramp * images)
    return 0.5 ** (config.batch / max(h, 1e-8))


def power_exponent(sigma_rel: float) -> float:
    """γ of the average of relative width σ_rel = √((γ + 1) / ((γ + 2)²(γ + 3))).

    Raises ValueError unless 1e-4 ≤ σ_rel ≤ 0.2886, the width of the mean over all of training.
    """
    if not NARROWEST <= sigma_rel <= WIDEST:
        raise ValueError(
            f"sigma_rel={sigma_rel} must be at least {NARROWEST} and at most {WIDEST:.4f}"
        )
    inverse = sigma_rel**-2
    return max(0.0, float(np.roots([1, 7, 16 - inverse, 12 - inverse]).real.max()))


def power_decay(images: int, *, batch: int, exponent: float) -> float:
    """Factor β = (1 − batch/n)^(γ + 1) of the old average, n the images seen after the step."""
    return (1 - batch / images) ** (exponent + 1)


def coefficients(
    times: Sequence[float], exponents: Sequence[float], time: float, exponent: float
) -> np.ndarray:
    """How much of each snapshot is in the average (time, exponent) nearest to it, float64; sum 1.

    Least squares between weight profiles (EDM2, appendix C.3), snapshot i being the average with
    `exponents[i]` at `times[i]`; times are in any unit, above 0.
    """
    t, g = np.asarray(times, float) / time, np.asarray(exponents, float)
    overlaps = _overlap(t[:, None], g[:, None], t[None], g[None])
    towards = _overlap(t, g, np.ones_like(t), np.full_like(g, exponent))
    # Snapshots are nearly dependent when there are many of them: of all solutions the smallest.
    found = np.linalg.lstsq(overlaps, towards, rcond=None)[0]
    return found / found.sum()


def _overlap(ta: np.ndarray, ga: np.ndarray, tb: np.ndarray, gb: np.ndarray) -> np.ndarray:
    """∫ of the product of two profiles."""
    # τ^γ reaches up to the earlier of both times, and is divided by the later one's power.
    power = np.where(ta < tb, (np.minimum(ta, tb) / tb) ** gb, (np.minimum(ta, tb) / ta) ** ga)
    return (ga + 1) * (gb + 1) / (ga + gb + 1) * power / np.maximum(ta, tb)
