"""Every family of operators in pictures: `python -m benchmarks.operator_sheet`.

Draws y and H†y of a crop of a built-in photo for each family into docs/operators.png.
"""

from collections.abc import Hashable
from typing import Any

import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.report import save_picture
from datautils.photos import Photos
from degradation import FAMILIES, Draws, Family, GaussianNoise, get_family
from metrics.pixel import to_float, to_uint8

SHAPE = (3, 64, 64)
CROP, SEED = 21, 4
STRIDE = 4  # where a family has several
PAIRS = 4  # families in a row of the picture


def families() -> dict[str, Family]:
    """Every family that measures something by itself, and one composition, by their titles."""
    lines = torch.ones(1, 64, 64)
    lines[:, 20:44, ::3] = 0
    corner = torch.tensor([[1.0, 1, 1, 1, 1], [1, 0, 0, 0, 0], [1, 0, 0, 0, 0]]) / 7
    options = {"FixedMask": {"mask": lines}, "FixedKernel": {"kernel": corner}}
    named = [name for name in FAMILIES if name not in ("NoDegradation", "RandomDegradation")]
    found = {name: get_family(name, options.get(name)) for name in named}
    found["Colourisation, of=MotionBlur"] = get_family("Colourisation", {"of": "MotionBlur"})
    return found


def structure_of(family: Family) -> Hashable:
    """The structure with stride 4, or else the first one."""
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


if __name__ == "__main__":
    draw_sheet()
