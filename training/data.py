"""Which image every sample of a run is, and loading it."""

import itertools
from collections.abc import Iterator
from functools import partial

import torch

from datautils import ImageDataset
from datautils.huggingface import HuggingFaceStream
from datautils.loading import Batches, load_batches, stream_batches
from degradation import derive_seed
from runtime import distributed


def sample_order(size: int, batch: int, seed: int, step: int = 0) -> Iterator[list[int]]:
    """Data set indices of each step's samples that fall to this process, from `step` on, forever.

    Sample n of the run is a fixed image: epochs are permutations drawn from (seed, epoch).
    """
    epoch, order = -1, torch.empty(0, dtype=torch.int64)
    for now in itertools.count(step):
        indices = []
        for sample in step_samples(now, batch):
            if sample // size != epoch:
                epoch = sample // size
                generator = torch.Generator().manual_seed(derive_seed(seed, "order", epoch))
                order = torch.randperm(size, generator=generator)
            indices.append(int(order[sample % size]))
        yield indices


def step_samples(step: int, batch: int) -> range:
    """Global numbers of the samples of one step that fall to this process."""
    share = batch // distributed.world_size()
    start = step * batch + distributed.rank() * share
    return range(start, start + share)


def training_batches(
    dataset: ImageDataset, batch: int, seed: int, step: int, workers: int, skip_broken: bool = False
) -> Batches:
    """Batches (uint8 images `[n, C, h, w]`, int64 labels `[n]`) of this process, from `step` on.

    skip_broken: a broken image is replaced by the next sound one and counted, instead of ending the
    run. A stream begins again, in an order that follows from (seed, images seen before).
    """
    if isinstance(dataset, HuggingFaceStream):
        rank, world = distributed.rank(), distributed.world_size()
        reads = partial(dataset.reads, derive_seed(seed, "stream", step * batch), rank, world)
        workers = min(workers, dataset.workers(world))
        return stream_batches(reads, batch // world, workers, skip_broken)
    order = sample_order(len(dataset), batch, seed, step)
    return load_batches(dataset, order, workers, skip_broken=skip_broken)
