"""The scale of the loss that fp16 needs, and the means that a report shows.

Everything is a tensor on the device: whether a step was finite is never waited for.
"""

import math

import torch
from torch import Tensor

_FIRST = 65536.0
_INTERVAL = 2000  # finite steps after which the scale is doubled


class LossScale:
    """Dynamic loss scaling (Micikevicius et al., "Mixed precision training", 2018), as tensors.

    Halved by every step whose gradients are not finite, doubled after 2000 that are. It stays 1
    where it is not needed.
    """

    def __init__(self, precision: str, device: torch.device):
        self.enabled = precision == "fp16"
        self.scale = torch.full((), _FIRST if self.enabled else 1.0, device=device)
        self.good = torch.zeros((), dtype=torch.int64, device=device)

    def update(self, finite: Tensor) -> None:
        """Take in whether the gradients of a step were finite, bool `[]`."""
        if not self.enabled:
            return
        good = torch.where(finite, self.good + 1, 0)
        grown = good == _INTERVAL
        factor = torch.where(finite, torch.where(grown, 2.0, 1.0), 0.5)
        self.scale.mul_(factor)
        self.good.copy_(torch.where(grown, 0, good))

    def state(self) -> dict[str, float]:
        """What a checkpoint keeps."""
        return {"scale": self.scale.item(), "good": self.good.item()}

    def load(self, state: dict[str, float]) -> None:
        """Go on from a `state`; it says nothing where no scale is needed now."""
        if not self.enabled:
            return
        self.scale.fill_(state["scale"])
        self.good.fill_(int(state["good"]))


class Meter:
    """Means of loss and gradient norm since the last report, finite values only; on the device."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        self.steps = 0

    def add(self, loss: Tensor, norm: Tensor) -> None:
        """Take in a step's mean loss `[]` on this process and its gradient norm `[]`."""
        values = torch.stack((loss.double(), norm.double()))
        finite = values.isfinite()
        self.sums += torch.cat((torch.where(finite, values, 0), finite.double()))
        self.steps += 1

    def means(self) -> tuple[float, float]:
        """Mean loss and gradient norm, NaN where no step was finite; starts anew."""
        loss, norm, losses, norms = self.sums.tolist()
        self.sums.zero_()
        self.steps = 0
        return loss / losses if losses else math.nan, norm / norms if norms else math.nan
