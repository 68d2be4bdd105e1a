"""A picture of restored held-out images: the same images under the same operators every time."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from datautils import ImageDataset
from degradation import Family, Noise
from metrics.evaluate import restorations
from metrics.pixel import to_uint8
from metrics.report import write_pictures
from samplers import MMSE, Solver
from training import distributed
from training.validation import SEED


class Sheet:
    """Original, measurement, H†y, MMSE estimate and, by `solver`, a sample of a few images."""

    def __init__(
        self,
        dataset: ImageDataset,
        families: Mapping[str, Family],
        noise: Noise,
        solver: Solver | None,
        count: int,
        device: torch.device,
    ):
        self.dataset, self.families, self.noise, self.solver = dataset, families, noise, solver
        self.indices, self.device = range(min(count, len(dataset))), device

    def __call__(self, denoiser: Callable, path: Path) -> None:
        """Draw the denoiser's restorations into the PNG file `path`; not where SIGTERM comes."""
        methods = {
            "H†y": lambda problem, noise, draws: problem.pinv(),
            "MMSE": lambda problem, noise, draws: MMSE()(denoiser, noise, problem, draws),
        }
        solver = self.solver
        if solver is not None:
            methods["sample"] = lambda problem, noise, draws: solver(
                denoiser, noise, problem, draws
            )
        pictures: dict[tuple[str, int], dict[str, torch.Tensor]] = {}
        for restored in restorations(
            self.dataset,
            self.families,
            methods,
            noise=self.noise,
            indices=self.indices,
            batch=len(self.indices),
            seed=SEED,
            device=self.device,
        ):
            if distributed.asked_to_end():
                return
            group, x = restored.group, to_uint8(restored.x.nan_to_num())
            measured = restored.problem.degradation.measurement_image(restored.problem.y)
            for i, index in enumerate(group.indices):
                row = pictures.setdefault(
                    (group.degradation, index), {"original": restored.truth[i].cpu()}
                )
                if measured is not None:
                    row["measurement"] = to_uint8(measured[i]).cpu()
                row[restored.method] = x[i].cpu()
        write_pictures(path, pictures, list(self.families))
