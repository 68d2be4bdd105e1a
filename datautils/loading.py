"""Batches of a data set, loaded by worker processes, with its faults told in one sentence."""

import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

from runtime.errors import KILLED_LOADER, DataError, is_killed_loader

_MAX_IN_A_ROW = 100  # broken images: more are no accident
_MAX_FAULTS = 100  # sentences that are kept


class Chunk(NamedTuple):
    """What a worker hands over: some samples, in order."""

    images: Tensor  # uint8 [n, C, h, w]
    labels: Tensor  # int64 [n]
    skipped: int  # samples that stand in for broken ones
    faults: list[str]  # a sentence for each image that was broken
    position: list[list[int]]  # of a stream, after these samples


class Batches(Iterator[tuple[Tensor, Tensor]]):
    """(uint8 images `[n, C, h, w]`, int64 labels `[n]`), batch by batch, and what was met so far.

    skipped: samples of the batches given out that stand in for broken images. faults: a sentence
    for each of these images, the first hundred. position: where a stream goes on after the last
    batch, for `training_batches`; empty for a data set with an index, whose step says it all.
    """

    def __init__(self, chunks: Iterable[Chunk | DataError], parts: int = 1):
        """parts: so many chunks, one after another, are a batch."""
        self.skipped = 0
        self.faults: list[str] = []
        self.position: list[list[int]] = []
        self._parts = parts
        self._chunks = _raising(iter(chunks))  # workers start now, not with the first batch

    def __next__(self) -> tuple[Tensor, Tensor]:
        chunks = [next(self._chunks) for _ in range(self._parts)]
        for chunk in chunks:
            self.skipped += chunk.skipped
            new = [sentence for sentence in chunk.faults if sentence not in self.faults]
            self.faults += new[: _MAX_FAULTS - len(self.faults)]
        self.position = [place for chunk in chunks for place in chunk.position]
        if len(chunks) == 1:
            return chunks[0].images, chunks[0].labels
        return _joined([c.images for c in chunks]), _joined([c.labels for c in chunks])

    def close(self) -> None:
        """End, and with it the processes that load."""
        self._chunks.close()


class _Items(Protocol):
    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def load_batches(
    dataset: _Items,
    batches: Iterable[Sequence[int]],
    workers: int,
    pin_memory: bool | None = None,
    skip_broken: bool = False,
) -> Batches:
    """The images and labels of each list of indices in `batches`, which may be endless.

    Loading is ahead by two batches for each of the `workers` processes, with 0 it is done in this
    one; the order is that of `batches` either way. Memory is pinned (by default where there is a
    GPU). A DataError of an item is raised here as it is, when its batch is due; the loader's own
    error would wrap it in a traceback of the worker. With `skip_broken` the next sound image, by
    index, takes its place, so that who loads it and when does not matter; DataError after a hundred
    broken ones in a row. torch's global generator is left alone.
    """
    loader: DataLoader = DataLoader(
        _Guarded(dataset, skip_broken),
        batch_sampler=batches,  # type: ignore[arg-type]
        num_workers=min(workers, cores()),
        collate_fn=_same,
        pin_memory=torch.cuda.is_available() if pin_memory is None else pin_memory,
        generator=torch.Generator(),  # the workers' seeds, unused, would come from the global one
    )
    return Batches(loader)


def load_chunks(source: IterableDataset, parts: int, workers: int) -> Batches:
    """Batches of a stream: each of the `workers` processes yields one of its `parts` in turn."""
    loader: DataLoader = DataLoader(
        source,
        batch_size=None,
        num_workers=workers,
        collate_fn=_same,
        pin_memory=parts == 1 and torch.cuda.is_available(),  # else `_joined` does it
        generator=torch.Generator(),
    )
    return Batches(loader, parts)


def collated(items: Sequence[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    """The images and labels of some samples, in a worker straight into memory that is shared."""
    images = default_collate([image for image, _ in items])
    return images, torch.tensor([label for _, label in items], dtype=torch.int64)


def cores() -> int:
    """Processors this process may use: more workers would only wait for each other."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def too_many(faults: Sequence[str]) -> DataError:
    """The error that ends even a run which skips what is broken."""
    return DataError(f"{len(faults)} images in a row are broken, the first: {faults[0]}")


class _Guarded(Dataset):
    """The data set by lists of indices, with a DataError as a value instead of raised."""

    def __init__(self, dataset: _Items, skip_broken: bool):
        self.dataset, self.skip_broken = dataset, skip_broken

    def __getitems__(self, indices: Sequence[int]) -> Chunk | DataError:
        faults: list[str] = []
        try:
            found = [self._sample(index, faults) for index in indices]
            skipped = sum(broken for _, broken in found)
            return Chunk(*collated([item for item, _ in found]), skipped, faults, [])
        except DataError as error:
            return error.with_traceback(None)

    def _sample(self, index: int, faults: list[str]) -> tuple[tuple[Tensor, int], bool]:
        """The image of an index, or the next sound one, and whether it is another."""
        before = len(faults)
        while True:
            broken = len(faults) - before
            try:
                at = index if not broken else (index + broken) % len(self.dataset)
                return self.dataset[at], broken > 0
            except DataError as error:
                if not self.skip_broken:
                    raise
                faults.append(str(error))
            if broken + 1 >= min(_MAX_IN_A_ROW, len(self.dataset)):
                raise too_many(faults[before:])


def _same(chunk: Any) -> Any:
    return chunk


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """One tensor of several, in pinned memory where there is a GPU."""
    shape = (sum(map(len, parts)), *parts[0].shape[1:])
    whole = torch.empty(shape, dtype=parts[0].dtype, pin_memory=torch.cuda.is_available())
    return torch.cat(list(parts), out=whole)


def _raising(chunks: Iterator[Chunk | DataError]) -> Generator[Chunk, None, None]:
    chunk: Chunk | DataError | None = None
    try:
        for chunk in chunks:
            if isinstance(chunk, DataError):
                raise chunk
            yield chunk
    except RuntimeError as error:
        if not is_killed_loader(error):
            raise
        raise DataError(KILLED_LOADER) from None
    finally:
        # The error's traceback would hold the loader, and this frame's `chunk` the error: of such a
        # circle torch frees the workers late, and then waits 5 seconds for each.
        del chunks, chunk
