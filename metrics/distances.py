"""Distances of sets that an evaluation reports: which detectors, and against which reference."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch

from datautils.identity import Identity
from metrics.features import DISTANCES, Detector, detectors_for, load_detector
from metrics.statistics import KEPT, FeatureStatistics, Reference, load_reference


@dataclass(frozen=True)
class Distances:
    """Detectors by metric (fid, cfid, ...) and the reference statistics; both may be none."""

    detectors: dict[str, Detector]
    reference: Reference | None

    @classmethod
    def of(
        cls,
        metrics: Sequence[str],
        ref: Path | None,
        specs: Sequence[str],
        device: torch.device,
        *,
        images: int,
        image_shape: tuple[int, int, int],
        dataset: Identity | None = None,
        any_count: bool = False,
        trusted: bool = False,
    ) -> Self:
        """Load what the metrics need. Raise ValueError if the reference does not match.

        specs: values of `--detector`; dataset: what is restored, if it must be that of the
        reference; trusted: as of `load_detector`. Raises ValueError or OSError.
        """
        wanted = [metric for metric in metrics if metric in DISTANCES]
        if wanted and ref is None:
            raise ValueError(f"{', '.join(wanted)} needs reference statistics: give --ref FILE")
        if ref is not None and not wanted:
            known = ", ".join(DISTANCES)
            raise ValueError(f"--ref {ref} serves none of the metrics: add one of {known}")
        if wanted and images < 2:
            raise ValueError(f"{', '.join(wanted)} needs at least 2 images, not {images}")
        reference = None if ref is None else load_reference(ref)  # first: others may be downloaded
        loaded = detectors_for(wanted, specs, device, image_shape, trusted)
        if reference is None:
            return cls(loaded, None)
        if dataset is not None and not any_count:
            reference.check_dataset(dataset)
        for metric, detector in loaded.items():
            kernel = DISTANCES[metric].kernel
            reference.check(detector, images, image_shape, any_count, kernel)
        return cls(loaded, reference)

    def value(self, metric: str, statistics: FeatureStatistics) -> float:
        """The distance of a metric's statistics from the reference."""
        assert self.reference is not None
        moments = self.reference.moments(self.detectors[metric].name)
        return moments.distance(statistics, DISTANCES[metric].kernel)

    def provenance(self) -> dict[str, Any]:
        """What the distances were computed with: SHA-256 of the detectors, the reference."""
        if self.reference is None:
            return {}
        return {
            "detectors": {d.name: d.sha256 for d in self.detectors.values()},
            "images": self.reference.images,
            "description": self.reference.description,
        }


def reference_detectors(
    reference: Reference,
    files: Mapping[str, str],
    device: torch.device,
    image_shape: tuple[int, int, int],
    trusted: bool,
) -> dict[str, Detector]:
    """The detectors that a reference was made with, by metric.

    files: their weights by name, else those in the cache; trusted: as of `load_detector`.
    Raises ValueError if `files` names another one, or if one cannot be loaded.
    """
    for name in files:
        if name not in reference.detectors:
            known = ", ".join(reference.detectors)
            raise ValueError(f"{reference.path} has no features of '{name}'; it has {known}")
    by_detector = {
        found.detector: metric
        for metric, found in DISTANCES.items()
        if not (found.projected or found.kernel)
    }
    found = {}
    for name in reference.detectors:
        metric = by_detector.get(name, by_detector[None])
        found[metric] = load_detector(
            f"{name}={files[name]}" if name in files else name, device, image_shape, trusted
        )
    return found


def compared(metric: str, count: int) -> int:
    """How many of `count` images a distance compares: kernel distances take the first ones."""
    return min(count, KEPT) if DISTANCES[metric].kernel else count
