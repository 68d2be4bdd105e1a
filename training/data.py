"""Which image every sample of a run is, and loading it."""

from collections.abc import Generator, Iterator

import torch
from torch import Tensor
from torch.utils.data import Sampler

from datautils import ImageDataset
from datautils.loading import load_batches
from degradation import derive_seed
from training import distributed

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class SampleOrder(Sampler[list[int]]):
    """Data set indices of each step's samples that fall to this process, from `step` on, forever.

    Sample n of the run is a fixed image: epochs are permutations drawn from (seed, epoch).
    """

    def __init__(self, size: int, batch: int, seed: int, step: int = 0):
        self.size, self.batch, self.seed, self.step = size, batch, seed, step
        self.rank, self.world = distributed.rank(), distributed.world_size()

    def __iter__(self) -> Iterator[list[int]]:
        epoch, order = -1, torch.empty(0, dtype=torch.int64)
        step = self.step
        while True:
            indices = []
            for sample in step_samples(step, self.batch, self.rank, self.world):
                if sample // self.size != epoch:
                    epoch = sample // self.size
                    generator = torch.Generator().manual_seed(
                        derive_seed(self.seed, "order", epoch)
                    )
                    order = torch.randperm(self.size, generator=generator)
                indices.append(int(order[sample % self.size]))
            yield indices
            step += 1


def step_samples(step: int, batch: int, rank: int, world: int) -> range:
    """Global numbers of the samples of one step that fall to one process."""
    share = batch // world
    start = step * batch + rank * share
    return range(start, start + share)


def training_batches(
    dataset: ImageDataset, batch: int, seed: int, step: int, workers: int
) -> Generator[tuple[Tensor, Tensor], None, None]:
    """Batches (uint8 images `[n, C, h, w]`, int64 labels `[n]`) of this process, from `step` on."""
    order = SampleOrder(len(dataset), batch, seed, step)
    yield from load_batches(dataset, order, workers, pin_memory=torch.cuda.is_available())
