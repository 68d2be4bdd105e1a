"""An evaluation, of restored images or of drawn ones: what it consists of, and how it runs."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from commands import methods
from commands.calibrate import sample_file
from commands.methods import Restorer
from commands.options import GenOptions
from commands.results import IMAGES, results_of, working_folder
from datautils import ImageDataset
from degradation import Family, Noise
from metrics.detectors import DISTANCES
from metrics.evaluate import Restore, Restored, restorations
from metrics.images import ImageWriter
from metrics.measure import PER_IMAGE, Measure, Share
from metrics.page import write_report
from metrics.pipeline import Stage
from metrics.results import PartialRecords
from metrics.sampled import SampleRecords
from metrics.statistics import Distances, FeatureStatistics, compared
from runtime import distributed, signals
from runtime.errors import one_sentence_errors
from runtime.progress import progress
from samplers.base import whole

T = TypeVar("T")


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation consists of, once everything about it is checked."""

    options: GenOptions
    device: torch.device
    families: dict[str, Family]
    noise: Noise
    dataset: ImageDataset
    count: int
    names: list[str]  # metrics
    distances: Distances
    methods: dict[str, Restore]  # restorations by title: baselines, then networks with samplers
    restorers: dict[str, Restorer]  # those of them with a network
    precision: str
    samples: dict[str, int]  # of each image, by the titles of the methods that draw several
    pictures: int  # images of each family to show

    def restored(
        self, methods: Mapping[str, Restore], indices: Sequence[int], **more: Any
    ) -> Iterator[Restored]:
        """Restore these images under each family with each method; more: as of `restorations`."""
        options = self.options
        return restorations(
            self.dataset, self.families, methods, noise=self.noise, indices=indices,
            batch=options.batch, seed=options.seed, device=self.device, **more,
        )  # fmt: skip


def run(
    options: GenOptions,
    build: Callable[[GenOptions, torch.device], Evaluation],
    finish: Callable[[Evaluation, Path, Measure, SampleRecords], T],
) -> T:
    """Build an evaluation, make it in a working folder, and finish it, on all processes."""
    with distributed.process_group() as device:
        with one_sentence_errors():
            evaluation = build(options, device)
        with working_folder(options.outdir, results_of(options), resumes=True) as folder:
            found = finish(evaluation, folder, *_measured(evaluation, folder))
        if distributed.rank() == 0:
            if options.degradations:
                write_report(options.outdir)
            print(f"results: {options.outdir}")
        return found


def _measured(evaluation: Evaluation, folder: Path) -> tuple[Measure, SampleRecords]:
    """This process's share: loading, restoring, measuring and writing run side by side."""
    options, device = evaluation.options, evaluation.device
    rank, start = distributed.rank(), time.perf_counter()
    restores = bool(options.degradations)
    title, unit = ("restoring", "restorations") if restores else ("drawing", "images")
    indices = range(rank, evaluation.count, distributed.world_size())
    kept = methods.kept(evaluation.methods, options, folder, evaluation.families.values())
    workers = options.workers * restores  # where images are drawn, nothing is loaded
    stream = evaluation.restored(kept, indices, workers=workers, samples=evaluation.samples)
    total = len(indices) * len(evaluation.families) * len(evaluation.methods)
    per_image = [name for name in evaluation.names if name in PER_IMAGE]
    loading = further = 0.0
    with (
        progress(total, title, unit, silent=rank != 0) as bar,
        PartialRecords(folder / f"{rank}.csv", per_image) as records,
        SampleRecords(folder / sample_file(rank), options.samples) as samples,
        ImageWriter(folder / IMAGES) as writer,
    ):
        measure = Measure(
            records, evaluation.names, evaluation.distances.detectors, device, evaluation.pictures,
            writer if options.save_images else None,
        )  # fmt: skip

        def work(restored: Restored) -> None:
            measure(restored)
            samples(restored)

        with Stage(work, device) as stage:
            waited = time.perf_counter()
            for restored in stream:
                signals.heed_termination()
                more = restored.samples.seconds if restored.samples else 0.0
                took = restored.seconds + more  # of an earlier run, if that was cut off
                loading += max(0.0, time.perf_counter() - waited - took)
                further += more
                if family := restored.group.degradation:
                    bar.set_postfix(family=family, method=restored.method, refresh=False)
                stage.put(restored)
                bar.update(len(restored.group.indices))
                waited = time.perf_counter()
    restoring = sum(costs["seconds"] for costs in measure.share.costs.values()) + further
    measure.share.seconds = {
        "load": loading, "restore": restoring, **measure.share.seconds, "write": writer.seconds,
        "total": time.perf_counter() - start,
    }  # fmt: skip
    return measure, samples


def gathered(
    evaluation: Evaluation, measure: Measure
) -> tuple[list[Share], dict[tuple[str, str], dict[str, Any]]]:
    """What all processes found, and for each degradation and method the distances of sets, on the
    first process, and what an image took. A distance is NaN if a restoration was not finite."""
    shares: list[Share] = distributed.gather(measure.share)
    cells: dict[tuple[str, str], dict[str, Any]] = {}
    for key in itertools.product(evaluation.families, evaluation.methods):
        cell: dict[str, Any] = {}
        for metric, detector in evaluation.distances.detectors.items():
            empty = FeatureStatistics(DISTANCES[metric].kernel)
            own = measure.statistics.get((*key, metric), empty)
            total = own.reduced(distributed.sum_tensor, detector.features)
            if distributed.rank() == 0:  # roots of large matrices: once is enough
                failed = any(share.failed[key] for share in shares)
                mean = math.nan if failed else evaluation.distances.value(metric, total)
                cell[metric] = {"mean": mean, "count": compared(metric, evaluation.count)}
        took = [share.costs[key] for share in shares if key in share.costs]
        for name in methods.COSTS:
            cell[name] = whole(sum(costs[name] for costs in took) / evaluation.count)
        cell["seconds_per_image"] = sum(costs["seconds"] for costs in took) / evaluation.count
        cells[key] = cell
    return shares, cells


def stages_of(evaluation: Evaluation, shares: Sequence[Share]) -> dict[str, float]:
    """Seconds that an image took in each stage."""
    total = evaluation.count * len(evaluation.families) * len(evaluation.methods)
    return {stage: sum(s.seconds[stage] for s in shares) / total for stage in shares[0].seconds}


def settings_of(evaluation: Evaluation) -> dict[str, Any]:
    """What metrics.json says of options and methods."""
    samplers = {name: asdict(r.sampler) for name, r in evaluation.restorers.items()}  # type: ignore[call-overload]
    options = evaluation.options
    return asdict(options) | {
        "images": evaluation.count,
        "split": getattr(evaluation.dataset, "split", options.split),
        "metrics": ",".join(evaluation.names),
        "precision": evaluation.precision,
        "processes": distributed.world_size(),
        "samplers": samplers,
        "detector_files": evaluation.distances.provenance(),
    }
