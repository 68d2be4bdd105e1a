"""Every family of operators in pictures, and what its operators cost: `-m benchmarks.families`.

Writes docs/operators.png (y and H†y of a crop of a built-in photo for each family), the
milliseconds of H and H† to results/operators-cost.json, and these into the table of
docs/operators.md; with `--picture` the picture alone.
"""

import itertools
import statistics
from collections.abc import Callable, Hashable
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.report import CONTEXT, DOCS, report, save_picture
from datautils.photos import Photos
from degradation import (
    FAMILIES,
    Colourisation,
    Draws,
    Family,
    FixedKernel,
    FixedMask,
    GaussianNoise,
    MotionBlur,
    get_family,
)
from metrics.evaluate import seconds_now
from metrics.pixel import to_float, to_uint8
from runtime.files import replacing
from runtime.tables import table

SHAPE = (3, 64, 64)
BATCH, STACK, REPEATS = 8, 32, 7
CROP, SEED = 21, 4
STRIDE = 4  # where a family has several
PAIRS = 4  # families in a row of the picture


def families() -> dict[str, Family]:
    """Every family that measures something by itself, and one composition, by their titles."""
    lines = torch.ones(1, 64, 64)
    lines[:, 20:44, ::3] = 0
    corner = torch.tensor([[1.0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]) / 7
    given: dict[str, Family] = {"FixedMask": FixedMask(lines), "FixedKernel": FixedKernel(corner)}
    named = [name for name in FAMILIES if name not in ("NoDegradation", "RandomDegradation")]
    found = {name: given.get(name) or get_family(name) for name in named}
    return found | {"Colourisation, of=MotionBlur": Colourisation(of=MotionBlur())}


def structure_of(family: Family) -> Hashable:
    """The stride of 4 where there is one, or else the first structure."""
    known = family.structures()
    return STRIDE if STRIDE in known else known[0]


def draw_sheet() -> None:
    """y and H†y of each family beside each other, the photo first."""
    x, found = to_float(Photos(64, "heldout")[CROP][0])[None], families()
    rows = -(-(len(found) + 1) // PAIRS)
    figure, axes = plt.subplots(rows, 2 * PAIRS, figsize=(2.6 * PAIRS, 1.55 * rows))
    cells = axes.reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    show(cells[0][0], x[0], "photo")
    for (left, right), (name, family) in zip(cells[1:], found.items(), strict=False):
        operator = family.sample(SHAPE, structure_of(family), [SEED])
        y = GaussianNoise().measure(operator, x, Draws([SEED])).y
        picture, title = operator.measurement_image(y), name.replace(", of=", "\nof ")
        show(left, torch.ones(SHAPE) if picture is None else picture[0], title)
        if picture is None:
            text = f"{int(operator.rows.sum())}\nnumbers"
            left.text(32, 32, text, ha="center", va="center", fontsize=8)
        show(right, operator.H_pinv(y)[0], "H†y")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, wspace=0.06, hspace=0.32)
    save_picture("operators", figure)


def show(axis: Any, image: Tensor, title: str) -> None:
    """An image `[C, h, w]` in [-1, 1] on axes of matplotlib, grey where C is 1, enlarged."""
    pixels = to_uint8(image[None])[0].expand(3, -1, -1).permute(1, 2, 0)
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=8, loc="left")


@torch.no_grad()
def measure_costs() -> list[dict[str, Any]]:
    """A row for each family: milliseconds of H and H† on a stack for each of its operators."""
    torch.set_num_threads(1)
    rows, x = [], torch.randn(BATCH, STACK, *SHAPE)
    for name, family in families().items():
        structure = structure_of(family)
        operator = family.sample(SHAPE, structure, range(BATCH))
        y = operator.H(x)
        rows.append({
            "family": name,
            "operator": type(operator).__name__,
            "structure": structure,
            "measurements": operator.rows.shape[1],
            "H_ms": milliseconds(lambda operator=operator: operator.H(x)),
            "H_pinv_ms": milliseconds(lambda operator=operator, y=y: operator.H_pinv(y)),
        })  # fmt: skip
    return rows


def milliseconds(work: Callable[[], object]) -> float:
    """The median of several runs, after one that does not count."""
    times = [seconds_now(torch.device("cpu"))]
    for _ in range(REPEATS + 1):
        work()
        times.append(seconds_now(torch.device("cpu")))
    return 1000 * statistics.median(b - a for a, b in itertools.pairwise(times[1:]))


def fill_table(text: str, rows: list[dict[str, Any]]) -> str:
    """The document with the last two cells of each family's row replaced."""
    costs = {f"`{row['family']}`": row for row in rows}
    lines = text.split("\n")
    for i, line in enumerate(lines):
        cells = line.split(" | ")
        row = costs.get(cells[0].removeprefix("| "))
        if row:
            times = [row["H_ms"], row["H_pinv_ms"]]
            cells[-2:] = [f"{ms:.0f}" if ms >= 10 else f"{ms:.1f}" for ms in times]
            lines[i] = " | ".join(cells) + " |"
    return "\n".join(lines)


@click.command(context_settings=CONTEXT)
@click.option("--picture", is_flag=True, help="Draw alone, without measuring.")
def main(picture: bool) -> None:
    """Draw every family; measure it and fill the table of docs/operators.md."""
    draw_sheet()
    if picture:
        return
    rows = measure_costs()
    text = fill_table((DOCS / "operators.md").read_text(encoding="utf-8"), rows)
    with replacing(DOCS / "operators.md") as path:
        path.write_text(text, encoding="utf-8")
    headers = ["family", "operator", "structure", "M", "H (ms)", "H† (ms)"]
    record = {"stack": [BATCH, STACK, *SHAPE], "repeats": REPEATS, "runs": rows}
    report("operators-cost", table(headers, [list(row.values()) for row in rows]), record)


if __name__ == "__main__":
    main()
