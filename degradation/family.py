"""What a random family of operators is, and what families share."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from degradation.base import Device, LinearOperator, Shape
from degradation.randomness import Draws


@dataclass(frozen=True, eq=False)  # a family of tensors equals itself alone
class Family:
    """A distribution over operators.

    What must be equal for operators to share a batch is the *structure*; the rest is content.
    """

    measures: ClassVar[bool] = True  # whether there is a y
    local: ClassVar[bool] = True  # whether each measurement sees few pixels: tiles can be restored
    grows: ClassVar[bool] = False  # whether kernels grow with the image

    def parts(self) -> "tuple[Family, ...]":
        """The families of a mixture; any other family is its only part."""
        return (self,)

    def drawn(self, structure: Any) -> "tuple[Family, Any]":
        """The part that a structure names, and its own structure."""
        return self, structure

    def structure(self, seed: int) -> Hashable:
        """The structure that a seed draws, such as a stride."""
        return None

    def structures(self) -> tuple[Hashable, ...]:
        """All structures of the family."""
        return (None,)

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> LinearOperator:
        """A batch of operators of this structure, one for each seed."""
        raise NotImplementedError

    def kernels(self, image_shape: Shape, structure: Any, seeds: Sequence[int]) -> Tensor | None:
        """The kernels of strided convolutions, `[B, kh, kw]`, or one for all `[1, kh, kw]`, on the
        CPU; the centre is at (kh // 2, kw // 2). None from a family of other operators."""
        return None

    def check(self, image_shape: Shape) -> None:
        """Raise ValueError if an operator of the family does not exist for this shape."""
        name = type(self).__name__
        for structure in self.structures():
            operator = self.sample(image_shape, structure, [0])
            if not isinstance(operator, LinearOperator):
                found = type(operator).__name__
                raise ValueError(f"{name}.sample must return a LinearOperator, not {found}")


def choice(seed: int, stream: str, options: tuple) -> Any:
    """One of the options, uniformly, by the seed of an image."""
    return options[int(Draws([seed]).integers(0, len(options) - 1, (), stream))]


def uniform_between(draws: Draws, span: tuple[float, ...], stream: str) -> Tensor:
    """Numbers uniform between the ends of a span, `[B]`; a span of one number is that number."""
    low, high = span[0], span[-1]
    return low + (high - low) * draws.uniform((), stream)


def check_span(name: str, span: tuple[float, ...], accepted: str, valid: bool) -> None:
    """Raise ValueError unless a span is one number or two rising ones, and `valid`."""
    if not (1 <= len(span) <= 2 and span[0] <= span[-1] and valid):
        raise ValueError(f"{name} must be one number or two that ascend, {accepted}, not {span}")
