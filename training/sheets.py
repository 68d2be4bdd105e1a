"""A picture of restored held-out images: the same images under the same operators every time.

An unconditional network draws images instead, from the same noise every time.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from degradation import Draws, Problem, derive_seed
from metrics.images import write_grid
from metrics.pixel import to_uint8
from metrics.report import write_pictures
from samplers import Sampler
from training.validation import SEED, HeldoutImages, restoring


class Sheet:
    """Original, measurement, H†y, MMSE estimate and, by `sampler`, a sample of a few images."""

    def __init__(
        self, images: HeldoutImages, estimator: Sampler, sampler: Sampler | None, count: int
    ):
        self.images, self.estimator, self.sampler = images, estimator, sampler
        self.indices = range(min(count, len(images.dataset)))

    def __call__(self, denoiser: Callable, path: Path) -> None:
        """Draw the denoiser's restorations into the PNG file `path`."""
        methods = {
            "H†y": lambda problem, noise, draws: problem.pinv(),
            "MMSE": restoring(self.estimator, denoiser),
        }
        if self.sampler is not None:
            methods["sample"] = restoring(self.sampler, denoiser)
        pictures: dict[tuple[str, int], dict[str, Tensor]] = {}
        for restored in self.images.restored(self.indices, methods):
            group, x = restored.group, to_uint8(restored.x.nan_to_num())
            measured = restored.problem.degradation.measurement_image(restored.problem.y)
            for i, index in enumerate(group.indices):
                row = pictures.setdefault(
                    (group.degradation, index), {"original": restored.truth[i].cpu()}
                )
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
