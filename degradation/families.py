"""The families by name: the mixture of several, and building one from options given as text."""

import contextlib
import dataclasses
import difflib
import importlib
import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from degradation.base import Degradation
from degradation.blur import (
    AveragePool,
    Bicubic,
    FixedKernel,
    GaussianBlur,
    MotionBlur,
    SRConv,
    UniformBlur,
)
from degradation.family import Device, Family, Shape, choice
from degradation.inpainting import (
    Box,
    CentreBox,
    FixedMask,
    HalfImage,
    MissingBox,
    MissingPatches,
    RandomPixels,
)
from degradation.mask import NullOperator
from degradation.projections import Colourisation, Hadamard, MatrixDegradation


@dataclass(frozen=True)
class NoDegradation(Family):
    """No measurement: restoring is then plain generation."""

    def sample(
        self, image_shape: Shape, structure: Any, seeds: Sequence[int], device: Device = "cpu"
    ) -> NullOperator:
        return NullOperator(len(seeds), image_shape, device)


@dataclass(frozen=True)
class RandomDegradation(Family):
    """The training mixture of the paper, or any other: one of its members, uniformly."""

    members: tuple[Family, ...] = field(
        default_factory=lambda: (
            MotionBlur(),
            MissingPatches(),
            MatrixDegradation(),
            NoDegradation(),
        )
    )

    def __post_init__(self) -> None:
        if not self.members:
            raise ValueError("members must be one family or more, not none")

    def structure(self, seed: int) -> tuple[int, Hashable]:
        member = choice(seed, "member", tuple(range(len(self.members))))
        return member, self.members[member].structure(seed)

    def structures(self) -> tuple[tuple[int, Hashable], ...]:
        return tuple((i, inner) for i, m in enumerate(self.members) for inner in m.structures())

    def sample(
        self,
        image_shape: Shape,
        structure: tuple[int, Any],
        seeds: Sequence[int],
        device: Device = "cpu",
    ) -> Degradation:
        member, inner = structure
        return self.members[member].sample(image_shape, inner, seeds, device)


FAMILIES: dict[str, type[Family]] = {
    family.__name__: family
    for family in (
        MissingPatches,
        Box,
        MissingBox,
        MotionBlur,
        SRConv,
        MatrixDegradation,
        NoDegradation,
        RandomDegradation,
        RandomPixels,
        CentreBox,
        HalfImage,
        FixedMask,
        AveragePool,
        Bicubic,
        GaussianBlur,
        UniformBlur,
        FixedKernel,
        Hadamard,
        Colourisation,
    )
}


def family_class(name: str) -> type[Family]:
    """The class of a command-line name: `MotionBlur`, `degradation.MotionBlur`, or `module.Class`
    for a family of the user's own, such as one of `PhysicsFamily`.

    Raises ValueError with the names that are most like it.
    """
    short = name.removeprefix("degradation.")
    if short in FAMILIES:
        return FAMILIES[short]
    module, _, attribute = name.rpartition(".")
    found = None
    with contextlib.suppress(ModuleNotFoundError, ValueError):
        found = getattr(importlib.import_module(module), attribute, None)
    if isinstance(found, type) and issubclass(found, Family):
        return found
    if found is not None:
        raise ValueError(f"degradation '{name}' is no family of operators, a class made of Family")
    near = _nearest(short)
    raise ValueError(
        f"unknown degradation '{name}'{f': is it {near}?' if near else ''} "
        "(`python -m degradation` lists all; one of your own is given as module.Class)"
    )


def _nearest(name: str) -> str:
    """The known names that are most like this one, in words; empty where none is."""
    known = {known.lower(): known for known in FAMILIES}
    found = difflib.get_close_matches(name.rpartition(".")[2].lower(), known, n=3, cutoff=0.5)
    return " or ".join(known[match] for match in found)


def get_family(name: str, options: Mapping[str, Any] | None = None) -> Family:
    """The family of a command-line name, with options given as text: {"strides": "2,4"}.

    A family is given by its name ("MotionBlur"), several by theirs and commas between; a tensor,
    or any other value that is no text, as it is. Raises ValueError, in one sentence, for an unknown
    name, an unknown or missing option (with the known ones), and a value out of range.
    """
    family = family_class(name)
    fields = {f.name: f for f in dataclasses.fields(family)}
    values = {}
    for key, value in (options or {}).items():
        if key not in fields:
            known = f"it has {', '.join(fields)}" if fields else "it has none"
            raise ValueError(f"degradation '{name}' has no option '{key}'; {known}")
        values[key] = _converted(family, fields[key], value) if isinstance(value, str) else value
    for key, f in fields.items():
        if key not in values and f.default is f.default_factory is dataclasses.MISSING:
            raise ValueError(f"degradation '{name}' needs the option '{key}'")
    return family(**values)


def _converted(family: type[Family], option: dataclasses.Field, text: str) -> Any:
    """The value of an option given as text, by the type of its field."""
    if option.type in _FAMILY_PARSERS:
        return _FAMILY_PARSERS[option.type](text)  # its own message says what is wrong
    if option.type not in _PARSERS:
        raise ValueError(f"{family.__name__} option {option.name} cannot be given as text")
    parse, accepted = _PARSERS[option.type]
    try:
        return parse(text)
    except (ValueError, KeyError):
        name = family.__name__
        raise ValueError(f"{name} option {option.name}={text!r} must be {accepted}") from None


def _number(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError
    return value


def _tuple_of(parse: Callable[[str], Any]) -> Callable[[str], tuple]:
    return lambda text: tuple(parse(part) for part in text.split(","))


def _no_tensor(text: str) -> Tensor:
    raise ValueError


_PARSERS: dict[Any, tuple[Callable[[str], Any], str]] = {
    int: (int, "a whole number"),
    float: (_number, "a number"),
    str: (str, "a text"),
    bool: (lambda text: {"true": True, "false": False}[text.lower()], "true or false"),
    tuple[int, ...]: (_tuple_of(int), "whole numbers such as 2,4"),
    tuple[float, ...]: (_tuple_of(_number), "numbers such as 0.5,2"),
    Tensor: (_no_tensor, "a tensor"),
}
_FAMILY_PARSERS: dict[Any, Callable[[str], Any]] = {
    Family | None: lambda text: get_family(text.strip()),
    tuple[Family, ...]: _tuple_of(lambda text: get_family(text.strip())),
}
