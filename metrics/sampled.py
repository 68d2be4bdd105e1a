"""Several samples of each image, measured as they come: rows, calibration by method, pictures."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from degradation import Draws
from metrics.calibration import FEWEST, conformal_scale, coverages, names, statistics, tarp_curve
from metrics.evaluate import Restored
from metrics.examples import Key
from metrics.means import interval, resampled_means
from metrics.report import shown
from metrics.results import PartialRecords
from runtime.files import replacing
from runtime.tables import table

_SHOWN = {
    "mean_psnr": "PSNR of mean", "spread_error": "spread / error", "rank_spread": "rank spread",
    "coverage_50": "in 50 %", "coverage_90": "in 90 %", "coverage_95": "in 95 %",
    "tarp_spread": "TARP spread",
}  # fmt: skip


class SampleRecords(PartialRecords):
    """Takes in restored groups one by one; those with samples get rows in a file of this process.

    histograms: of ranks and of TARP's ranks, float64 `[2, K + 1]` on the CPU, sums over the images.
    """

    def __init__(self, path: Path, count: int):
        self.names = names(count)
        self.histograms: defaultdict[Key, Tensor] = defaultdict(
            lambda: torch.zeros(2, count + 1, dtype=torch.float64)
        )
        super().__init__(path, self.names)

    @torch.no_grad()
    def __call__(self, restored: Restored) -> None:
        """Measure the samples of a group. Images with one that is not finite get no values."""
        if restored.samples is None:
            return
        group, n = restored.group, len(restored.group.indices)
        images, truth = restored.samples.images[:, :n], restored.truth[:n]
        reference = 255 * Draws(group.seeds, truth.device).uniform(truth.shape[1:], "tarp")
        found = {name: v.cpu() for name, v in statistics(images, truth, reference).items()}
        finite = restored.samples.finite[:n].cpu()
        histograms = torch.stack([found.pop("rank_histogram"), found.pop("tarp_histogram")])
        key = group.degradation, restored.method
        self.histograms[key] += histograms[:, finite].sum(1)
        values = {name: v.masked_fill(~finite, torch.nan).tolist() for name, v in found.items()}
        self.add(group, restored.method, values)


def calibration(
    cell: Mapping[str, Any], values: Mapping[str, Sequence[float]], histograms: Tensor
) -> dict[str, Any]:
    """What metrics.json says of the samples of a method on a degradation.

    cell: means and intervals of values of images; histograms: `[2, K + 1]`, as of SampleRecords.
    """
    count = histograms.shape[1] - 1
    ratios = np.array([values["variance"], values["squared_error"]]).T
    with np.errstate(invalid="ignore", divide="ignore"):
        several = np.sqrt((1 + 1 / count) * np.divide(*resampled_means(ratios).T))
        ratio = np.sqrt((1 + 1 / count) * np.divide(*ratios.mean(0)))
    low, high = interval(several[:, None])[:, 0].tolist()
    levels, covered = tarp_curve(histograms[1])
    return {
        "samples": count,
        **cell,
        "spread_error": {"mean": ratio.item(), "low": low, "high": high},
        "rank_histogram": (histograms[0] / histograms[0].sum()).tolist(),
        "tarp": {"levels": levels.tolist(), "coverage": covered.tolist()},
        "conformal_scale_90": conformal_scale(values["scale_90"]),
    }


def calibration_table(found: Mapping[str, Mapping[str, Mapping[str, Any]]]) -> str:
    """{degradation: {method: calibration}} as text."""
    cells = [cell for methods in found.values() for cell in methods.values()]
    columns = {name: title for name, title in _SHOWN.items() if name in cells[0]}
    headers = ["degradation", "method", *columns.values(), "scale for 90 %"]
    lines = [
        [degradation, method, *(shown("psnr", cell[name]["mean"]) for name in columns)]
        + [shown("psnr", cell["conformal_scale_90"])]
        for degradation, methods in found.items()
        for method, cell in methods.items()
    ]
    fewest = min(cell["variance"]["count"] for cell in cells)
    note = f"\nthe scale for 90 % takes {FEWEST} images, here are {fewest}" * (fewest < FEWEST)
    return table(headers, lines) + note


def write_calibration(
    path: Path,
    method: str,
    cells: Mapping[str, Mapping[str, Any]],
    values: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """A picture of a method's calibration, as PNG: its cells and values of images, by degradation.

    Ranks, coverage, TARP, and the spread of each image against its error; grey lines are what
    samples of the posterior have.
    """
    import matplotlib.pyplot as plt  # slow to import

    figure, axes = plt.subplots(1, 4, figsize=(16, 4), layout="constrained")
    ranks, central, tarp, spread = axes
    for i, (degradation, cell) in enumerate(cells.items()):
        style = {"color": f"C{i}", "label": degradation}
        count = cell["samples"]
        histogram = torch.tensor(cell["rank_histogram"], dtype=torch.float64)
        ranks.stairs((count + 1) * histogram, np.linspace(0, 1, count + 2), linewidth=1.5, **style)
        levels, inside = 100 * np.reshape(coverages(histogram), (-1, 2)).T
        central.plot(levels, inside, ".-", **style)
        tarp.plot(cell["tarp"]["levels"], cell["tarp"]["coverage"], ".-", markersize=3, **style)
        deviation = np.sqrt((1 + 1 / count) * np.array(values[degradation]["variance"]))
        error = np.sqrt(np.array(values[degradation]["squared_error"]))
        spread.scatter(deviation, error, s=8, alpha=0.6, **style)
    ranks.axhline(1, color="grey", linewidth=1)
    ranks.set(xlabel="rank of the true pixel", ylabel="density", title="Ranks", ylim=(0, None))
    central.plot((0, 100), (0, 100), color="grey", linewidth=1)
    central.set(xlabel="interval (%)", ylabel="truth inside (%)", title="Central intervals")
    tarp.plot((0, 1), (0, 1), color="grey", linewidth=1)
    tarp.set(xlabel="credibility level", ylabel="expected coverage", title="TARP")
    spread.axline((0, 0), slope=1, color="grey", linewidth=1)
    spread.set(xlabel="spread of the samples (levels)", ylabel="error of their mean (levels)")
    spread.set_title("Spread and error of images")
    for each in axes:
        each.grid(alpha=0.3)
    ranks.legend(fontsize="small")
    figure.suptitle(f"{method}, {next(iter(cells.values()))['samples']} samples")
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=110, format="png")
    plt.close(figure)
