"""How metrics are called, shown and compared in tables, and `grid.png`."""

import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.detectors import DISTANCES
from metrics.images import write_grid
from metrics.statistics import KEPT

UNITS = {
    "psnr": "dB, uint8 images, peak 255",
    "ssim": "at most 1, uint8 images",
    "lpips": "LPIPS 0.1 by AlexNet, uint8 images",
    "lpips_vgg": "LPIPS 0.1 by VGG16, uint8 images",
    "st_lpips": "shift-tolerant LPIPS by AlexNet, uint8 images",
    "consistency": "mean of (y − Hx)² over the existing rows of y, images in [-1, 1]",
    "fid": "Fréchet distance of Inception-2015 features of uint8 images",
    "fd": "Fréchet distance of the features of the detector named in the settings",
    "kid": "unbiased kernel distance (cubic, all pairs) of Inception-2015 features of the first "
    f"{KEPT} images",
    "kd": "the same of the features of the detector named in the settings",
    "cfid": "fid of the images projected onto y",
    "cfd": "fd of the images projected onto y",
    "calibration": "statistics of samples (docs/metrics.md); squared errors and variances in "
    "levels of uint8, 0 to 255",
    "seconds_per_image": "s",
    "stages": "s an image on each process: load (images, operators, y), restore, metrics with "
    "features, and write run beside each other",
}  # fmt: skip

RISING = ("psnr", "ssim")  # of the others lower is better

COMPILING = " (compiling included)"  # seconds of a compiled network

Cell = Mapping[str, Any]


def units(compiled: bool) -> dict[str, str]:
    """`UNITS`, of an evaluation whose network was compiled or not."""
    return UNITS | {"seconds_per_image": f"s{COMPILING * compiled}"}


def metrics_rows(
    values: Mapping[str, Mapping[str, Cell]],
    metrics: Sequence[str],
    compiled: bool = False,
    intervals: bool = False,
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of a table of {degradation: {method: cell}}.

    A cell holds for each metric {"mean": ...} (`value_of`), evaluations (NFE), seconds_per_image,
    and, where a sampler differentiates its denoiser, backward_passes (VJP). compiled: the seconds
    hold the compilation of the network. intervals: means stand with their 95 % intervals.
    """
    cells = [cell for methods in values.values() for cell in methods.values()]
    costs = {"evaluations": "NFE"}
    if any(cell.get("backward_passes") for cell in cells):
        costs["backward_passes"] = "VJP"
    counts = {metric: cells[0][metric]["count"] for metric in metrics if metric in DISTANCES}
    titles = [title_of(metric, counts.get(metric)) for metric in metrics]
    headers = ["degradation", "method", *titles, *costs.values(), f"s/image{COMPILING * compiled}"]
    lines = []
    for degradation, methods in values.items():
        for method, cell in methods.items():
            means = [value_of(metric, cell[metric], intervals) for metric in metrics]
            took = [format(cell[cost], ".4g") for cost in costs]
            seconds = f"{cell['seconds_per_image']:.3f}"
            lines.append([degradation, method, *means, *took, seconds])
    return headers, lines


def title_of(metric: str, count: int | None = None) -> str:
    """What a metric of `count` images is called in tables, such as ST-LPIPS."""
    other = {"psnr": "PSNR (dB)", "consistency": "consistency"}
    title = other.get(metric, metric.replace("_", "-").upper())
    return title if count is None else f"{title} of {count} images"


def best_of(means: Mapping[Any, float], metric: str) -> set[Any]:
    """The keys of the best of these means, all that are equal."""
    top = (max if metric in RISING else min)(means.values(), default=None)
    return {key for key, mean in means.items() if mean == top}


def value_of(metric: str, value: Cell, interval: bool = False) -> str:
    """A mean as text: with its 95 % interval `low` to `high` if asked for, where it has one, and
    with the number of identical images (`infinite`) that are left out of it."""
    text = shown(metric, value["mean"])
    if interval and math.isfinite(value.get("low", math.nan)):
        text += f" [{shown(metric, value['low'])}, {shown(metric, value['high'])}]"
    if (equal := value.get("infinite")) and value["count"]:
        text += f" ({equal} more identical)"
    return text


def shown(metric: str, value: float) -> str:
    """A value with the digits usual for its metric, at least three if it is not 0."""
    if 0 < abs(value) < 0.01:
        return format(value, ".2e")
    usual = "#.3g" if 0 < abs(value) < 1 else ".2f"
    return format(value, {"consistency": ".2e", "ssim": ".3f"}.get(metric, usual))


def write_pictures(
    path: Path,
    pictures: Mapping[tuple[str, int], Mapping[str, Tensor]],
    degradations: Sequence[str],
    most: int = 12,
) -> list[Path]:
    """Write grids with a row for each (degradation, image) and a column for each restoration.

    A grid has at most `most` rows: where that is too few the next ones are called grid-2.png,
    grid-3.png ... The paths of all are returned.
    """
    keys = sorted(pictures, key=lambda key: (degradations.index(key[0]), key[1]))
    columns = ["original", "measurement"]
    columns += [name for name in pictures[keys[0]] if name not in columns]
    paths = []
    for number, page in enumerate(_pages(keys, most), 1):
        cells = [[pictures[key].get(name) for name in columns] for key in page]
        labels = [f"{degradation}\nimage {index}" for degradation, index in page]
        paths.append(path if number == 1 else path.with_stem(f"{path.stem}-{number}"))
        write_grid(paths[-1], cells, columns, labels)
    return paths


def _pages(keys: Sequence[tuple[str, int]], most: int) -> list[list[tuple[str, int]]]:
    """The rows of each page: all of a degradation on one page if they fit."""
    pages: list[list[tuple[str, int]]] = []
    for _, group in itertools.groupby(keys, lambda key: key[0]):
        rows = list(group)
        if pages and len(pages[-1]) + len(rows) <= most:
            pages[-1] += rows
        else:
            pages += [rows[i : i + most] for i in range(0, len(rows), most)]
    return pages
