"""`calculate_metrics.py calc`: measure a folder of images against another, or a reference file."""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import PurePosixPath
from typing import Any

import torch

from commands.checks import chosen
from commands.methods import distances_of
from commands.options import CalcOptions
from commands.results import RESULTS, check_new, working_folder
from datautils.imagedir import ImageDir
from datautils.loading import load_batches
from metrics.dataset import dataset_statistics
from metrics.detectors import DISTANCES, detectors_for
from metrics.means import summaries
from metrics.measure import check_images
from metrics.perceptual import PERCEPTUAL, perceptual
from metrics.pixel import psnr, ssim
from metrics.report import UNITS, shown, title_of
from metrics.results import write_metrics
from metrics.statistics import Distances, Moments, Reference
from runtime import distributed
from runtime.errors import DataError, one_sentence_errors
from runtime.progress import progress
from runtime.tables import table

_PAIRED = ("psnr", "ssim", *PERCEPTUAL)
_OF_SETS = tuple(metric for metric, found in DISTANCES.items() if not found.projected)


@dataclass(frozen=True)
class Comparison:
    """What is compared, once everything about it is checked."""

    names: list[str]  # metrics
    images: ImageDir
    other: ImageDir | None  # none: a file of reference statistics
    distances: Distances


def calculate(options: CalcOptions) -> None:
    """Measure on all processes; the first prints the table and writes metrics.json."""
    with distributed.process_group() as device:
        with one_sentence_errors():
            comparison = _build(options, device)
        with ExitStack() as stack:
            folder = options.outdir and stack.enter_context(working_folder(options.outdir, RESULTS))
            values = _paired(options, comparison, device) | _distances(options, comparison, device)
            if distributed.rank():
                return
            print(table(["metric", "value", "95 % interval", "images"], _rows(values)))
            if folder:
                files = {d.name: d.sha256 for d in comparison.distances.detectors.values()}
                settings = {"processes": distributed.world_size(), "detector_files": files}
                record = {"units": UNITS, "values": values}
                write_metrics(folder, record, asdict(options) | settings)
        if options.outdir:
            print(f"results: {options.outdir}")


def _build(options: CalcOptions, device: torch.device) -> Comparison:
    names = chosen("metric", options.metrics, (*_PAIRED, *_OF_SETS))
    if not names:
        raise ValueError(f"--metrics names none: give some of {', '.join((*_PAIRED, *_OF_SETS))}")
    of_images = options.ref.is_dir() or options.ref.suffix == ".zip"
    if not options.ref.exists():
        raise ValueError(
            f"{options.ref} is not there: --ref takes a folder or a zip file of images, or a "
            ".safetensors or .npz file of statistics"
        )
    paired = [name for name in names if name in _PAIRED]
    if paired and not of_images:
        raise ValueError(
            f"{', '.join(paired)} compares image with image: {options.ref} must be a folder or a "
            "zip file of images"
        )
    images = ImageDir(options.images, size=options.size, labels="none")
    _tell_of_folders(images)
    _ = images[0]
    shape = images.image_shape
    check_images(names, device, shape)
    if options.outdir:
        check_new(options.outdir, RESULTS)
    if not of_images:
        distances = distances_of(names, options, device, len(images), shape)
        return Comparison(names, images, None, distances)
    detectors = detectors_for(names, options.detectors, device, shape, options.trust_detector)
    other = ImageDir(options.ref, size=options.size, labels="none")
    if other.image_shape != shape:
        raise ValueError(
            f"{options.ref} has images {other.image_shape}, and {options.images} has {shape}: "
            "give --size"
        )
    for one in (images, other) if detectors else ():
        if len(one) < 2:
            raise DataError(f"{one.path} has one image: a Fréchet distance needs at least 2")
    frechet = any(not DISTANCES[metric].kernel for metric in detectors)
    if frechet and len(other) != len(images) and not options.any_count:
        raise ValueError(
            f"{options.ref} has {len(other)} images, and {options.images} has {len(images)}: "
            "Fréchet distances depend on the number, accept with --any-count"
        )
    if paired:
        _check_pairs(images, other)
    return Comparison(names, images, other, Distances(detectors, None))


