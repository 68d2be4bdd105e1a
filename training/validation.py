"""Held-out images while training: PSNR of the one-step MMSE estimate, Fréchet distances, pictures.

An unconditional network draws images instead, from the same noise every time. Values are the same
on every process, NaN if a restoration is not finite; Interrupted is raised where a signal comes.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from datautils import ImageDataset
from degradation import Draws, Family, Noise, Problem, derive_seed
from metrics.detectors import Detector
from metrics.evaluate import Restore, Restored, restorations
from metrics.images import write_grid
from metrics.means import mean
from metrics.pixel import psnr, to_uint8
from metrics.report import write_pictures
from metrics.statistics import FeatureStatistics, Reference
from runtime import distributed, signals
from runtime.progress import progress
from samplers import Sampler

SEED = 1  # its own, so that the operators are not those of the evaluation afterwards


@dataclass(frozen=True)
class HeldoutImages:
    """Fixed held-out images under fixed operators, so that what a run shows is comparable."""

    dataset: ImageDataset
    families: Mapping[str, Family]
    noise: Noise
    batch: int
    device: torch.device
    workers: int = 0

    def share(self, count: int) -> range:
        """Which of the first `count` images fall to this process."""
        count = min(count, len(self.dataset))
        return range(distributed.rank(), count, distributed.world_size())

    def restored(
        self, indices: Sequence[int], denoiser: Callable, samplers: Mapping[str, Callable]
    ) -> Iterator[Restored]:
        """Restore the images `indices` under each family with each sampler, batch by batch."""

        def restoring(sampler: Callable) -> Restore:
            return lambda problem, noise, draws: sampler(denoiser, noise, problem, draws)

        methods = {name: restoring(sampler) for name, sampler in samplers.items()}
        return restorations(
            self.dataset, self.families, methods, noise=self.noise, indices=indices,
            batch=self.batch, seed=SEED, device=self.device, workers=self.workers,
        )  # fmt: skip


def heldout_psnr(
    images: HeldoutImages, count: int, estimator: Sampler, denoiser: Callable
) -> dict[str, float]:
    """Mean PSNR (dB) of the estimates of the first `count` images, for each family."""
    values: dict[str, list[float]] = {name: [] for name in images.families}
    with suppress(signals.Interrupted):
        for restored in images.restored(images.share(count), denoiser, {"mmse": estimator}):
            found = psnr(to_uint8(restored.x), restored.truth)
            found[~restored.x.flatten(1).isfinite().all(1)] = math.nan
            values[restored.group.degradation] += found[: len(restored.group.indices)].tolist()
    distributed.check_interrupted()
    shares = distributed.gather(values)
    return {name: mean([v for share in shares for v in share[name]]) for name in values}


def heldout_distances(
    images: HeldoutImages,
    count: int,
    sampler: Sampler,
    reference: Reference,
    detectors: Mapping[str, Detector],
    denoiser: Callable,
) -> dict[str, dict[str, float]]:
    """{family: {metric: Fréchet distance}} of the first `count` restored images to a reference."""
    families, indices = images.families, images.share(count)
    statistics = {name: {metric: FeatureStatistics() for metric in detectors} for name in families}
    failed: set[str] = set()
    total, first = len(indices) * len(families), distributed.rank() == 0
    bar = progress(total, "held out", "images", silent=not first)
    with suppress(signals.Interrupted), bar:
        for restored in images.restored(indices, denoiser, {"sample": sampler}):
            family, own = restored.group.degradation, len(restored.group.indices)
            x = restored.x[:own]
            finite = x.flatten(1).isfinite().all(1)
            if not finite.all():
                failed.add(family)
            for metric, detector in detectors.items():
                statistics[family][metric].update(detector(to_uint8(x))[finite])
            bar.update(own)
    distributed.check_interrupted()
    failed = failed.union(*distributed.gather(failed))
    values = {name: dict.fromkeys(detectors, math.nan) for name in families}
    for family, found in statistics.items():
        for metric, detector in detectors.items():
            whole = found[metric].reduced(distributed.sum_tensor, detector.features)
            if first and family not in failed:  # roots of large matrices: once is enough
                values[family][metric] = reference.moments(detector.name).distance(whole)
    return distributed.value_of_first(values)


def draw_restorations(
    images: HeldoutImages,
    count: int,
    samplers: Mapping[str, Sampler],
    denoiser: Callable,
    path: Path,
) -> None:
    """Draw the first `count` images into the PNG file `path`, the same ones every time.

    Each row has the original, the measurement, H†y and, by title, what the samplers restore.
    """
    methods: dict[str, Callable] = {
        "H†y": lambda denoiser, noise, problem, draws: problem.pinv(), **samplers
    }  # fmt: skip
    indices = range(min(count, len(images.dataset)))
    pictures: dict[tuple[str, int], dict[str, Tensor]] = {}
    for restored in images.restored(indices, denoiser, methods):
        family, x = restored.group.degradation, to_uint8(restored.x.nan_to_num())
        measured = restored.problem.degradation.measurement_image(restored.problem.y)
        for i, index in enumerate(restored.group.indices):
            row = pictures.setdefault((family, index), {"original": restored.truth[i].cpu()})
            if measured is not None:
                row["measurement"] = to_uint8(measured[i]).cpu()
            row[restored.method] = x[i].cpu()
    write_pictures(path, pictures, list(images.families), most=len(pictures))


def draw_samples(
    dataset: ImageDataset,
    count: int,
    sampler: Sampler,
    device: torch.device,
    denoiser: Callable,
    path: Path,
) -> None:
    """Draw images of a network without a measurement, the classes in turn, into the PNG `path`."""
    draws = Draws([derive_seed(SEED, "sheet", i) for i in range(count)], device)
    noise = draws.normal(dataset.image_shape, "latent")
    labels = None
    if dataset.num_classes:
        labels = torch.arange(count, device=device) % dataset.num_classes
    problem = Problem.without_measurement(count, dataset.image_shape, labels, device)
    with torch.no_grad():
        x = to_uint8(sampler(denoiser, noise, problem, draws).nan_to_num()).cpu()
    write_grid(path, [list(x)], ["sample"] * count)
