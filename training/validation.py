"""Held-out images while training: PSNR of the one-step MMSE estimate, Fréchet distances."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch

from datautils import ImageDataset
from degradation import Family, Noise
from metrics.evaluate import Restore, Restored, restorations
from metrics.features import Detector
from metrics.means import mean
from metrics.pixel import psnr, to_uint8
from metrics.statistics import FeatureStatistics, Reference
from runtime import distributed, signals
from runtime.progress import progress
from samplers import Sampler

SEED = 1  # its own, so that the operators are not those of the evaluation afterwards


def members(family: Family) -> dict[str, Family]:
    """The families that a training family consists of, by name."""
    return {type(part).__name__: part for part in family.parts()}


@dataclass(frozen=True)
class HeldoutImages:
    """Fixed held-out images under fixed operators, so that what a run shows is comparable."""

    dataset: ImageDataset
    families: Mapping[str, Family]
    noise: Noise
    batch: int
    device: torch.device
    workers: int = 0

    def restored(
        self, indices: Sequence[int], methods: Mapping[str, Restore]
    ) -> Iterator[Restored]:
        """Restore the images `indices` under each family with each method, batch by batch."""
        return restorations(
            self.dataset,
            self.families,
            methods,
            noise=self.noise,
            indices=indices,
            batch=self.batch,
            seed=SEED,
            device=self.device,
            workers=self.workers,
        )


def restoring(sampler: Sampler, denoiser: Callable) -> Restore:
    """Restoration by a sampler that uses this denoiser."""
    return lambda problem, noise, draws: sampler(denoiser, noise, problem, draws)


class Validation:
    """PSNR of the one-step MMSE estimate of the first `count` held-out images."""

    def __init__(self, images: HeldoutImages, count: int, estimator: Sampler):
        count = min(count, len(images.dataset))
        self.indices = range(distributed.rank(), count, distributed.world_size())
        self.images, self.estimator = images, estimator

    def __call__(self, denoiser: Callable) -> dict[str, float]:
        """Mean PSNR (dB) for each family, on every process, NaN if an estimate is not finite.

        Interrupted where a signal to end comes.
        """
        families = self.images.families
        values: dict[str, list[float]] = {name: [] for name in families}
        with suppress(signals.Interrupted):
            for restored in self.images.restored(
                self.indices, {"mmse": restoring(self.estimator, denoiser)}
            ):
                found = psnr(to_uint8(restored.x), restored.truth)
                found[~restored.x.flatten(1).isfinite().all(1)] = math.nan
                values[restored.group.degradation] += found[: len(restored.group.indices)].tolist()
        distributed.check_interrupted()
        shares = distributed.gather(values)
        return {name: mean([v for share in shares for v in share[name]]) for name in families}


@dataclass(frozen=True)
class HeldoutDistances:
    """Fréchet distances between restored held-out images and a reference, for each family.

    The first `count` images are restored by `sampler`.
    """

    images: HeldoutImages
    reference: Reference
    detectors: Mapping[str, Detector]
    sampler: Sampler
    count: int

    def __call__(self, denoiser: Callable) -> dict[str, dict[str, float]]:
        """{family: {metric: distance}} on every process, NaN if a sample is not finite.

        Interrupted where a signal to end comes.
        """
        families = self.images.families
        indices = range(distributed.rank(), self.count, distributed.world_size())
        statistics = {
            (family, metric): FeatureStatistics()
            for family in families
            for metric in self.detectors
        }
        failed = dict.fromkeys(families, 0)
        total, silent = len(indices) * len(families), distributed.rank() != 0
        bar = progress(total, "held out", "images", silent)
        methods = {"sample": restoring(self.sampler, denoiser)}
        with suppress(signals.Interrupted), bar:
            for restored in self.images.restored(indices, methods):
                group = restored.group
                x = restored.x[: len(group.indices)]
                finite = x.flatten(1).isfinite().all(1)
                failed[group.degradation] += len(finite) - int(finite.sum())
                for metric, detector in self.detectors.items():
                    features = detector(to_uint8(x))[finite]
                    statistics[group.degradation, metric].update(features)
                bar.update(len(x))
        distributed.check_interrupted()
        return {family: self._distances(family, statistics, failed) for family in families}

    def _distances(
        self,
        family: str,
        statistics: Mapping[tuple[str, str], FeatureStatistics],
        failed: Mapping[str, int],
    ) -> dict[str, float]:
        broken = any(distributed.gather(failed[family]))
        values = {}
        for metric, detector in self.detectors.items():
            total = statistics[family, metric].reduced(distributed.sum_tensor, detector.features)
            value = math.nan
            if distributed.rank() == 0 and not broken:  # roots of large matrices: once is enough
                value = self.reference.moments(detector.name).distance(total)
            values[metric] = distributed.value_of_first(value)
        return values
