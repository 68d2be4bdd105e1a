"""From restorations to values: rows of per-image metrics, feature statistics, pictures, files."""

import contextlib
import functools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from degradation import Problem
from metrics.detectors import DISTANCES, Detector
from metrics.evaluate import Restored
from metrics.examples import Examples, Key
from metrics.images import ImageWriter, image_name
from metrics.perceptual import PERCEPTUAL, perceptual
from metrics.pixel import consistency, psnr, ssim, to_uint8
from metrics.results import PartialRecords
from metrics.statistics import FeatureStatistics

# A metric of each image: (problem, restored float images, restored uint8, true uint8) → [B].
Metric = Callable[[Problem, Tensor, Tensor, Tensor], Tensor]


def _perceptual(name: str) -> Metric:
    return lambda problem, x, restored, truth: perceptual(name, restored.device)(restored, truth)


PER_IMAGE: dict[str, Metric] = {
    "psnr": lambda problem, x, restored, truth: psnr(restored, truth),
    "ssim": lambda problem, x, restored, truth: ssim(restored, truth),
    "consistency": lambda problem, x, *images: consistency(problem.degradation, x, problem.y),
} | {name: _perceptual(name) for name in PERCEPTUAL}
METRICS = (*PER_IMAGE, *DISTANCES)


def check_images(
    metrics: Sequence[str], device: torch.device, image_shape: tuple[int, ...]
) -> None:
    """Raise ValueError if images are too small for a metric, or if its weights cannot be had."""
    probe = torch.zeros(1, *image_shape, dtype=torch.uint8)
    for name in metrics:
        try:
            if name == "ssim":
                ssim(probe, probe)
            elif name in PERCEPTUAL:
                perceptual(name, device)(probe, probe)
        except RuntimeError as error:
            _, h, w = image_shape
            raise ValueError(f"{name} needs larger images than {h}×{w} pixels") from error


@dataclass
class Share:
    """What one process found, besides rows and features."""

    # By degradation and image, then by title.
    pictures: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    examples: Examples = field(default_factory=Examples)
    # Sums over the images, the seconds of restoring among them.
    costs: dict[Key, Counter[str]] = field(default_factory=dict)
    failed: Counter[Key] = field(default_factory=Counter)  # images that are not finite
    seconds: dict[str, float] = field(default_factory=dict)  # by stage


class Measure:
    """Takes in restored groups one by one; memory does not grow with their number.

    detectors: by metric (fid, cfid, ...). The first `pictures` images of every degradation are
    kept for a grid; with a writer every image is written.
    """

    def __init__(
        self,
        records: PartialRecords,
        metrics: Sequence[str],
        detectors: Mapping[str, Detector],
        device: torch.device,
        pictures: int = 0,
        writer: ImageWriter | None = None,
    ):
        self.records, self.writer, self.device = records, writer, device
        self.metrics = [metric for metric in metrics if metric in PER_IMAGE]
        self.detectors, self.shown = detectors, pictures
        self.statistics: dict[tuple[str, str, str], FeatureStatistics] = {}
        self.share = Share(seconds={"metrics": 0.0, "features": 0.0})

    @torch.no_grad()
    def __call__(self, restored: Restored) -> None:
        """Measure a group."""
        group = restored.group
        key = group.degradation, restored.method
        total = self.share.costs.setdefault(key, Counter())
        total["seconds"] += restored.seconds  # type: ignore[assignment]
        for name, value in restored.cost.items():
            total[name] += value * len(group.indices)  # type: ignore[assignment]
        finite = restored.x.flatten(1).isfinite().all(1)
        with self._timed("metrics"):
            self.share.failed[key] += int((~finite[: len(group.indices)]).sum())
            images = to_uint8(restored.x)
            arguments = restored.problem, restored.x, images, restored.truth
            # A restoration that is not finite has no values, which shows in the mean.
            values = {
                metric: PER_IMAGE[metric](*arguments).masked_fill(~finite, torch.nan).tolist()
                for metric in self.metrics
            }
            pixels = images.cpu()
            self.records.add(group, restored.method, values)
            self._keep(restored, pixels, values.get("psnr", []))
        if self.detectors:
            with self._timed("features"):
                self._features(restored, images, finite)
        if self.writer:
            for i, index in enumerate(group.indices):
                self.writer.put(image_name(index, *key), pixels[i])

    def _features(self, restored: Restored, images: Tensor, finite: Tensor) -> None:
        """A restoration that is not finite has no features."""
        key = restored.group.degradation, restored.method
        indices = torch.tensor(restored.group.indices)
        finite = finite[: len(indices)].cpu()

        @functools.cache
        def features(detector: Detector, projected: bool) -> Tensor:
            shown = to_uint8(restored.problem.project(restored.x)) if projected else images
            return detector(shown)[: len(finite)][finite]

        for metric, detector in self.detectors.items():
            _, projected, kernel = DISTANCES[metric]
            statistics = self.statistics.setdefault((*key, metric), FeatureStatistics(kernel))
            statistics.update(features(detector, projected), indices[finite])

    def _keep(self, restored: Restored, pixels: Tensor, psnrs: Sequence[float]) -> None:
        group, problem, method = restored.group, restored.problem, restored.method

        @functools.cache
        def measured() -> Tensor | None:
            picture = problem.degradation.measurement_image(problem.y)
            return None if picture is None else to_uint8(picture).cpu()

        def pictures(i: int, title: str) -> dict[str, Tensor]:
            images = {"original": restored.truth[i].cpu().clone()}
            if (y := measured()) is not None:
                images["measurement"] = y[i].clone()
            return images | {title: pixels[i].clone()}

        for i, index in enumerate(group.indices):
            if index < self.shown:
                row = self.share.pictures.setdefault((group.degradation, index), {})
                row.update(pictures(i, method))
            if psnrs:
                kept = functools.partial(pictures, i, "restoration")
                self.share.examples.add((group.degradation, method), psnrs[i], index, kept)

    @contextlib.contextmanager
    def _timed(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        self.share.seconds[stage] += time.perf_counter() - start
