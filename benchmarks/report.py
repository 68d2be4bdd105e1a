"""How every benchmark reports: a table on the terminal and, under a name, files."""

import functools
import io
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from PIL import Image

from runtime.environment import environment
from runtime.files import replacing, write_json
from runtime.launcher import place

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


def benchmark(group: Any = click) -> Callable[[Callable[..., Any]], click.Command]:
    """Decorator that makes a function a command, of a group or by itself, with an option --name.

    The function returns what `report` takes after the name, or None if there is nothing to report.
    """

    def decorate(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(name: str | None, **options: Any) -> None:
            found = function(**options)
            if found is not None:
                report(name, *found)

        command = group.command(context_settings=CONTEXT)(call)
        files = "Write benchmarks/results/NAME.json, and docs/NAME.png if there is a picture."
        command.params.append(click.Option(["--name"], help=files))
        return command

    return decorate


def report(
    name: str | None,
    text: str,
    record: Mapping[str, Any] | None,
    draw: Callable[[str], None] | None = None,
) -> None:
    """Print a table; under a name also write files.

    record: for results/NAME.json, which has the command and describes the machine too; draw: makes
    a picture of this name.
    """
    print(text)
    if name is not None and record is not None:
        command = ["python", "-m", f"benchmarks.{Path(sys.argv[0]).stem}", *sys.argv[1:]]
        full = {
            **record, "command": command, "processes": place().world,
            "threads": torch.get_num_threads(), "environment": environment(),
        }  # fmt: skip
        write_json(RESULTS / f"{name}.json", full)
    if name is not None and draw is not None:
        draw(name)


def save_picture(name: str, figure: Any) -> None:
    """docs/NAME.png, with a palette: a third of the size, and nobody sees it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with replacing(DOCS / f"{name}.png") as path:
        Image.open(buffer).convert("RGB").quantize(256).save(path, "PNG", optimize=True)
