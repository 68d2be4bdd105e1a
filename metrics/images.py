"""Images as PNG files: each by itself, encoded in threads, or in rows and titled columns."""

import contextlib
import math
import re
from collections.abc import Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from metrics.download import packaged
from metrics.pipeline import Stage
from metrics.pixel import to_uint8
from runtime.files import replacing, writing

_Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_CELL = 128  # pixels that the longest side of a grid's largest image is enlarged towards
_GAP = 6  # pixels between cells
_LETTERS = 16  # pixels, at least: larger ones beside large images


class ImageWriter(Stage):
    """Writes images below a folder while the caller goes on."""

    def __init__(self, folder: Path):
        super().__init__(self._write, depth=64, threads=2)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _write(self, name: str, image: Tensor) -> None:
        """Write a uint8 image `[C, h, w]` as `folder/name`."""
        if not self.folder.is_dir():  # another process has given up: nothing is to come back
            raise FileNotFoundError(f"the folder {self.folder} was removed")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            picture(image).save(path, compress_level=3)


def picture(image: Tensor) -> Image.Image:
    """A uint8 image `[C, h, w]`, C = 1 or 3, in RGB."""
    return Image.fromarray(image.cpu().expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def enhanced(component: Tensor) -> Tensor:
    """A component `[C, h, w]` as a picture: grey is 0, its largest value is black or white."""
    return to_uint8(component / component.abs().max().clamp(min=1e-12))


def image_name(index: int, *folders: str) -> str:
    """Where image `index` is kept below folders named after a degradation and a method."""
    plain = [re.sub(r"[^A-Za-z0-9_]+", "-", f.replace("H†y", "pinv")).strip("-") for f in folders]
    return "/".join([*filter(None, plain), f"{index // 1000:05d}", f"{index:08d}.png"])


def write_grid(
    path: Path,
    rows: Sequence[Sequence[Tensor | None]],
    columns: Sequence[str],
    row_labels: Sequence[str] | None = None,
) -> None:
    """Write a picture of images in rows and titled columns, as PNG.

    rows: uint8 images `[C, h, w]`, C = 1 or 3, or None for none. Small images are enlarged by whole
    factors; one smaller than the others (a measurement at low resolution) as far as it fits. Long
    titles wrap; `row_labels` may hold line breaks.
    """
    labels = row_labels or [""] * len(rows)
    sizes = [image.shape[1:] for row in rows for image in row if image is not None]
    factor = max(1, _CELL // max(max(size) for size in sizes))
    cell_h, cell_w = (factor * max(sides) for sides in zip(*sizes, strict=True))

    font = _font(size=max(_LETTERS, min(cell_h, cell_w) // 32))
    # A column is as wide as its images and the longest word of its title: titles never collide.
    widths = [max([cell_w] + [_extent(word, font)[0] for word in t.split()]) for t in columns]
    titles = [_wrap(title, width, font) for title, width in zip(columns, widths, strict=True)]
    label_w = max(_extent(label, font)[0] for label in labels)
    row_h = max(cell_h, *(_extent(label, font)[1] for label in labels))
    top = _GAP + max(_extent(title, font)[1] for title in titles)
    left = _GAP + (label_w + _GAP if label_w else 0)

    size = (left + sum(widths) + _GAP * len(widths), top + _GAP + (row_h + _GAP) * len(rows))
    canvas = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(canvas)
    lefts = [left + sum(widths[:i]) + _GAP * i for i in range(len(widths))]
    for x, width, title in zip(lefts, widths, titles, strict=True):
        draw.multiline_text((x + width / 2, top), title, "black", font, "md", align="center")
    for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
        y = top + _GAP + (row_h + _GAP) * i
        middle = y + row_h / 2
        draw.multiline_text((_GAP, middle), label, "black", font, "lm")
        for x, width, image, title in zip(lefts, widths, row, titles, strict=True):
            if image is None and title:  # such as what a matrix measured
                draw.multiline_text((x + width / 2, middle), "no\npicture", "gray", font, "mm")
            if image is not None:
                cell = _enlarged(image, cell_h, cell_w)
                canvas.paste(cell, (x + (width - cell.width) // 2, y + (row_h - cell.height) // 2))
    with replacing(path) as temporary:
        canvas.save(temporary, format="PNG")


def _font(size: int) -> _Font:
    """matplotlib's DejaVu Sans, which unlike Pillow's own font has †, × and σ, or else Pillow's."""
    with contextlib.suppress(OSError, ValueError):
        file = packaged("matplotlib", "mpl-data/fonts/ttf/DejaVuSans.ttf", "a grid")
        return ImageFont.truetype(file, size)
    return ImageFont.load_default(size)


def _extent(text: str, font: _Font) -> tuple[int, int]:
    """Width and height of a text in pixels, (0, 0) for an empty one."""
    if not text:
        return 0, 0
    draw = ImageDraw.Draw(Image.new("RGB", (1, 1)))
    _, _, right, bottom = draw.multiline_textbbox((0, 0), text, font)
    return math.ceil(right), math.ceil(bottom)


def _wrap(text: str, width: int, font: _Font) -> str:
    """The text with a line break wherever the next word would pass the width (pixels)."""
    lines: list[str] = []
    for word in text.split():
        if lines and _extent(f"{lines[-1]} {word}", font)[0] <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def _enlarged(image: Tensor, cell_h: int, cell_w: int) -> Image.Image:
    """A uint8 image `[C, h, w]` in RGB, enlarged by the largest whole factor that fits the cell."""
    _, height, width = image.shape
    factor = min(cell_h // height, cell_w // width)
    size = width * factor, height * factor
    return picture(image).resize(size, Image.Resampling.NEAREST)
