"""Distances of sets that an evaluation reports: which detectors, and against which reference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from metrics.features import DISTANCES, Detector, load_detector
from metrics.statistics import KEPT, FeatureStatistics, Reference


@dataclass(frozen=True)
class Distances:
    """Detectors by metric (fid, cfid, ...) and the reference statistics; both may be none."""

    detectors: dict[str, Detector]
    reference: Reference | None

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
        reference.moments(name)
    found = {}
    for name in reference.detectors:
        spec = f"{name}={files[name]}" if name in files else name
        metric = "fid" if name == "inception" else "fd"
        found[metric] = load_detector(spec, device, image_shape, trusted)
    return found


def compared(metric: str, count: int) -> int:
    """How many of `count` images a distance compares: kernel distances take the first ones."""
    return min(count, KEPT) if DISTANCES[metric].kernel else count
