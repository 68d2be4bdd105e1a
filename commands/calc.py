"""`calculate_metrics.py calc`: measure a folder of images against another, or a reference file."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from commands.cli import chosen
from commands.files import RESULTS, check_new, publish, working_folder
from commands.options import CalcOptions
from datautils.imagedir import ImageDir
from datautils.loading import load_batches
from metrics.dataset import dataset_statistics
from metrics.features import DISTANCES, Detector, detectors_for
from metrics.means import summaries
from metrics.perceptual import PERCEPTUAL, check_perceptual, perceptual
from metrics.pixel import check_size, psnr, ssim
from metrics.report import UNITS, shown
from metrics.results import write_metrics
from metrics.statistics import Moments, Reference, load_reference
from runtime import distributed
from runtime.errors import DataError, data_errors, one_sentence_errors
from runtime.progress import progress
from runtime.tables import table

_PAIRED = ("psnr", "ssim", *PERCEPTUAL)
_OF_SETS = tuple(metric for metric, found in DISTANCES.items() if not found.projected)


@dataclass(frozen=True)
class Comparison:
    """What is compared, once everything about it is checked."""

    names: list[str]
    """Metrics."""
    images: ImageDir
    other: ImageDir | Reference
    detectors: Mapping[str, Detector]
    """By metric."""


def calculate(options: CalcOptions) -> None:
    """Measure on all processes; the first prints the table and writes metrics.json."""
    with distributed.process_group() as device:
        with one_sentence_errors():
            comparison = _build(options, device)
        with data_errors(), ExitStack() as stack:
            folder = options.outdir and stack.enter_context(working_folder(options.outdir, RESULTS))
            values = _paired(options, comparison, device) | _distances(options, comparison, device)
            if distributed.rank():
                return
            print(table(["metric", "value", "95 % interval", "images"], _rows(values)))
            if options.outdir and folder:
                record = {"units": UNITS, "values": values}
                write_metrics(folder, record, _settings(options, comparison))
                publish(folder, options.outdir, ["metrics.json"])
                print(f"results: {options.outdir}")


def _build(options: CalcOptions, device: torch.device) -> Comparison:
    names = chosen("metric", options.metrics, (*_PAIRED, *_OF_SETS))
    if not names:
        raise ValueError(f"--metrics names none: give some of {', '.join((*_PAIRED, *_OF_SETS))}")
    of_images = options.ref.is_dir() or options.ref.suffix == ".zip"
    reference = None if of_images else _reference(options.ref, names)
    images = ImageDir(options.images, size=options.size, labels="none")
    _tell_of_folders(images)
    _ = images[0]
    check_size(names, images.image_shape)
    check_perceptual(names, device, images.image_shape)
    if options.outdir:
        check_new(options.outdir, RESULTS)
    measured = [name for name in names if name in DISTANCES]
    detectors = detectors_for(
        measured, options.detectors, device, images.image_shape, options.trust_detector
    )
    if detectors:
        _check_several(images)
    if reference:
        for metric, detector in detectors.items():
            kernel = DISTANCES[metric].kernel
            reference.check(detector, len(images), images.image_shape, options.any_count, kernel)
        return Comparison(names, images, reference, detectors)
    other = ImageDir(options.ref, size=options.size, labels="none")
    comparison = Comparison(names, images, other, detectors)
    _check_images(options, comparison, other)
    return comparison


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


def _reference(path: Path, names: Sequence[str]) -> Reference:
    paired = [name for name in names if name in _PAIRED]
    if paired and path.exists():
        raise ValueError(
            f"{', '.join(paired)} compares image with image: {path} must be a folder or a zip file "
            "of images"
        )
    return load_reference(path)


def _check_images(options: CalcOptions, comparison: Comparison, other: ImageDir) -> None:
    images = comparison.images
    if other.image_shape != images.image_shape:
        raise ValueError(
            f"{options.ref} has images {other.image_shape}, and {options.images} has "
            f"{images.image_shape}: give --size"
        )
    if comparison.detectors:
        _check_several(other)
    frechet = any(not DISTANCES[metric].kernel for metric in comparison.detectors)
    if frechet and len(other) != len(images) and not options.any_count:
        raise ValueError(
            f"{options.ref} has {len(other)} images, and {options.images} has {len(images)}: "
            "Fréchet distances depend on the number, accept with --any-count"
        )
    if any(name in _PAIRED for name in comparison.names):
        _check_pairs(images, other)


def _distances(
    options: CalcOptions, comparison: Comparison, device: torch.device
) -> dict[str, dict[str, Any]]:
    detectors = list({d.name: d for d in comparison.detectors.values()}.values())  # fd, kd share
    if not detectors:
        return {}

    def statistics(images: ImageDir) -> dict:
        return dataset_statistics(
            images,
            detectors,
            len(images),
            options.batch,
            options.workers,
            device,
            images.path.name,
            any(DISTANCES[metric].kernel for metric in comparison.detectors),
        )

    mine, other = statistics(comparison.images), comparison.other
    if isinstance(other, ImageDir):
        theirs = {
            name: Moments(found.mean, found.covariance, features=found.features)
            for name, found in statistics(other).items()
        }
    else:
        theirs = other.detectors
    values = {}
    for metric, detector in comparison.detectors.items():
        own = mine[detector.name]
        value = theirs[detector.name].distance(own, DISTANCES[metric].kernel)
        values[metric] = {"mean": value, "count": own.count}
    return values


def _paired(
    options: CalcOptions, comparison: Comparison, device: torch.device
) -> dict[str, dict[str, Any]]:
    """Values of pairs of images with the same name, a share of them on each process."""
    names = [name for name in comparison.names if name in _PAIRED]
    if not names or not isinstance(comparison.other, ImageDir):
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
            rows.append([name, "identical", "-", str(equal)])
            continue
        of = f"{count}, {equal} more identical" if equal else str(count)
        rows.append([name, shown(name, cell["mean"]), " to ".join(ends) or "-", of])
    return rows


def _settings(options: CalcOptions, comparison: Comparison) -> dict[str, Any]:
    files = {d.name: d.sha256 for d in comparison.detectors.values()}
    return asdict(options) | {"processes": distributed.world_size(), "detector_files": files}


def _check_several(dataset: ImageDir) -> None:
    if len(dataset) < 2:
        raise DataError(f"{dataset.path} has one image: a Fréchet distance needs at least 2")


def _check_pairs(first: ImageDir, second: ImageDir) -> None:
    if len(first) != len(second):
        raise DataError(
            f"{second.path} has {len(second)} images, and {first.path} has {len(first)}: "
            f"{', '.join(_PAIRED)} need pairs"
        )
    for a, b in zip(first.names, second.names, strict=True):
        if PurePosixPath(a).with_suffix("") != PurePosixPath(b).with_suffix(""):
            raise DataError(f"{first.path} has {a} where {second.path} has {b}: no pair")
