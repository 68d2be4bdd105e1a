"""`calculate_metrics.py ref`: statistics of a data set's features, to compare restorations with."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from commands.cli import check_folder
from datautils import ImageDataset, get_dataset
from datautils.loading import load_batches
from metrics.features import Detector, load_detector
from metrics.statistics import FeatureStatistics, save_reference
from runtime import distributed, signals
from runtime.errors import data_errors, one_sentence_errors


@dataclass
class ReferenceStatistics:
    """The options of `ref`, in the words of its help text."""

    data: str
    data_opt: dict[str, Any]
    split: str
    dest: Path
    images: int | None
    detectors: tuple[str, ...]
    batch: int
    workers: int

    def run(self) -> None:
        """Compute the statistics on all processes and write them from the first."""
        with distributed.process_group() as device:
            with one_sentence_errors():
                dataset, detectors, count = self._build(device)
            with data_errors():
                start = time.perf_counter()
                statistics = dataset_statistics(
                    dataset, detectors, count, self.batch, self.workers, device
                )
                if distributed.rank() == 0:
                    self._save(dataset, detectors, statistics)
                    speed = count / (time.perf_counter() - start)
                    print(f"{count} images at {speed:.1f} images/s")
                    print(f"reference statistics: {self.dest}")

    def _build(self, device: torch.device) -> tuple[ImageDataset, list[Detector], int]:
        if self.dest.suffix != ".safetensors":
            raise ValueError(f"--dest {self.dest} must end in .safetensors")
        if self.dest.exists():
            raise ValueError(f"--dest {self.dest} is there already: remove it or choose another")
        check_folder(self.dest.parent)
        dataset = get_dataset(self.data, self.split, **self.data_opt)
        count = checked_count(self.images, dataset, self.data)
        if count < 2:
            raise ValueError(f"a covariance needs at least 2 images, not {count}")
        shape = dataset.image_shape
        detectors = [load_detector(spec, device, shape) for spec in self.detectors]
        _ = dataset[0]  # a broken data set shows before the work begins
        return dataset, detectors, count

    def _save(
        self,
        dataset: ImageDataset,
        detectors: Sequence[Detector],
        statistics: Mapping[str, FeatureStatistics],
    ) -> None:
        provenance = {
            "data": self.data,
            "data_opt": {key: str(value) for key, value in self.data_opt.items()},
            "split": self.split,
            "image_shape": list(dataset.image_shape),
            "source": getattr(dataset, "description", None),
        }
        save_reference(self.dest, {d.name: (statistics[d.name], d) for d in detectors}, provenance)


def dataset_statistics(
    dataset: ImageDataset,
    detectors: Sequence[Detector],
    count: int,
    batch: int,
    workers: int,
    device: torch.device,
    title: str = "features",
) -> dict[str, FeatureStatistics]:
    """Statistics of the first `count` images by name of the detector, over all processes.

    Images are loaded by `workers` processes meanwhile and never kept.
    """
    rank = distributed.rank()
    indices = range(rank, count, distributed.world_size())
    statistics = {detector.name: FeatureStatistics() for detector in detectors}
    with tqdm(total=len(indices), unit="img", desc=title, disable=rank != 0) as bar:
        for images, _ in load_batches(dataset, _batches(indices, batch), workers):
            signals.heed_termination()
            images = images.to(device, non_blocking=True)
            for detector in detectors:
                statistics[detector.name].update(detector(images))
            bar.update(len(images))
    return {
        detector.name: statistics[detector.name].reduced(distributed.sum_tensor, detector.features)
        for detector in detectors
    }


def checked_count(images: int | None, dataset: ImageDataset, name: str) -> int:
    """Images to take of a data set, all where it is not said. ValueError where it has fewer."""
    if images is not None and images > len(dataset):
        raise ValueError(f"--images {images}: {name} has only {len(dataset)}")
    return images or len(dataset)


def _batches(indices: range, batch: int) -> Iterator[Sequence[int]]:
    for start in range(0, len(indices), batch):
        yield indices[start : start + batch]