def _tell_of_folders(images: ImageDir) -> None:
    """Say so if several folders are one set, as those of the methods that `gen` has measured."""
    parents = [PurePosixPath(name).parent for name in images.names]
    # gen keeps a thousand images in a folder, which has a number.
    sets = {str(p.parent if p.name.isdigit() else p) for p in parents}
    if len(sets) > 1 and distributed.rank() == 0:
        named = ", ".join(sorted(sets)[:3]) + " ..." * (len(sets) > 3)
        print(
            f"{images.path} holds {len(sets)} folders of images ({named}): they are measured "
            "together, as one set",
            file=sys.stderr,
        )


def _distances(
    options: CalcOptions, comparison: Comparison, device: torch.device
) -> dict[str, dict[str, Any]]:
    by_metric = comparison.distances.detectors
    detectors = list({d.name: d for d in by_metric.values()}.values())  # fd, kd share
    if not detectors:
        return {}
    kernel = any(DISTANCES[metric].kernel for metric in by_metric)

    def statistics(images: ImageDir) -> dict[str, Moments]:
        count, title = len(images), images.path.name
        return dataset_statistics(
            images, detectors, count, options.batch, options.workers, device, title, keep=kernel
        )

    mine, distances = statistics(comparison.images), comparison.distances
    if comparison.other is not None:
        theirs = Reference(comparison.other.path, statistics(comparison.other))
        distances = replace(distances, reference=theirs)
    found = {metric: mine[detector.name] for metric, detector in by_metric.items()}
    return {m: {"mean": distances.value(m, own), "count": own.images} for m, own in found.items()}


def _paired(
    options: CalcOptions, comparison: Comparison, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Values of pairs of images with the same name, a share of them on each process."""
    names = [name for name in comparison.names if name in _PAIRED]
    if not names or comparison.other is None:
        return {}
    own = range(distributed.rank(), len(comparison.images), distributed.world_size())
    batches = [own[i : i + options.batch] for i in range(0, len(own), options.batch)]
    pairs = zip(
        load_batches(comparison.images, batches, options.workers),
        load_batches(comparison.other, batches, options.workers),
        strict=True,
    )
    functions = {"psnr": psnr, "ssim": ssim}
    functions |= {name: perceptual(name, device) for name in names if name in PERCEPTUAL}
    values: dict[str, list[float]] = {name: [] for name in names}
    with progress(len(own), "pairs", "pairs", silent=distributed.rank() != 0) as bar:
        for (a, _), (b, _) in pairs:
            for name in names:
                values[name] += functions[name](a, b).tolist()
            bar.update(len(a))
    shares = distributed.gather(values)
    return summaries({name: [v for share in shares for v in share[name]] for name in names})


def _rows(values: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """Metrics, their values, and the numbers of images that they are of."""
    rows = []
    for name, cell in values.items():
        equal, count = cell.get("infinite", 0), cell["count"]
        ends = [shown(name, cell[end]) for end in ("low", "high") if end in cell and count > 1]
        if not count:
            rows.append([title_of(name), "identical", "-", str(equal)])
            continue
        of = f"{count}, {equal} more identical" if equal else str(count)
        rows.append([title_of(name), shown(name, cell["mean"]), " to ".join(ends) or "-", of])
    return rows


def _check_pairs(first: ImageDir, second: ImageDir) -> None:
    if len(first) != len(second):
        raise DataError(
            f"{second.path} has {len(second)} images, and {first.path} has {len(first)}: "
            f"{', '.join(_PAIRED)} need pairs"
        )
    for a, b in zip(first.names, second.names, strict=True):
        if PurePosixPath(a).with_suffix("") != PurePosixPath(b).with_suffix(""):
            raise DataError(f"{first.path} has {a} where {second.path} has {b}: no pair")
