"""Batches of a data set, loaded by worker processes, with its faults told in one sentence."""

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from datautils.decode import DataError


class _Items(Protocol):
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def load_batches(
    dataset: _Items, batches: Iterable[Sequence[int]], workers: int, pin_memory: bool = False
) -> Iterator[tuple[Tensor, Tensor]]:
    """(uint8 images `[n, C, h, w]`, int64 labels `[n]`) for each list of indices in `batches`.

    `batches` may be endless. Loading is ahead by two batches for each of the `workers` processes,
    with 0 it is done in this one; the order is that of `batches` either way. A DataError of an item
    is raised here as it is, when its batch is due; the loader's own error would wrap it in a
    traceback of the worker. torch's global generator is left alone.
    """
    workers = min(workers, os.cpu_count() or 1)  # more would only wait for each other
    loader: DataLoader = DataLoader(
        _Guarded(dataset),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=_collate,
        pin_memory=pin_memory,
        persistent_workers=workers > 0,
        generator=torch.Generator(),  # the workers' seeds, unused, would come from the global one
    )
    return _raising(iter(loader))  # the workers start now, not when the first batch is asked for


class _Guarded(Dataset):
    """The data set with a DataError as a value instead of raised."""

    def __init__(self, dataset: _Items):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple[Tensor, int] | DataError:
        try:
            return self.dataset[index]
        except DataError as error:
            return error.with_traceback(None)


def _collate(items: list[tuple[Tensor, int] | DataError]) -> tuple[Tensor, Tensor] | DataError:
    pairs = []
    for item in items:
        if isinstance(item, DataError):
            return item
        pairs.append(item)
    images, labels = zip(*pairs, strict=True)
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64)


def _raising(batches: Iterable[tuple[Tensor, Tensor] | DataError]) -> Iterator:
    batch = None
    try:
        for batch in batches:
            if isinstance(batch, DataError):
                raise batch
            yield batch
    finally:
        # The error's traceback would hold the loader, and this frame's `batch` the error: of such a
        # circle torch frees the workers late, and then waits 5 seconds for each.
        del batches, batch
