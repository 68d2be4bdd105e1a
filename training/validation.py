"""Held-out restorations while training: PSNR of the one-step MMSE estimate for each family."""

from collections.abc import Callable

import torch

from datautils import ImageDataset
from degradation import Family, GaussianNoise, RandomDegradation
from metrics.evaluate import Results, evaluate, summarise
from samplers import MMSE
from training import distributed

_SEED = 1  # its own, so that the operators are not those of the evaluation afterwards


class Validation:
    """Fixed held-out images under fixed operators, so that the curves of a run are comparable."""

    def __init__(
        self,
        dataset: ImageDataset,
        family: Family,
        noise: GaussianNoise,
        count: int,
        batch: int,
        device: torch.device,
    ):
        count = min(count, len(dataset))
        self.indices = range(distributed.rank(), count, distributed.world_size())
        self.dataset, self.noise, self.batch, self.device = dataset, noise, batch, device
        members = family.members if isinstance(family, RandomDegradation) else (family,)
        self.families = {type(m).__name__: m for m in members}
        self.families.pop("NoDegradation", None)

    def __call__(self, denoiser: Callable) -> dict[str, float]:
        """Mean PSNR (dB) for each family, on every process."""
        solver = MMSE()
        results = evaluate(
            self.dataset,
            self.families,
            {"mmse": lambda problem, noise, draws: solver(denoiser, noise, problem, draws)},
            noise=self.noise,
            metrics=["psnr"],
            indices=self.indices,
            batch=self.batch,
            seed=_SEED,
            device=self.device,
            progress=False,
        )
        merged = Results()
        for part in distributed.gather(results):
            merged.merge(part)
        summary = summarise(merged, ["psnr"])
        return {name: summary[name]["mmse"]["psnr"]["mean"] for name in self.families}
