"""What `calculate_metrics.py gen --samples K` adds to an evaluation."""

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from commands.methods import Restorer
from metrics.results import summarised, write_merged
from metrics.sampled import SampleRecords, calibration, write_calibration
from runtime import distributed
from samplers import MMSE

Found = dict[str, dict[str, dict[str, Any]]]  # degradation, method, statistic


def sample_counts(restorers: Mapping[str, Restorer], samples: int) -> dict[str, int]:
    """How many samples each method draws, without those that draw none, as MMSE.

    Raises ValueError if several are wanted and no method draws them.
    """
    if samples == 1:
        return {}
    found = {title: samples for title, r in restorers.items() if not isinstance(r.sampler, MMSE)}
    if not found:
        raise ValueError(f"--samples {samples}: none of the methods draws samples, add heun or dpm")
    return found


def calibrated(
    folder: Path, degradations: list[str], methods: list[str], records: SampleRecords
) -> Found:
    """Bring the processes' shares together; the first writes samples.csv and the pictures.

    Returns what metrics.json says, on the first process. Without methods there is nothing.
    """
    keys = itertools.product(degradations, methods)
    totals = {key: distributed.sum_tensor(records.histograms[key]) for key in keys}
    if distributed.rank() or not methods:
        return {}
    parts = [folder / sample_file(rank) for rank in range(distributed.world_size())]
    values = write_merged(folder / "samples.csv", parts, degradations, records.names)
    found: Found = {
        degradation: {
            method: calibration(cell, values[degradation][method], totals[degradation, method])
            for method, cell in cells.items()
        }
        for degradation, cells in summarised(values).items()
    }
    for number, method in enumerate(methods, 1):
        picture = "calibration.png" if number == 1 else f"calibration-{number}.png"
        cells = {degradation: by_method[method] for degradation, by_method in found.items()}
        own = {degradation: values[degradation][method] for degradation in found}
        write_calibration(folder / picture, method, cells, own)
    return found


def sample_file(rank: int) -> str:
    """Where a process keeps the records of its samples."""
    return f"samples-{rank}.csv"
