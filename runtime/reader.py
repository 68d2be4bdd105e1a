"""Options by name: read from text, or checked, by the types that a class declares for them."""

import inspect
import math
import os
import re
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

from runtime.records import parse_yaml

PRECISIONS = ("auto", "fp32", "bf16", "fp16")  # arithmetic of a network
OBJECTIVES = ("denoising", "mmse", "indi", "unrolled", "nppc")  # what it may be trained for
Reader = Callable[[Any], Any]
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def key_values(pairs: Iterable[str], option: str) -> dict[str, str]:
    """{"key": "value"} of texts such as "key=value", which an option of this name gave.

    Raises ValueError for any other text, and for a key that is given twice.
    """
    values: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            raise ValueError(f"{option} '{pair}' is no option such as key=value")
        if key in values:
            raise ValueError(f"{option} {key} is given twice: give it once")
        values[key] = value
    return values


def text_of(value: Any) -> str:
    """A value as the command line takes it."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def texts(options: Mapping[str, Any]) -> dict[str, str]:
    """Options by name as the command line takes them."""
    return {name: text_of(value) for name, value in options.items()}


def arguments(
    cls: type,
    options: Mapping[str, Any],
    what: str,
    fixed: Iterable[str] = (),
    readers: Mapping[Any, Reader] | None = None,
) -> dict[str, Any]:
    """The keyword arguments of a class from options by name, given as text or as values.

    what: the class in a message, such as "sampler 'heun'"; fixed: parameters that are no options;
    readers: how text is read for types that are not built in. Raises ValueError for an unknown
    option (with the known ones), a missing one, and a value of another type.
    """
    signature = inspect.signature(cls).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signature.values())
    for name in fixed:
        if name not in signature and not takes_any:
            raise ValueError(f"{what} must take the argument '{name}'")
    parameters = {k: p for k, p in signature.items() if k not in fixed}
    named = {k: p for k, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    # A parameter without an annotation has the type of its default, if that is a number.
    kinds = {k: type(p.default) for k, p in named.items() if isinstance(p.default, int | float)}
    with suppress(NameError):  # names that are imported for a type checker only
        kinds |= typing.get_type_hints(cls.__init__)  # type: ignore[misc]
    values = {}
    for key, value in options.items():
        if key not in named and not takes_any:
            known = f"it has {', '.join(named)}" if named else "it has none"
            raise ValueError(f"{what} has no option '{key}'; {known}")
        values[key] = read(value, kinds.get(key, Any), f"{what} option {key}", readers)
    for key, parameter in named.items():
        if key not in values and parameter.default is parameter.empty:
            raise ValueError(f"{what} needs the option '{key}'")
    return values


def read(value: Any, kind: Any, name: str, readers: Mapping[Any, Reader] | None = None) -> Any:
    """A value of the type `kind` from text, or from what YAML makes of it.

    Raises ValueError, which says what is accepted.
    """
    if readers and kind in readers:
        return readers[kind](value) if isinstance(value, str) else value
    parse, accepted = _parser(kind)
    try:
        return parse(value)
    except (TypeError, ValueError, KeyError):
        raise ValueError(f"{name}={value!r:.60} must be {accepted}") from None


def parse_count(text: Any) -> int:
    """A count below 2^63 such as 4096, 64Ki, 8Mi, 10k or 2^25. Raises ValueError."""
    match = re.fullmatch(r"(\d{1,99}(?:\.\d{1,99})?)\s*([a-zA-Z]*)", str(text).strip())
    if isinstance(text, int) and not isinstance(text, bool):
        count = Fraction(text)
    elif power := re.fullmatch(r"2\^(\d{1,2})", str(text).strip()):
        count = Fraction(2 ** int(power[1]))
    elif match and match[2].lower() in _UNITS:
        count = Fraction(match[1]) * _UNITS[match[2].lower()]
    else:
        raise ValueError(f"'{text!s:.40}' is no count such as 4096, 64Ki, 8Mi or 2^25")
    if abs(count) >= 2**63:
        raise ValueError(f"'{text!s:.40}' is a count beyond 2^63")
    if count.denominator > 1:
        raise ValueError(f"'{text}' is no whole number")
    return int(count)


def _parser(kind: Any) -> tuple[Reader, str]:
    """How a value of a type is read, and what is accepted, in words."""
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        kinds = [k for k in inner if k is not type(None)]
        parse, accepted = _parser(str if str in kinds else kinds[0])
        if type(None) not in inner:
            return parse, accepted
        empty = (None,) if str in kinds else (None, "none", "null")
        return lambda value: None if value in empty else parse(value), f"{accepted}, or none"
    if origin is tuple:
        parse, _ = _parser(inner[0])
        accepted = _SEVERAL.get(inner[0], "values such as a,b")
        return lambda value: tuple(parse(item) for item in _items(value)), accepted
    if origin is typing.Literal:
        known = {str(choice): choice for choice in inner}
        return lambda value: known[str(value)], " or ".join(known)
    return _PARSERS.get(origin or kind, (_no_text, "given as a value, not as text"))


def _items(value: Any) -> list:
    if isinstance(value, str):
        text = value.strip().removeprefix("[").removesuffix("]")
        return [] if text in ("", "none", "null") else text.split(",")
    if not isinstance(value, list | tuple):
        raise TypeError
    return list(value)


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(float(value)):
        raise ValueError
    return float(value)


def _text(value: Any) -> str | os.PathLike:
    if not isinstance(value, str | os.PathLike):
        raise TypeError
    return value


def _path(value: Any) -> Path:
    if value == "":  # would be the working folder
        raise ValueError
    return Path(_text(value))


def _mapping(value: Any) -> dict:
    found = parse_yaml(value) if isinstance(value, str) else value
    if not isinstance(found, dict):
        raise TypeError
    return found


def _no_text(value: Any) -> Any:
    if isinstance(value, str):
        raise TypeError
    return value


_FLAGS = {"true": True, "false": False}
_PARSERS: dict[Any, tuple[Reader, str]] = {
    bool: (lambda value: _FLAGS[str(value).lower()], "true or false"),
    int: (parse_count, "a whole number of at least 0, such as 4096, 64Ki or 2^25"),
    float: (_number, "a number"),
    str: (_text, "a text"),
    Path: (_path, "a path, not empty"),
    dict: (_mapping, "a mapping of names to values"),
    Any: (lambda value: value, "anything"),
}
_SEVERAL = {int: "whole numbers such as 2,4", float: "numbers such as 0.5,2", str: "texts"}
