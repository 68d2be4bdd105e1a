"""The scale of the loss that fp16 needs, and the means that a report shows.

Everything is a tensor on the device: whether a step was finite is never waited for.
"""

import math

import torch
from torch import Tensor


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16; for other precisions a scale that stays 1.

    Either way a step whose gradients are not finite is left out.
    """
    scaler = torch.amp.GradScaler(device.type, init_scale=65536.0 if precision == "fp16" else 1.0)
    if precision != "fp16":
        scaler.set_growth_factor(1.0)
        scaler.set_backoff_factor(1.0)
    return scaler


class Meter:
    """Means of loss and gradient norm since the last report, finite values only; on the device."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take in a step's mean loss `[]` on this process and its gradient norm `[]`."""
        values = torch.stack((loss.double(), norm.double()))
        finite = values.isfinite()
        self.sums += torch.cat((torch.where(finite, values, 0), finite.double()))

    def means(self) -> tuple[float, float]:
        """Mean loss and gradient norm, NaN if no step was finite. Sets the sums to zero."""
        loss, norm, losses, norms = self.sums.tolist()
        self.sums.zero_()
        return loss / losses if losses else math.nan, norm / norms if norms else math.nan
