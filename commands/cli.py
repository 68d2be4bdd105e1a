"""What the entry scripts share: options as KEY=VALUE, and mistakes told in one sentence."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from runtime.options import parse_count


class Count(click.ParamType):
    """A number of images such as 4096, 64Ki, 8Mi or 2^25, at least `smallest`."""

    name = "count"

    def __init__(self, smallest: int = 1):
        self.smallest = smallest

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        try:
            count = parse_count(value)
        except ValueError as error:
            self.fail(str(error), param, ctx)
        if count < self.smallest:
            self.fail(f"{value} is too small, at least {self.smallest}", param, ctx)
        return count


COUNT = Count()


def options_by_name(
    option: str, kind: str, names: Sequence[str], options: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """The options of each name, from KEY=VALUE of the only one or NAME.KEY=VALUE. ValueError.

    option: what they are given by, such as --sampler-opt; kind: of what, such as sampler.
    """
    by_name: dict[str, dict[str, str]] = {name: {} for name in names}
    only = names[0] if len(by_name) == 1 else None
    for key, value in options.items():
        named = [name for name in by_name if key.startswith(f"{name}.")]
        name = max(named, key=len, default=only)
        if name is None:
            inner = key.rpartition(".")[2]
            known = ", ".join(f"{known}.{inner}" for known in by_name)
            raise ValueError(f"{option} {key} must name the {kind}: {known}")
        by_name[name][key.removeprefix(f"{name}.")] = value
    return by_name


def check_once(option: str, names: Sequence[str]) -> None:
    """Raise ValueError for a name that is given twice: its results would have one name too."""
    for i, name in enumerate(names):
        if name in names[:i]:
            raise ValueError(f"{option} {name} is given twice: give every one once")


def check_folder(folder: Path) -> None:
    """Raise ValueError where a folder neither exists nor can be made."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"cannot write into {folder}: {parent} is no folder that can be written")


def chosen(kind: str, text: str, known: Iterable[str]) -> list[str]:
    """The names of a comma-separated list, each once. Raises ValueError with the known ones."""
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; known are {', '.join(known)}")
    return names
