"""Measurement noise."""

from dataclasses import dataclass

from torch import Tensor

from degradation.base import Degradation
from degradation.problem import Problem
from degradation.randomness import Draws


@dataclass(frozen=True)
class GaussianNoise:
    """White noise of standard deviation `level` on every existing row of y.

    Images are in [-1, 1], so a level of 0.1 is 5 % of the range of a pixel.
    """

    level: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.level < float("inf"):
            raise ValueError(f"the noise level must be a number ≥ 0, not {self.level}")

    def measure(
        self,
        degradation: Degradation,
        x: Tensor,
        draws: Draws,
        class_labels: Tensor | None = None,
    ) -> Problem:
        """y = Hx + n for clean images x `[B, C, h, w]`, the noise drawn from the image's seed."""
        y = degradation.H(x)
        if self.level:
            noise = draws.normal(y.shape[1:], "measurement noise").to(y)
            y = y + self.level * noise * degradation.rows
        return Problem(degradation, y, self.level, class_labels)
