"""What a solver is given: an operator, the measurement, the level of its noise, the class."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, Self

import torch
from torch import Tensor

from degradation.base import Degradation
from degradation.features import FeatureMap, ImageFeatures
from degradation.mask import NullOperator


@dataclass(frozen=True)
class Problem:
    """A batch of B inverse problems y = Hx + n.

    y: measurements `[B, M]`; noise_level: standard deviation of (the Gaussian equivalent of) n,
    `[B]` or a number; class_labels: int64 `[B]`, -1 the null class, or None.
    """

    degradation: Degradation
    y: Tensor
    noise_level: Tensor
    class_labels: Tensor | None = None
    _known: dict[str | int, Any] = field(init=False, repr=False, compare=False)

    def __init__(
        self,
        degradation: Degradation,
        y: Tensor,
        noise_level: float | Tensor = 0.0,
        class_labels: Tensor | None = None,
    ):
        precision = torch.float64 if y.dtype == torch.float64 else torch.float32
        level = torch.as_tensor(noise_level, dtype=precision, device=y.device)
        object.__setattr__(self, "degradation", degradation)
        object.__setattr__(self, "y", y)
        object.__setattr__(self, "noise_level", level.expand(len(y)).contiguous())
        object.__setattr__(self, "class_labels", class_labels)
        object.__setattr__(self, "_known", {})  # what was computed of H and y already

    @classmethod
    def without_measurement(
        cls,
        batch: int,
        image_shape: tuple[int, int, int],
        class_labels: Tensor | None = None,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The unconditional problem of plain generation."""
        return cls(
            NullOperator(batch, image_shape, device),
            torch.zeros(batch, 1, device=device),
            class_labels=class_labels,
        )

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: slice | Tensor | list[int]) -> Self:
        """The problems of a sub-batch."""
        return type(self)(
            self.degradation[index],
            self.y[index],
            self.noise_level[index],
            None if self.class_labels is None else self.class_labels[index],
        )

    def expand(self, n: int) -> Self:
        """The batch n times over in n blocks: several samples of each problem."""
        labels = self.class_labels
        return type(self)(
            self.degradation.expand(n),
            self.y.repeat(n, 1),
            self.noise_level.repeat(n),
            None if labels is None else labels.repeat(n),
        )

    def to(self, device: torch.device | str) -> Self:
        """Move to a device."""
        labels = self.class_labels
        return type(self)(
            self.degradation.to(device),
            self.y.to(device),
            self.noise_level.to(device),
            None if labels is None else labels.to(device),
        )

    def unconditional(self) -> Self:
        """Only the class labels remain: what zero-shot solvers call the denoiser with."""
        return self.without_measurement(
            len(self), self.degradation.image_shape, self.class_labels, self.y.device
        )

    def with_classes(self, class_labels: Tensor | None) -> Self:
        """The same measurements with other class labels."""
        other = replace(self, class_labels=class_labels)
        object.__setattr__(other, "_known", self._known)
        return other

    def pinv(self) -> Tensor:
        """H†y, regularised by the noise level, `[B, C, h, w]`; computed once."""
        return self._once("pinv", lambda: self.degradation.H_pinv(self.y, self.noise_level))

    def features(self, patch: int) -> FeatureMap:
        """The operator on features of tokens of p×p pixels; made once for each patch size."""
        return self._once(patch, lambda: self._feature_map(patch))

    def residual(self, x: Tensor) -> Tensor:
        """y − Hx `[B, M]`."""
        return self.y - self.degradation.H(x)

    def project(self, x: Tensor) -> Tensor:
        """x + H†(y − Hx) with H† regularised by the noise level, `[B, C, h, w]`."""
        return x + self.degradation.H_pinv(self.residual(x), self.noise_level)

    def _once(self, key: str | int, compute: Callable[[], Any]) -> Any:
        # Not functools.cached_property, whose lock torch.compile cannot trace.
        if self.y.requires_grad:
            return compute()
        if key not in self._known:
            # For later too, when gradients may be wanted; a compiler has no such mode.
            lasting = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
            with torch.inference_mode(False) if lasting else nullcontext():
                self._known[key] = compute()
        return self._known[key]

    def _feature_map(self, patch: int) -> FeatureMap:
        arguments = self.y, self.noise_level, patch
        with torch.autocast(self.y.device.type, enabled=False):
            found = self.degradation.feature_map(*arguments)
        return found or ImageFeatures(self.degradation, *arguments)
