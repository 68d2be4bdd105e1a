"""Every family of operators in pictures, and what its operators cost.

`python -m benchmarks.families` writes docs/operators.png (y and H†y of a crop of a built-in photo
for each family), the milliseconds of H and H† to benchmarks/results/operators-cost.json, and these
into the table of docs/operators.md; with `--picture` the picture alone.
"""

import io
import json
import statistics
import sys
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor

from datautils.photos import Photos
from degradation import (
    FAMILIES,
    Colourisation,
    Draws,
    Family,
    FixedKernel,
    FixedMask,
    GaussianNoise,
    LinearOperator,
    MotionBlur,
    get_family,
)
from metrics.pixel import to_float, to_uint8
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "operators-cost.json"
PICTURE = ROOT / "docs" / "operators.png"
TABLE = ROOT / "docs" / "operators.md"
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


# ---- the picture


def draw_sheet() -> None:
    """y and H†y of each family beside each other, the photo first."""
    x = to_float(Photos(64, "heldout")[CROP][0])[None]
    found = families()
    rows = -(-(len(found) + 1) // PAIRS)
    figure, axes = plt.subplots(rows, 2 * PAIRS, figsize=(2.6 * PAIRS, 1.55 * rows))
    cells = axes.reshape(-1, 2)
    for axis in axes.flat:
        axis.axis("off")
    show(cells[0][0], x[0], "photo")
    for (left, right), (name, family) in zip(cells[1:], found.items(), strict=False):
        operator = family.sample(SHAPE, structure_of(family), [SEED])
        y = GaussianNoise().measure(operator, x, Draws([SEED])).y
        picture = operator.measurement_image(y)
        title = name.replace(", of=", "\nof ")
        if picture is None:
            show(left, torch.ones(SHAPE), title)
            text = f"{int(operator.rows.sum())}\nnumbers"
            left.text(32, 32, text, ha="center", va="center", fontsize=8)
        else:
            show(left, picture[0], title)
        show(right, operator.H_pinv(y)[0], "H†y")
    figure.subplots_adjust(0.01, 0.01, 0.99, 0.96, wspace=0.06, hspace=0.32)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with replacing(PICTURE) as path:  # a palette halves the file, and nobody sees it
        Image.open(buffer).convert("RGB").quantize(256).save(path, format="PNG", optimize=True)


def show(axis: Any, image: Tensor, title: str) -> None:
    """An image `[C, h, w]` in [-1, 1] on axes of matplotlib, grey where C is 1, enlarged."""
    pixels = to_uint8(image[None])[0].expand(3, -1, -1).permute(1, 2, 0)
    axis.imshow(pixels, interpolation="nearest")
    axis.set_title(title, fontsize=8, loc="left")


# ---- the cost


def measure_costs() -> list[dict[str, Any]]:
    """A row for each family: its operator, the structure that was taken, milliseconds."""
    torch.set_num_threads(1)
    rows = []
    for name, family in families().items():
        structure = structure_of(family)
        start = time.perf_counter()
        operator = family.sample(SHAPE, structure, range(BATCH))
        sampling = 1000 * (time.perf_counter() - start)
        with torch.no_grad():
            forward, inverse = cost(operator)
        rows.append({
            "family": name,
            "operator": type(operator).__name__,
            "structure": structure,
            "measurements": operator.rows.shape[1],
            "H_ms": forward,
            "H_pinv_ms": inverse,
            "sample_ms": sampling,
        })  # fmt: skip
    return rows


def cost(operator: LinearOperator) -> tuple[float, float]:
    """Milliseconds of H and of H† on a stack of 32 images for each of the 8 operators."""
    x = torch.randn(BATCH, STACK, *SHAPE)
    y = operator.H(x)
    return milliseconds(lambda: operator.H(x)), milliseconds(lambda: operator.H_pinv(y))


def milliseconds(fn: Callable[[], object]) -> float:
    """The median of several runs, after one that does not count."""
    fn()
    seconds = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        fn()
        seconds.append(time.perf_counter() - start)
    return 1000 * statistics.median(seconds)


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


def main() -> None:
    """Draw, measure, write."""
    draw_sheet()
    if "--picture" in sys.argv:
        return
    rows = measure_costs()
    with replacing(RESULTS) as path:
        record = {
            "stack": [BATCH, STACK, *SHAPE],
            "threads": 1,
            "repeats": REPEATS,
            "runs": rows,
            "environment": environment(),
        }
        path.write_text(json.dumps(record, indent=2) + "\n")
    text = fill_table(TABLE.read_text(encoding="utf-8"), rows)
    with replacing(TABLE) as path:
        path.write_text(text, encoding="utf-8")
    headers = ["family", "operator", "structure", "M", "H (ms)", "H† (ms)", "sample (ms)"]
    print(table(headers, [list(row.values()) for row in rows]))


if __name__ == "__main__":
    main()
