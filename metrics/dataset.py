"""The images of a data set taken in: statistics of their features, or one tensor of them."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from datautils import ImageDataset
from datautils.loading import load_batches
from metrics.detectors import Detector
from metrics.pixel import to_float
from metrics.statistics import FeatureStatistics, Moments
from runtime import distributed, signals
from runtime.progress import progress

LIMIT = 4096  # values of an image: a covariance has their square
_BATCH = 64


def dataset_statistics(
    dataset: ImageDataset,
    detectors: Sequence[Detector],
    count: int,
    batch: int,
    workers: int,
    device: torch.device,
    title: str = "features",
    keep: bool = True,
) -> dict[str, Moments]:
    """Statistics of the first `count` images by name of the detector, over all processes.

    Images are loaded by `workers` processes meanwhile and never kept. keep: the features of the
    first ones are, for kernel distances.
    """
    indices = range(distributed.rank(), count, distributed.world_size())
    statistics = {detector.name: FeatureStatistics(keep) for detector in detectors}
    for images, own in _loaded(dataset, indices, batch, workers, title):
        images = images.to(device, non_blocking=True)
        for detector in detectors:
            statistics[detector.name].update(detector(images), own)
    return {
        detector.name: statistics[detector.name].reduced(distributed.sum_tensor, detector.features)
        for detector in detectors
    }


def load_images(dataset: ImageDataset, most: int, workers: int = 0) -> Tensor:
    """The first images of a data set, or all if it has fewer: `[n, C, h, w]` in [-1, 1]."""
    indices = range(min(most, len(dataset)))
    batches = _loaded(dataset, indices, _BATCH, workers, "images of the prior")
    return torch.cat([to_float(images) for images, _ in batches])


def _loaded(
    dataset: ImageDataset, indices: range, batch: int, workers: int, title: str
) -> Iterator[tuple[Tensor, Tensor]]:
    """Batches of uint8 images with their indices, and a bar that shows how many there were."""
    batches = [indices[i : i + batch] for i in range(0, len(indices), batch)]
    with progress(len(indices), title, "images", silent=distributed.rank() != 0) as bar:
        loaded = load_batches(dataset, batches, workers)
        for (images, _), own in zip(loaded, batches, strict=True):
            signals.heed_termination()
            yield images, torch.tensor(own)
            bar.update(len(images))


def check_values(image_shape: tuple[int, int, int], wanted: str) -> None:
    """Raise ValueError if images are too large for a full covariance."""
    if torch.Size(image_shape).numel() > LIMIT:
        raise ValueError(
            f"{wanted} needs the full covariance of an image of at most {LIMIT} values: "
            f"{image_shape} is too large"
        )
