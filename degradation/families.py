"""The families by name: the mixture of several, and building one from options given as text."""

import functools
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from degradation import blur, inpainting, projections
from degradation.base import Device, LinearOperator, Shape
from degradation.family import Family, choice
from degradation.mask import NullOperator
from runtime.registry import Registry


@dataclass(frozen=True)
class NoDegradation(Family):
    """No measurement: restoring is then plain generation."""

    measures: ClassVar[bool] = False

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> NullOperator:
        return NullOperator(len(seeds), image_shape, device)


@dataclass(frozen=True)
class RandomDegradation(Family):
    """The training mixture of the paper, or any other: one of its members, uniformly."""

    members: tuple[Family, ...] = (
        *(blur.MotionBlur(), inpainting.MissingPatches()),
        *(projections.MatrixDegradation(), NoDegradation()),
    )

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must be one family or more, not none")

    def parts(self) -> tuple[Family, ...]:
        return self.members

    def drawn(self, structure: tuple[int, Any]) -> tuple[Family, Any]:
        member, inner = structure
        return self.members[member].drawn(inner)

    def structure(self, seed: int) -> tuple[int, Hashable]:
        member = choice(seed, "member", tuple(range(len(self.members))))
        return member, self.members[member].structure(seed)

    def structures(self) -> tuple[tuple[int, Hashable], ...]:
        return tuple((i, inner) for i, m in enumerate(self.members) for inner in m.structures())

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> LinearOperator:
        member, inner = structure
        return self.members[member].sample(image_shape, inner, seeds, device)


def _family(text: str) -> Family:
    return get_family(text.strip())


@functools.cache
def _family_of(operator: type[LinearOperator]) -> type[Family]:
    """A family of one operator, which is made of the number of images and their shape."""

    def sample(
        self: Family, image_shape: Shape, structure: Any, seeds: Sequence[int],
        device: Device = "cpu",
    ) -> LinearOperator:  # fmt: skip
        return operator(len(seeds), image_shape).to(device)  # type: ignore[call-arg]

    return type(operator.__name__, (Family,), {"sample": sample, "local": False})


class _Families(Registry):
    """The families by their names on the command line: `MotionBlur`, `degradation.MotionBlur`, or
    `module.Class` for a family of the user, such as a `PhysicsFamily`, or for an operator
    `Class(batch, image_shape)`, which is a family of one."""

    def find(self, name: str) -> type[Family]:
        found = super().find(name)
        if not issubclass(found, LinearOperator):
            return found
        if found.__module__.startswith("degradation."):  # made of a mask, a kernel, a matrix
            raise ValueError(f"degradation '{name}' is no subclass of Family")
        return _family_of(found)


FAMILIES = _Families(
    "degradation",
    Family,
    LinearOperator,
    readers={
        Family | None: _family,
        tuple[Family, ...]: lambda text: tuple(map(_family, text.split(","))),
    },
)
FAMILIES |= {
    family.__name__: family
    for family in (
        *(inpainting.MissingPatches, inpainting.Box, inpainting.MissingBox),
        *(blur.MotionBlur, blur.SRConv),
        *(projections.MatrixDegradation, NoDegradation, RandomDegradation),
        *(inpainting.RandomPixels, inpainting.CentreBox, inpainting.HalfImage),
        *(inpainting.FixedMask, blur.AveragePool, blur.Bicubic),
        *(blur.GaussianBlur, blur.UniformBlur, blur.FixedKernel),
        *(projections.Hadamard, projections.Colourisation),
    )
}


def get_family(name: str, options: Mapping[str, Any] | None = None) -> Family:
    """The family of a command-line name, with options given as values or text: {"strides": "2,4"}.

    An option that is a family is given by its name ("MotionBlur"), several by theirs and commas
    between. Raises ValueError for a wrong name or option, with the known ones.
    """
    return FAMILIES.build(name, options)
