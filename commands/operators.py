"""Families of operators from the options of a command line; masks and kernels come from files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from commands.checks import check_once, options_by_name
from datautils.decode import read_kernel, read_mask
from degradation import FAMILIES, Family, get_family

_READERS = {"mask": read_mask, "kernel": read_kernel}
_ONE, _SEVERAL = Family | None, tuple[Family, ...]  # types of options that are families


def family_of(name: str, options: Mapping[str, Any]) -> Family:
    """The family of a name, with options as text or as YAML has them. Raises ValueError.

    Where an option is a tensor, the text is the path of a picture (or, for kernels, a .npy file).
    Options of a family that is itself an option follow its name: {"of": "MotionBlur",
    "of.strides": "4"}; of several families they name theirs: {"members": "Box,MotionBlur",
    "members.MotionBlur.strides": "4"}.
    """
    types = {f.name: f.type for f in dataclasses.fields(FAMILIES.find(name))}
    values: dict[str, Any] = {}
    inner: dict[str, dict[str, Any]] = {}
    for key, value in options.items():
        outer, _, rest = key.partition(".")
        if value is None:  # as YAML has what is left out
            continue
        if rest and types.get(outer) in (_ONE, _SEVERAL):
            inner.setdefault(outer, {})[rest] = value
            continue
        if types.get(key) is Tensor and key not in _READERS:
            raise ValueError(f"degradation '{name}': {key} cannot be read from a file")
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        values[key] = _READERS[key](text) if types.get(key) is Tensor else text
    for outer, picked in inner.items():
        if outer not in values:
            raise ValueError(f"degradation '{name}': {outer}.{next(iter(picked))} needs {outer}=")
        several = types[outer] == _SEVERAL
        names = values[outer].split(",") if several else [values[outer]]
        names = [_short(name.strip()) for name in names]
        by_name = options_by_name(f"--degradation-opt {outer}.", "degradation", names, picked)
        families = tuple(family_of(name, by_name[name]) for name in names)
        values[outer] = families if several else families[0]
    return get_family(name, values)


def _short(name: str) -> str:
    return name.removeprefix("degradation.")


def families_of(names: Sequence[str], options: Mapping[str, str]) -> dict[str, Family]:
    """Families by name, from options KEY=VALUE of the only one or NAME.KEY=VALUE. ValueError."""
    names = [_short(name) for name in names]
    check_once("--degradation", names)
    options = {_short(key): value for key, value in options.items()}
    by_name = options_by_name("--degradation-opt", "degradation", names, options)
    return {name: family_of(name, picked) for name, picked in by_name.items()}
