"""The option by which benchmarks of many choices write: no run replaces what it was not told to."""

import re

import click


def _checked(ctx: click.Context, parameter: click.Parameter, name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"\w[\w.-]*", name):
        raise click.BadParameter(f"'{name}' must be letters, digits, '-', '_' and '.'")
    return name


name_option = click.option(
    "--name", callback=_checked, help="Name of the result files; without it none is written."
)
