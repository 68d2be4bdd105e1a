"""Families of operators from the options of a command line; masks and kernels come from files."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from commands.cli import options_by_name
from datautils.decode import read_kernel, read_mask
from degradation import Family, family_class, get_family

_READERS = {"mask": read_mask, "kernel": read_kernel}


def family_of(name: str, options: Mapping[str, Any]) -> Family:
    """The family of a name, with options as text or as YAML has them. Raises ValueError.

    Where an option is a tensor, the text is the path of a picture (or, for kernels, a .npy file).
    """
    tensors = {f.name for f in dataclasses.fields(family_class(name)) if f.type is Tensor}
    values: dict[str, Any] = {}
    for key, value in options.items():
        if value is None:  # as YAML has what is left out
            continue
        if key in tensors and key not in _READERS:
            raise ValueError(f"degradation '{name}': {key} cannot be read from a file")
        text = ",".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
        values[key] = _READERS[key](text) if key in tensors else text
    return get_family(name, values)


def families_of(names: Sequence[str], options: Mapping[str, str]) -> dict[str, Family]:
    """Families by name, from options KEY=VALUE of the only one or NAME.KEY=VALUE. ValueError."""
    names = [name.removeprefix("degradation.") for name in names]
    options = {key.removeprefix("degradation."): value for key, value in options.items()}
    by_name = options_by_name("--degradation-opt", "degradation", names, options)
    return {name: family_of(name, picked) for name, picked in by_name.items()}
