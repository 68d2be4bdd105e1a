"""Held-out images while training: PSNR of the one-step MMSE estimate, Fréchet distances."""

import math
from collections.abc import Callable, Mapping

import torch
from tqdm import tqdm

from datautils import ImageDataset
from degradation import Family, Noise, RandomDegradation
from metrics.evaluate import restorations
from metrics.features import Detector
from metrics.pixel import psnr, to_uint8
from metrics.records import Mean
from metrics.statistics import FeatureStatistics, Reference
from samplers import MMSE, Solver
from training import distributed

SEED = 1  # its own, so that the operators are not those of the evaluation afterwards


def members(family: Family) -> dict[str, Family]:
    """The families that a training family consists of, by name."""
    parts = family.members if isinstance(family, RandomDegradation) else (family,)
    return {type(part).__name__: part for part in parts}


class Validation:
    """Fixed held-out images under fixed operators, so that the curves of a run are comparable."""

    def __init__(
        self,
        dataset: ImageDataset,
        families: Mapping[str, Family],
        noise: Noise,
        count: int,
        batch: int,
        device: torch.device,
        workers: int = 0,
    ):
        count = min(count, len(dataset))
        self.indices = range(distributed.rank(), count, distributed.world_size())
        self.dataset, self.noise, self.batch, self.device = dataset, noise, batch, device
        self.families, self.workers = families, workers

    def __call__(self, denoiser: Callable) -> dict[str, float]:
        """Mean PSNR (dB) for each family, on every process. Interrupted where SIGTERM comes."""
        solver = MMSE()
        values: dict[str, list[float]] = {name: [] for name in self.families}
        for restored in restorations(
            self.dataset,
            self.families,
            {"mmse": lambda problem, noise, draws: solver(denoiser, noise, problem, draws)},
            noise=self.noise,
            indices=self.indices,
            batch=self.batch,
            seed=SEED,
            device=self.device,
            workers=self.workers,
        ):
            if distributed.asked_to_end():
                break
            found = psnr(to_uint8(restored.x), restored.truth)
            values[restored.group.degradation] += found[: len(restored.group.indices)].tolist()
        distributed.check_interrupted()
        shares = distributed.gather(values)
        means = {name: Mean() for name in self.families}
        for name, mean in means.items():
            for value in (value for share in shares for value in share[name]):
                mean.add(value)
        return {name: mean.result()["mean"] for name, mean in means.items()}


class HeldoutDistances:
    """Fréchet distances between restored held-out images and a reference, for each family.

    The first `count` images are restored by `solver`.
    """

    def __init__(
        self,
        dataset: ImageDataset,
        families: Mapping[str, Family],
        noise: Noise,
        reference: Reference,
        detectors: Mapping[str, Detector],
        solver: Solver,
        count: int,
        batch: int,
        device: torch.device,
        workers: int = 0,
    ):
        self.dataset, self.families, self.noise, self.solver = dataset, families, noise, solver
        self.reference, self.detectors = reference, detectors
        self.indices = range(distributed.rank(), count, distributed.world_size())
        self.batch, self.device, self.workers = batch, device, workers
        self.silent = distributed.rank() != 0

    def __call__(self, denoiser: Callable) -> dict[str, dict[str, float]]:
        """{family: {metric: distance}} on every process, NaN where a sample is not finite.

        Interrupted where SIGTERM comes.
        """
        solver = self.solver
        statistics = {
            (family, metric): FeatureStatistics()
            for family in self.families
            for metric in self.detectors
        }
        failed = dict.fromkeys(self.families, 0)
        total = len(self.indices) * len(self.families)
        bar = tqdm(total=total, unit="img", desc="held out", leave=False, disable=self.silent)
        for restored in restorations(
            self.dataset,
            self.families,
            {"sample": lambda problem, noise, draws: solver(denoiser, noise, problem, draws)},
            noise=self.noise,
            indices=self.indices,
            batch=self.batch,
            seed=SEED,
            device=self.device,
            workers=self.workers,
        ):
            if distributed.asked_to_end():
                break
            family, x = restored.group.degradation, restored.x[: len(restored.group.indices)]
            finite = x.flatten(1).isfinite().all(1)
            failed[family] += len(finite) - int(finite.sum())
            for metric, detector in self.detectors.items():
                statistics[family, metric].update(detector(to_uint8(x))[finite])
            bar.update(len(x))
        bar.close()
        distributed.check_interrupted()
        return {family: self._distances(family, statistics, failed) for family in self.families}

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
                value = self.reference.distance(detector.name, total)
            values[metric] = distributed.from_first(value)
        return values
