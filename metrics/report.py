"""What an evaluation leaves behind: a table, `metrics.json`, `per_image.csv` and `grid.png`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from metrics.evaluate import Results, summarise
from metrics.results import table, write_grid, write_metrics, write_per_image

UNITS = {
    "psnr": "dB, uint8 images, peak 255",
    "ssim": "at most 1, uint8 images",
    "consistency": "mean of (y − Hx)² over the existing rows of y, images in [-1, 1]",
    "seconds_per_image": "s",
}


def write_report(
    folder: Path,
    results: Results,
    metrics: Sequence[str],
    settings: Mapping[str, Any],
    evaluations: Mapping[str, int],
) -> str:
    """Write the result files and return the table of means as text.

    evaluations: denoiser calls for an image (NFE) by method.
    """
    summary = summarise(results, metrics)
    for methods in summary.values():
        for method, cell in methods.items():
            cell["evaluations"] = evaluations.get(method, 0)
    order = {name: i for i, name in enumerate(summary)}
    rows = sorted(results.rows, key=lambda row: (order[row["degradation"]], row["image"]))
    write_per_image(folder, rows)
    write_metrics(folder, {"units": UNITS, "values": summary}, settings)
    if results.pictures:
        _write_pictures(folder / "grid.png", results, list(order))
    return _table(summary, metrics)


def _table(summary: dict[str, dict[str, dict[str, Any]]], metrics: Sequence[str]) -> str:
    headers = ["degradation", "method", *metrics, "NFE", "s/image"]
    lines = []
    for degradation, methods in summary.items():
        for method, cell in methods.items():
            means = [_shown(metric, cell[metric]["mean"]) for metric in metrics]
            seconds = f"{cell['seconds_per_image']:.3f}"
            lines.append([degradation, method, *means, str(cell["evaluations"]), seconds])
    return table(headers, lines)


def _shown(metric: str, value: float) -> str:
    return {"psnr": f"{value:.2f}", "ssim": f"{value:.3f}"}.get(metric, f"{value:.2e}")


def _write_pictures(path: Path, results: Results, degradations: Sequence[str]) -> None:
    keys = sorted(results.pictures, key=lambda key: (degradations.index(key[0]), key[1]))
    columns = ["original", "measurement"]
    columns += [name for name in results.pictures[keys[0]] if name not in columns]
    cells = [[results.pictures[key].get(name) for name in columns] for key in keys]
    write_grid(path, cells, columns, [key[0] for key in keys])
