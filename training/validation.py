"""Held-out restorations while training: PSNR of the one-step MMSE estimate for each family."""

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from datautils import ImageDataset
from degradation import Draws, Family, GaussianNoise, RandomDegradation, derive_seed
from metrics.evaluate import group_by_structure
from metrics.pixel import psnr, summarize, to_uint8
from samplers import MMSE
from training import distributed
from training.data import to_float


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

    @torch.no_grad()
    def __call__(self, denoiser: Callable) -> dict[str, float]:
        """Mean PSNR (dB) for each family, on every process."""
        return {name: self._psnr(denoiser, family) for name, family in self.families.items()}

    def _psnr(self, denoiser: Callable, family: Family) -> float:
        seeds = {i: derive_seed("validation", i) for i in self.indices}
        values: list[float] = []
        for structure, indices in group_by_structure(family, seeds, self.batch):
            images = torch.stack([self.dataset[i][0] for i in indices]).to(self.device)
            values += self._restore(
                denoiser, family, structure, images, [seeds[i] for i in indices]
            )
        total = list(chain.from_iterable(distributed.gather(values)))
        return summarize(torch.tensor(total))["mean"]

    def _restore(
        self, denoiser: Callable, family: Family, structure, images: Tensor, seeds: list[int]
    ) -> list[float]:
        clean, draws = to_float(images), Draws(seeds, self.device)
        operator = family.sample(self.dataset.image_shape, structure, seeds, self.device)
        problem = self.noise.measure(operator, clean, draws)
        noise = draws.normal(clean.shape[1:], "latent")
        return psnr(to_uint8(MMSE()(denoiser, noise, problem, draws)), images).tolist()
