"""Command lines from dataclasses: the fields of a command's options are its options.

Name, type, default and help of an option are written once, by `option`. Importing torch takes
seconds, so a module with such a dataclass does not, and `--help` is quick.
"""

import dataclasses
import functools
import typing
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from runtime.errors import data_errors
from runtime.reader import key_values, parse_count, read
from runtime.registry import default_of

SETTINGS = {"help_option_names": ["-h", "--help"]}


def option(
    help: str,
    default: Any = dataclasses.MISSING,
    *,
    name: str | None = None,
    choices: Sequence[str] = (),
    least: float | None = None,
    most: float | None = None,
    shown: str | None = None,
) -> Any:
    """A field of a dataclass of options.

    help: one sentence or two. default: without one the option must be given. name: the option's
    name on the command line, or two names with a space between; by default the field's name with
    dashes; an empty name leaves it out of the command line. choices: the texts that are accepted.
    least, most: the range of a number. shown: the default in words.
    """
    metadata = dict(help=help, name=name, choices=choices, least=least, most=most, shown=shown)
    if isinstance(default, dict | list):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


class Typed(click.ParamType):
    """A value within a range, read by its type, such as a count of 4096, 64Ki, 8Mi or 2^25."""

    def __init__(self, kind: type, least: float | None = None, most: float | None = None):
        self.kind, self.least, self.most = kind, least, most
        self.name = "count" if kind is int else kind.__name__.lower()

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        try:
            found = parse_count(value) if self.kind is int else read(value, self.kind, "the value")
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if self.least is not None and found < self.least:
            self.fail(f"{value} is too small, at least {self.least}", param, ctx)
        if self.most is not None and found > self.most:
            self.fail(f"{value} is too large, at most {self.most}", param, ctx)
        return found


class Command(click.Command):
    """A click command. An option that is given twice is an error, which click itself does not
    notice. What is no fault of ours ends it with one sentence and exit code 2 (`data_errors`)."""

    def invoke(self, ctx: click.Context) -> Any:
        warnings.formatwarning = lambda message, *place, **line: f"warning: {message}\n"
        with data_errors():
            return super().invoke(ctx)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        _, _, order = self.make_parser(ctx).parse_args(list(args))
        for parameter in order:
            if order.count(parameter) > 1 and not parameter.multiple:
                raise click.UsageError(f"{parameter.opts[-1]} is given twice: give it once", ctx)
        return super().parse_args(ctx, args)


class Group(click.Group):
    """Several such commands under one name."""

    command_class = Command


def takes(cls: type) -> Callable[[Callable], Callable]:
    """Decorator of a click command: its function gets one `cls`, made of the options."""

    def decorate(function: Callable[[Any], None]) -> Callable:
        @functools.wraps(function)
        def call(**values: Any) -> None:
            function(cls(**values))

        return with_options(cls)(call)

    return decorate


def with_options(cls: type, overriding: bool = False) -> Callable[[Callable], Callable]:
    """Decorator that adds the options of a dataclass to a click command.

    overriding: an option that is not given is None, whatever its default.
    """

    def decorate(function: Callable) -> Callable:
        kinds = typing.get_type_hints(cls)
        for field in reversed(dataclasses.fields(cls)):
            if field.metadata and field.metadata["name"] != "":
                function = _option(field, kinds[field.name], overriding)(function)
        return function

    return decorate


def flag(field: dataclasses.Field) -> str:
    """What a field is called on the command line, such as --data-opt."""
    return (field.metadata["name"] or f"--{field.name.replace('_', '-')}").split()[-1]


def _option(field: dataclasses.Field, kind: Any, overriding: bool) -> Callable:
    about, default = field.metadata, default_of(field)
    origin, name = typing.get_origin(kind), about["name"] or flag(field)
    shown = about["shown"] or _shown(default)
    settings: dict[str, Any] = {"help": about["help"], "show_default": False}
    if origin is dict or (origin is tuple and not overriding):
        settings |= {"multiple": True, "help": f"{about['help']} May be repeated."}
    if origin is dict:
        settings |= {"metavar": "KEY=VALUE", "callback": _by_key}
    if shown:
        settings["help"] += f"  [default: {shown}]"
    if kind is bool:
        name = f"{name}/--no-{name.removeprefix('--')}" if overriding else name
        settings |= {"is_flag": True, "default": None if overriding else False}
    elif overriding:
        shape = "|".join(about["choices"]) or _click_type(kind, about).name.upper()
        settings.setdefault("metavar", "A,B,..." if origin is tuple else shape)
        settings["type"] = click.STRING  # read by its type where the file is read
    else:
        settings["type"] = _click_type(kind, about)
        settings["required"] = default is dataclasses.MISSING
        if isinstance(default, int | float | str | tuple | Path):
            settings["default"] = default
    return click.option(*name.split(), field.name, **settings)


def _by_key(ctx: click.Context, parameter: click.Parameter, pairs: Sequence[str]) -> dict[str, str]:
    try:
        return key_values(pairs, parameter.opts[-1])
    except ValueError as error:
        raise click.UsageError(str(error), ctx) from None


def _shown(default: Any) -> str:
    """A default in words, empty if there is none."""
    if default is dataclasses.MISSING or default is None or default is False:
        return ""
    if isinstance(default, tuple | dict):
        return ", ".join(map(str, default))
    return str(default)


def _click_type(kind: Any, about: Mapping[str, Any]) -> Any:
    inner = [k for k in typing.get_args(kind) if k not in (type(None), ...)]
    kind = inner[0] if inner else kind
    if about["choices"]:
        return click.Choice(about["choices"])
    if kind not in (int, float, Path):
        return click.STRING
    return Typed(kind, about["least"] or 0 if kind is int else about["least"], about["most"])
