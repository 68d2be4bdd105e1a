"""What a sampler is given: an operator, the measurement, the level of its noise, the class."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Self

import torch
from torch import Tensor

from degradation.base import Device, LinearOperator, Shape
from degradation.mask import NullOperator


@dataclass(frozen=True, eq=False)
class Problem:
    """A batch of B inverse problems y = Hx + n.

    y: measurements `[B, M]`; noise_level: standard deviation of (the Gaussian equivalent of) n,
    `[B]` or a number; class_labels: int64 `[B]`, -1 the null class, or None; prepared: what a
    denoiser computed of H, y and the noise level for a sampling run, by its own `prepare`.
    """

    degradation: LinearOperator
    y: Tensor
    noise_level: float | Tensor = 0.0
    class_labels: Tensor | None = None
    prepared: Any = None

    def __post_init__(self) -> None:
        """Raise ValueError unless there is one noise level, or one for each problem."""
        count = self.noise_level.numel() if isinstance(self.noise_level, Tensor) else 1
        if count not in (1, len(self)):
            raise ValueError(f"{count} noise levels cannot be those of {len(self)} problems")

    @property
    def levels(self) -> Tensor:
        """The noise level of each problem `[B]`, float64 beside a y of float64, else float32."""
        precision = torch.float64 if self.y.dtype == torch.float64 else torch.float32
        if not isinstance(self.noise_level, Tensor):
            return torch.full((len(self),), self.noise_level, dtype=precision, device=self.y.device)
        return self.noise_level.to(self.y.device, precision).expand(len(self))

    @classmethod
    def without_measurement(
        cls,
        batch: int,
        image_shape: Shape,
        class_labels: Tensor | None = None,
        device: Device = "cpu",
    ) -> Self:
        """The unconditional problem of plain generation."""
        nothing = NullOperator(batch, image_shape, device)
        return cls(nothing, torch.zeros(batch, 1, device=device), class_labels=class_labels)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        """The problems of a sub-batch."""
        return self._map(self.degradation[index], lambda t: t[index])

    def expand(self, n: int) -> Self:
        """The batch n times over in n blocks: several samples of each problem."""
        return self._map(self.degradation.expand(n), lambda t: t.repeat(n, *[1] * (t.ndim - 1)))

    def to(self, device: Device) -> Self:
        """Move to a device."""
        return self._map(self.degradation.to(device), lambda t: t.to(device))

    def _map(self, degradation: LinearOperator, fn: Callable[[Tensor], Tensor]) -> Self:
        labels = None if self.class_labels is None else fn(self.class_labels)
        return type(self)(degradation, fn(self.y), fn(self.levels), labels)

    def unconditional(self) -> Self:
        """Only the class labels remain: what zero-shot samplers call the denoiser with."""
        shape = self.degradation.image_shape
        return self.without_measurement(len(self), shape, self.class_labels, self.y.device)

    def with_classes(self, class_labels: Tensor | None) -> Self:
        """The same measurements with other class labels."""
        return replace(self, class_labels=class_labels)

    def pinv(self) -> Tensor:
        """H†y, regularised by the noise level, `[B, C, h, w]`."""
        return self.degradation.H_pinv(self.y, self.levels)

    def residual(self, x: Tensor) -> Tensor:
        """y − Hx `[B, M]`."""
        return self.y - self.degradation.H(x)

    def project(self, x: Tensor) -> Tensor:
        """x + H†(y − Hx) with H† regularised by the noise level, `[B, C, h, w]`."""
        return x + self.degradation.H_pinv(self.residual(x), self.levels)

    def fuse(self, x: Tensor, sigma: float | Tensor) -> Tensor:
        """x = x0 + σε and y in one image: the mean of x0 of which only these are known.

        x + H†(y − Hx), H† regularised by the noise level over sigma (a number or `[B]`, positive):
        μ⋆ of EPS (arXiv 2606.17048). E[x0 | x, y] is a function of it, H, y and the levels.
        """
        return x + self.degradation.H_pinv(self.residual(x), self.levels / sigma)
