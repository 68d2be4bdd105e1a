"""Batches of a data set, loaded by worker processes. Faults of files raise DataError."""

import itertools
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from datautils import ImageDataset
from runtime.errors import KILLED_LOADER, DataError, is_killed_loader

_MAX_IN_A_ROW = 100  # broken images: more are no accident
_MAX_FAULTS = 100  # sentences that are kept
Read = Callable[[], tuple[Tensor, int]]  # an image and its label


class Chunk(NamedTuple):
    """What a worker hands over: a batch."""

    images: Tensor  # uint8 [n, C, h, w]
    labels: Tensor  # int64 [n]
    skipped: int  # samples that replace broken ones
    faults: list[str]  # a sentence for each image that was broken


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """(uint8 images `[n, C, h, w]`, int64 labels `[n]`), batch by batch, and what was met so far.

    skipped: samples of the batches given out that replace broken images. faults: a sentence
    for each of these images, the first hundred.
    """

    def __init__(self, chunks: Dataset, inputs: Iterable | None, workers: int):
        self.skipped = 0
        self.faults: list[str] = []
        self._chunks = _loaded(chunks, inputs, workers, torch.cuda.is_available())

    def __next__(self) -> tuple[Tensor, Tensor]:
        chunk = next(self._chunks)
        self.skipped += chunk.skipped
        new = [sentence for sentence in chunk.faults if sentence not in self.faults]
        self.faults += new[: _MAX_FAULTS - len(self.faults)]
        return chunk.images, chunk.labels

    def close(self) -> None:
        """End, and with it the processes that load."""
        self._chunks.close()


def load_batches(
    dataset: ImageDataset, batches: Iterable[Sequence[int]], workers: int, skip_broken: bool = False
) -> Batches:
    """The images and labels of each list of indices in `batches`, which may be endless.

    With `skip_broken` the next sound image takes the place of a broken one. Raises DataError for a
    broken image, or with `skip_broken` for a hundred in a row.
    """
    return Batches(_Calls(partial(_indexed, dataset, skip_broken)), batches, workers)


def stream_batches(
    reads: Callable[[], Iterator[Read]], size: int, workers: int, skip_broken: bool = False
) -> Batches:
    """Batches of `size` images, of each worker in turn, otherwise as `load_batches`.

    A worker calls `reads` for the endless images of its part of a stream.
    """
    return Batches(_StreamChunks(reads, size, skip_broken), None, workers)


def in_order(function: Callable, inputs: Iterable, workers: int) -> Generator[Any, None, None]:
    """function(x) for each x of `inputs`, in order.

    Worker processes are ahead by two inputs each; with 0 `workers` all is done in this process.
    A DataError of `function` is raised when its result is asked for.
    """
    return _loaded(_Calls(function), inputs, workers, pin_memory=False)


def cores() -> int:
    """Processors this process may use: more workers would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class _Calls(Dataset):
    """The results of a function as items, a DataError as one instead of raised: torch would wrap it
    in a traceback of the worker."""

    def __init__(self, function: Callable):
        self.function = function

    def __getitem__(self, index: Any) -> Any:
        try:
            return self.function(index)
        except DataError as error:
            return error.with_traceback(None)


class _StreamChunks(IterableDataset):
    """The batches of a stream, and the DataError that ends them."""

    def __init__(self, reads: Callable[[], Iterator[Read]], size: int, skip_broken: bool):
        self.reads, self.size, self.skip_broken = reads, size, skip_broken

    def __iter__(self) -> Iterator[Chunk | DataError]:
        try:
            reads = self.reads()
            while True:
                yield _chunk(itertools.repeat(reads, self.size), self.skip_broken)
        except DataError as error:
            yield error.with_traceback(None)


def _indexed(dataset: ImageDataset, skip_broken: bool, indices: Sequence[int]) -> Chunk:
    """A batch of a data set; the images that follow one by index may replace it."""
    count = len(dataset)
    ranges = (range(index, index + count) for index in indices)
    samples = ((partial(dataset.__getitem__, i % count) for i in numbers) for numbers in ranges)
    return _chunk(samples, skip_broken)


def _chunk(samples: Iterable[Iterator[Read]], skip_broken: bool) -> Chunk:
    """A batch. samples: for each, an image and those that may replace it."""
    items: list[tuple[Tensor, int]] = []
    faults: list[str] = []
    skipped = 0
    for reads in samples:
        broken: list[str] = []
        for read in itertools.islice(reads, _MAX_IN_A_ROW):
            try:
                items.append(read())
                break
            except DataError as error:
                if not skip_broken:
                    raise
                broken.append(str(error))
        else:
            first = broken[0]
            raise DataError(f"{len(broken)} images in a row are broken, the first: {first}")
        faults += broken
        skipped += bool(broken)
    # In a worker straight into memory that is shared.
    images = default_collate([image for image, _ in items])
    labels = torch.tensor([label for _, label in items], dtype=torch.int64)
    return Chunk(images, labels, skipped, faults)


def _loaded(
    dataset: Dataset, inputs: Iterable | None, workers: int, pin_memory: bool
) -> Generator[Any, None, None]:
    """The items of a data set for each of `inputs`. The workers start now."""
    loader: DataLoader = DataLoader(
        dataset,
        batch_size=None,
        sampler=inputs,
        num_workers=min(workers, cores()),
        pin_memory=pin_memory,
        generator=torch.Generator(),  # the workers' seeds, unused, would come from the global one
    )
    return _raising(iter(loader))


def _raising(items: Iterator[Any]) -> Generator[Any, None, None]:
    item: Any = None
    try:
        for item in items:
            if isinstance(item, DataError):
                raise item
            yield item
    except RuntimeError as error:
        if not is_killed_loader(error):
            raise
        raise DataError(KILLED_LOADER) from None
    finally:
        # The error's traceback would hold the loader, and this frame's `item` the error: of such a
        # circle torch frees the workers late, and then waits 5 seconds for each.
        del items, item
