"""Commands called with a list of words, of which later ones replace earlier ones."""

from collections.abc import Sequence
from typing import Any

import click
from click.testing import CliRunner, Result


def last_of(command: click.Command, words: Sequence[str]) -> list[str]:
    """The words without those options that are given again further on: a command refuses these."""
    if isinstance(command, click.Group):
        return [words[0], *last_of(command.commands[words[0]], words[1:])]
    options = {name: p for p in command.params for name in (*p.opts, *p.secondary_opts)}
    kept: dict[Any, list[str]] = {}
    rest = iter(words)
    for word in rest:
        name, equals, value = word.partition("=")
        option = options.get(name)
        group = [word]
        if isinstance(option, click.Option) and not option.is_flag and not equals:
            value = next(rest, "")
            group = [word, value]
        key: Any = option and option.name
        if option is None or isinstance(option, click.Argument) or option.multiple:
            key = len(kept), word
            if option is not None and getattr(option, "metavar", None) == "KEY=VALUE":
                key = option.name, value.partition("=")[0]
        kept.pop(key, None)
        kept[key] = group
    return [word for group in kept.values() for word in group]


class Runner(CliRunner):
    """click's runner, for lists that begin with what most tests want and end with what one does."""

    def invoke(self, cli: Any, args: Any = None, **settings: Any) -> Result:
        return super().invoke(cli, last_of(cli, [str(word) for word in args or []]), **settings)
