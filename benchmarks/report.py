"""How every benchmark reports: a table on the terminal and, under a name, files."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from PIL import Image

from runtime.environment import environment
from runtime.files import replacing, write_json

ROOT = Path(__file__).resolve().parents[1]
RESULTS, DOCS = ROOT / "benchmarks" / "results", ROOT / "docs"
CONTEXT = {"help_option_names": ["-h", "--help"], "show_default": True}


name_option = click.option(
    "--name",
    help="Write benchmarks/results/NAME.json, and docs/NAME.png if there is a picture.",
)  # fmt: skip


def report(name: str | None, text: str, record: Mapping[str, Any]) -> None:
    """Print a table; under a name also write results/NAME.json, with the machine's description."""
    print(text)
    if name is not None:
        full = {**record, "threads": torch.get_num_threads(), "environment": environment()}
        write_json(RESULTS / f"{name}.json", full)


def save_picture(name: str, figure: Any) -> None:
    """docs/NAME.png, with a palette: a third of the size, and nobody sees it."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with replacing(DOCS / f"{name}.png") as path:
        Image.open(buffer).convert("RGB").quantize(256).save(path, "PNG", optimize=True)
