"""`calculate_metrics.py calc`: measure a folder of images against another, or a reference file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from tqdm import tqdm

from commands.cli import check_folder, chosen
from commands.files import check_new
from commands.ref import dataset_statistics
from datautils.imagedir import ImageDir
from datautils.loading import load_batches
from metrics.features import DISTANCES, Detector, detectors_for
from metrics.frechet import frechet_distance
from metrics.pixel import check_size, psnr, ssim
from metrics.records import Mean
from metrics.report import UNITS, shown
from metrics.results import write_metrics
from metrics.statistics import load_reference
from runtime import distributed
from runtime.errors import DataError, data_errors, one_sentence_errors
from runtime.tables import table

_PAIRED = {"psnr": psnr, "ssim": ssim}
_FRECHET = tuple(metric for metric, (_, projected) in DISTANCES.items() if not projected)


@dataclass
class Calculation:
    """The options of `calc`, in the words of its help text."""

    images: Path
    ref: Path
    metrics: str
    detectors: tuple[str, ...]
    any_count: bool
    size: int | None
    outdir: Path | None
    batch: int
    workers: int

    def run(self) -> None:
        """Measure on all processes; the first prints the table and writes metrics.json."""
        with distributed.process_group() as device:
            with one_sentence_errors():
                self._build(device)
            with data_errors():
                values = self._paired() | self._distances(device)
            if distributed.rank():
                return
            rows = [[name, shown(name, values[name]["mean"]), len(self.dataset)] for name in values]
            print(table(["metric", "value", "images"], rows))
            if self.outdir:
                write_metrics(self.outdir, {"units": UNITS, "values": values}, self._settings())
                print(f"results: {self.outdir}")

    def _build(self, device: torch.device) -> None:
        self.names = chosen("metric", self.metrics, (*_PAIRED, *_FRECHET))
        if not self.names:
            raise ValueError(
                f"--metrics names none: give some of {', '.join((*_PAIRED, *_FRECHET))}"
            )
        of_images = self.ref.is_dir() or self.ref.suffix == ".zip"
        if not of_images:
            self._open_reference()
        self.dataset = ImageDir(self.images, size=self.size, labels="none")
        _ = self.dataset[0]
        check_size(self.names, self.dataset.image_shape)
        if self.outdir:
            check_folder(self.outdir)
            check_new(self.outdir)
        self.detectors_by_metric = detectors_for(
            [name for name in self.names if name in DISTANCES],
            self.detectors,
            device,
            self.dataset.image_shape,
        )
        if self.detectors_by_metric:
            _check_several(self.dataset)
        self.other: ImageDir | None = None
        if of_images:
            self.other = ImageDir(self.ref, size=self.size, labels="none")
            self._check_images(self.other)
        else:
            self._check_reference()

    def _check_images(self, other: ImageDir) -> None:
        if other.image_shape != self.dataset.image_shape:
            raise ValueError(
                f"{self.ref} has images {other.image_shape}, and {self.images} has "
                f"{self.dataset.image_shape}: give --size"
            )
        if self.detectors_by_metric:
            _check_several(other)
        if self.detectors_by_metric and len(other) != len(self.dataset) and not self.any_count:
            raise ValueError(
                f"{self.ref} has {len(other)} images, and {self.images} has {len(self.dataset)}: "
                "Fréchet distances depend on the number, accept with --any-count"
            )
        if any(name in _PAIRED for name in self.names):
            _check_pairs(self.dataset, other)

    def _open_reference(self) -> None:
        paired = [name for name in self.names if name in _PAIRED]
        if paired and self.ref.exists():
            raise ValueError(
                f"{', '.join(paired)} compares image with image: {self.ref} must be a folder or a "
                "zip file of images"
            )
        self.reference = load_reference(self.ref)

    def _check_reference(self) -> None:
        for detector in self.detectors_by_metric.values():
            self.reference.check(
                detector,
                images=len(self.dataset),
                image_shape=self.dataset.image_shape,
                allow_any_count=self.any_count,
            )

    def _distances(self, device: torch.device) -> dict[str, dict[str, Any]]:
        detectors = list(self.detectors_by_metric.values())
        if not detectors:
            return {}
        mine = self._statistics(self.dataset, detectors, device)
        theirs = self._statistics(self.other, detectors, device) if self.other else {}
        values = {}
        for metric, detector in self.detectors_by_metric.items():
            own = mine[detector.name]
            if self.other:
                reference = theirs[detector.name]
                value = frechet_distance(
                    own.mean, own.covariance, reference.mean, reference.covariance
                )
            else:
                value = self.reference.distance(detector.name, own)
            values[metric] = {"mean": value, "count": own.count}
        return values

    def _statistics(
        self, dataset: ImageDir, detectors: Sequence[Detector], device: torch.device
    ) -> dict:
        return dataset_statistics(
            dataset, detectors, len(dataset), self.batch, self.workers, device, dataset.path.name
        )

    def _paired(self) -> dict[str, dict[str, Any]]:
        """PSNR and SSIM of images with the same name, a share of them on each process."""
        names = [name for name in self.names if name in _PAIRED]
        if not names or self.other is None:
            return {}
        own = range(distributed.rank(), len(self.dataset), distributed.world_size())
        batches = [own[i : i + self.batch] for i in range(0, len(own), self.batch)]
        pairs = zip(
            load_batches(self.dataset, batches, self.workers),
            load_batches(self.other, batches, self.workers),
            strict=True,
        )
        values: dict[str, list[float]] = {name: [] for name in names}
        silent = distributed.rank() != 0
        for (a, _), (b, _) in tqdm(pairs, "pairs", len(batches), disable=silent):
            for name in names:
                values[name] += _PAIRED[name](a, b).tolist()
        shares = distributed.gather(values)
        means = {name: Mean() for name in names}
        for name, mean in means.items():
            for value in (value for share in shares for value in share[name]):
                mean.add(value)
        return {name: mean.result() for name, mean in means.items()}

    def _settings(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        files = {d.name: d.sha256 for d in self.detectors_by_metric.values()}
        return options | {"processes": distributed.world_size(), "detector_files": files}


def _check_several(dataset: ImageDir) -> None:
    if len(dataset) < 2:
        raise DataError(f"{dataset.path} has one image: a Fréchet distance needs at least 2")


def _check_pairs(first: ImageDir, second: ImageDir) -> None:
    if len(first) != len(second):
        raise DataError(
            f"{second.path} has {len(second)} images, and {first.path} has {len(first)}: psnr and "
            "ssim need pairs"
        )
    for a, b in zip(first.names, second.names, strict=True):
        if PurePosixPath(a).with_suffix("") != PurePosixPath(b).with_suffix(""):
            raise DataError(f"{first.path} has {a} where {second.path} has {b}: no pair")
