"""JSON and YAML from files, which anybody may have written, and dataclasses from what they hold."""

import dataclasses
import json
import math
import os
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

import yaml

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """The value of a JSON text. Raises ValueError if it is none, or nested too deep."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("the JSON is nested too deep") from None


class _Texts(yaml.SafeLoader):
    """Scalars stay the texts that they are, but for null."""


_Texts.yaml_implicit_resolvers = {
    first: [pair for pair in pairs if pair[0].endswith((":null", ":merge"))]
    for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse_yaml(text: str, guess: bool = True) -> Any:
    """The value of a YAML text. Raises ValueError if it is none.

    guess: make numbers, dates and flags of what looks like one; else they are read by their types.
    """
    try:
        return yaml.load(text, yaml.SafeLoader if guess else _Texts)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"line {mark.line + 1}" if mark else "it"
        raise ValueError(f"{where} cannot be read as YAML") from None
    except RecursionError:
        raise ValueError("it is nested too deep") from None


def plain(value: Any) -> Any:
    """The value in what JSON knows: dicts, lists, strings, finite numbers, bools and null."""
    if hasattr(value, "tolist"):  # tensors and arrays: importing torch takes seconds
        value = value.tolist()
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    is_text = isinstance(value, os.PathLike) or type(value).__module__ == "torch"  # devices, types
    return str(value) if is_text else value


def record(cls: type[T], values: Any, what: str, others: bool = False) -> T:
    """A dataclass from a mapping, its fields checked against their annotations.

    A bool is no number, an integer stands for a float, numbers are finite and integers have 64
    bits. A list stands for a tuple, and a mapping for another dataclass. what: the record in a
    message; others: pass over names that are no fields, as other versions may write them. Raises
    ValueError that names the field.
    """
    if not isinstance(values, dict):
        raise ValueError(f"{what} must be a mapping of names to values")
    kinds, found = typing.get_type_hints(cls), {}
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    if not others and (unknown := [name for name in values if name not in fields]):
        raise ValueError(f"{what} has an unknown entry '{unknown[0]}'")
    for name, field in fields.items():
        if name in values:
            found[name] = _checked(kinds[name], values[name], f"{what}: {name}", others)
        elif field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{what} lacks {name}")
    try:
        return cls(**found)
    except ValueError as error:
        raise ValueError(f"{what}: {error}") from None


def _checked(kind: Any, value: Any, what: str, others: bool) -> Any:
    """A value as its type has it. Raises ValueError."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if kind is Any:
        return value
    if dataclasses.is_dataclass(kind):
        return record(typing.cast(type, kind), value, what, others)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in inner:
            return None
        return _checked(next(k for k in inner if k is not type(None)), value, what, others)
    if origin is dict and isinstance(value, dict):
        return {k: _checked(inner[1], v, f"{what}: {k}", others) for k, v in value.items()}
    if origin in (list, tuple) and isinstance(value, list):
        several = origin is list or inner[-1] is ...
        kinds = [inner[0]] * len(value) if several else list(inner)
        if len(kinds) == len(value):
            named = [f"{what}[{i}]" for i in range(len(value))]
            parts = zip(kinds, value, named, strict=True)
            return origin(_checked(k, v, name, others) for k, v, name in parts)
    if origin is typing.Literal and any(value == k and type(value) is type(k) for k in inner):
        return value
    whole = type(value) is int and abs(value) < 2**63
    if kind is float and (whole or (type(value) is float and math.isfinite(value))):
        return float(value)
    if type(value) is kind and (whole or kind in (str, bool)):
        return value
    accepted = "list" if origin is tuple else getattr(origin or kind, "__name__", kind)
    raise ValueError(f"{what} must be of the kind {accepted}, not {value!r:.60}")
