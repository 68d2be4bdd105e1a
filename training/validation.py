"""Held-out images while training: PSNR of the one-step MMSE estimate, Fréchet distances, pictures.

An unconditional network draws images instead, from the same noise every time.
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
from metrics.evaluate import Restore, Restored, restorations
from metrics.features import Detector
from metrics.images import write_grid
from metrics.means import mean
from metrics.pixel import psnr, to_uint8
from metrics.report import write_pictures
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


@dataclass(frozen=True)
class Validation:
    """PSNR of the one-step MMSE estimate of the first `count` held-out images."""

    images: HeldoutImages
    count: int
    estimator: Sampler

    def __call__(self, denoiser: Callable) -> dict[str, float]:
        """Mean PSNR (dB) for each family, on every process, NaN if an estimate is not finite.

        Interrupted where a signal to end comes.
        """
        families, indices = self.images.families, self.images.share(self.count)
        values: dict[str, list[float]] = {name: [] for name in families}
        with suppress(signals.Interrupted):
            for restored in self.images.restored(indices, denoiser, {"mmse": self.estimator}):
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
        families, indices = self.images.families, self.images.share(self.count)
        statistics = {
            family: {metric: FeatureStatistics() for metric in self.detectors}
            for family in families
        }
        failed: set[str] = set()
        total, first = len(indices) * len(families), distributed.rank() == 0
        bar = progress(total, "held out", "images", silent=not first)
        with suppress(signals.Interrupted), bar:
            for restored in self.images.restored(indices, denoiser, {"sample": self.sampler}):
                family, count = restored.group.degradation, len(restored.group.indices)
                x = restored.x[:count]
                finite = x.flatten(1).isfinite().all(1)
                if not finite.all():
                    failed.add(family)
                for metric, detector in self.detectors.items():
                    statistics[family][metric].update(detector(to_uint8(x))[finite])
                bar.update(count)
        distributed.check_interrupted()
        failed = failed.union(*distributed.gather(failed))
        values: dict[str, dict[str, float]] = {family: {} for family in families}
        for family, own in statistics.items():
            for metric, detector in self.detectors.items():
                whole = own[metric].reduced(distributed.sum_tensor, detector.features)
                value = math.nan
                if first and family not in failed:  # roots of large matrices: once is enough
                    value = self.reference.moments(detector.name).distance(whole)
                values[family][metric] = distributed.value_of_first(value)
        return values


@dataclass(frozen=True)
class Sheet:
    """A picture of the first `count` held-out images, the same ones every time.

    Each row has the original, the measurement, H†y, the MMSE estimate and, by `sampler`, a sample.
    """

    images: HeldoutImages
    estimator: Sampler
    sampler: Sampler | None
    count: int

    def __call__(self, denoiser: Callable, path: Path) -> None:
        """Draw the denoiser's restorations into the PNG file `path`."""
        samplers: dict[str, Callable] = {
            "H†y": lambda denoiser, noise, problem, draws: problem.pinv(),
            "MMSE": self.estimator,
        }
        if self.sampler is not None:
            samplers["sample"] = self.sampler
        indices = range(min(self.count, len(self.images.dataset)))
        pictures: dict[tuple[str, int], dict[str, Tensor]] = {}
        for restored in self.images.restored(indices, denoiser, samplers):
            family, x = restored.group.degradation, to_uint8(restored.x.nan_to_num())
            measured = restored.problem.degradation.measurement_image(restored.problem.y)
            for i, index in enumerate(restored.group.indices):
                row = pictures.setdefault((family, index), {"original": restored.truth[i].cpu()})
                if measured is not None:
                    row["measurement"] = to_uint8(measured[i]).cpu()
                row[restored.method] = x[i].cpu()
        write_pictures(path, pictures, list(self.images.families), most=len(pictures))


@dataclass(frozen=True)
class Samples:
    """Images that a network draws without a measurement, the classes in turn."""

    image_shape: tuple[int, int, int]
    num_classes: int
    sampler: Sampler
    count: int
    device: torch.device

    def __call__(self, denoiser: Callable, path: Path) -> None:
        """Draw them into the PNG file `path`."""
        draws = Draws([derive_seed(SEED, "sheet", i) for i in range(self.count)], self.device)
        noise = draws.normal(self.image_shape, "latent")
        labels = None
        if self.num_classes:
            labels = torch.arange(self.count, device=self.device) % self.num_classes
        problem = Problem.without_measurement(self.count, self.image_shape, labels, self.device)
        with torch.no_grad():
            x = to_uint8(self.sampler(denoiser, noise, problem, draws).nan_to_num()).cpu()
        write_grid(path, [list(x)], ["sample"] * self.count)
