"""Which image of a stream every sample of a run is, and loading it.

The shards of all epochs, each epoch in an order of its own, are dealt to a fixed number of lanes,
one after another: lane l reads number l, l + L, l + 2L ... of them. The batch of a step is made of
equal parts, one from each lane. So sample n is the same whatever the number of processes and
workers, who read the lanes of their part of the batch, and nothing is read twice in an epoch.
"""

import itertools
from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info

from datautils import ImageStream
from datautils.loading import Batches, Chunk, collated, cores, load_chunks, too_many
from datautils.streams import Record
from runtime.errors import DataError
from training.order import permutation

MAX_LANES = 32
BLOCK = 128  # records of a shard that are shuffled together


class Lane:
    """The endless samples of a lane, from a place (number of the shard, samples taken of it) on.

    Shards are shuffled by (seed, epoch), and within a shard blocks of records by (seed, shard,
    block): what comes follows from the seed and the place alone.
    """

    def __init__(self, stream: ImageStream, seed: int, lanes: int, place: tuple[int, int]):
        self.stream, self.seed, self.lanes = stream, seed, lanes
        self.turn, self.taken = place  # the number of the shard in the sequence of all epochs
        self._reader: Iterator[Record] | None = None
        self._start = 0  # number within the shard of the block's first record
        self._block: list[Record] = []
        self._order: list[int] = []

    def skip(self, count: int) -> None:
        """Pass over some samples without decoding them."""
        while count:
            self._fill()
            step = min(count, self._start + len(self._block) - self.taken)
            self.taken += step
            count -= step

    def take(self, skip_broken: bool) -> tuple[tuple[Tensor, int], list[str]]:
        """The next sample, and a sentence for each broken one that it stands in for.

        With `skip_broken` that is the next sound one of its block, which stays in its own place.
        """
        self._fill()
        at = self.taken - self._start
        faults: list[str] = []
        self.taken += 1
        for i in range(len(self._order)):
            record = self._block[self._order[(at + i) % len(self._order)]]
            try:
                return self.stream.decode(record), faults
            except DataError as error:
                if not skip_broken:
                    raise
                faults.append(str(error))
        raise too_many(faults)

    def _fill(self) -> None:
        """Have the block of the next sample in memory."""
        empty = 0
        while self.taken - self._start >= len(self._block):
            self._start = self.taken - self.taken % BLOCK
            if self._reader is None:
                self._reader = self.stream.records(self._shard(), self._start)
            self._block = list(itertools.islice(self._reader, BLOCK))
            if self.taken - self._start < len(self._block):
                order = permutation(len(self._block), self.seed, "block", self.turn, self._start)
                self._order = order.tolist()
            else:
                empty += self.taken == 0
                self._next_shard(empty)

    def _next_shard(self, empty: int) -> None:
        if empty > self.stream.shards:
            raise DataError(f"{empty} shards in a row of {self.stream.path} hold no image")
        self.turn += self.lanes
        self.taken = self._start = 0
        self._reader, self._block = None, []

    def _shard(self) -> int:
        epoch, number = divmod(self.turn, self.stream.shards)
        return int(permutation(self.stream.shards, self.seed, "order", epoch)[number])


def lane_count(shards: int, batch: int) -> int:
    """The most lanes, at most 32 and the number of shards, that share a batch equally."""
    return max(n for n in range(1, min(shards, MAX_LANES, batch) + 1) if batch % n == 0)


class StreamPart(IterableDataset):
    """The samples of each step that fall to a process, in its workers' equal parts."""

    def __init__(
        self,
        stream: ImageStream,
        batch: int,
        seed: int,
        step: int,
        slots: range,
        position: Sequence[Sequence[int]],
        skip_broken: bool,
    ):
        """slots: numbers of this process's samples within a batch. position: of each lane (its
        number, its place) after `step` steps; without it the steps are passed over."""
        self.stream, self.seed, self.slots, self.skip_broken = stream, seed, slots, skip_broken
        lanes = lane_count(stream.shards, batch)
        self.lanes, self.share = lanes, batch // lanes
        self.places = {lane: (lane, 0) for lane in range(lanes)}
        self.passed = 0 if position else step * self.share
        if position:
            self.places = {lane: (turn, taken) for lane, turn, taken in position}
        if sorted(self.places) != list(range(lanes)):
            raise ValueError(
                f"the run read {len(self.places)} parts of {stream.path} side by side, and with "
                f"its {stream.shards} shards there would be {lanes}: was the data changed?"
            )

    def __iter__(self) -> Iterator[Chunk | DataError]:
        """A chunk for each step, forever, or the DataError that ends it."""
        worker = get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        bounds = [len(self.slots) * i // count for i in (number, number + 1)]
        slots = self.slots[slice(*bounds)]
        try:
            lanes = {
                i: Lane(self.stream, self.seed, self.lanes, self.places[i])
                for i in range(slots.start // self.share, (slots.stop - 1) // self.share + 1)
            }
            for lane in lanes.values():
                lane.skip(self.passed)
            while True:
                yield self._chunk(lanes, slots)
        except DataError as error:
            yield error.with_traceback(None)

    def _chunk(self, lanes: dict[int, Lane], slots: range) -> Chunk:
        items, skipped, faults = [], 0, []
        for i, lane in lanes.items():
            first, last = i * self.share, (i + 1) * self.share
            lane.skip(max(0, slots.start - first))
            for _ in range(max(first, slots.start), min(last, slots.stop)):
                item, met = lane.take(self.skip_broken)
                items.append(item)
                skipped += bool(met)
                faults += met
            lane.skip(max(0, last - slots.stop))
        places = [[i, lane.turn, lane.taken] for i, lane in lanes.items()]
        return Chunk(*collated(items), skipped, faults, places)


def stream_batches(part: StreamPart, workers: int) -> Batches:
    """The batches of a process, each made of its workers' parts."""
    workers = min(workers, cores(), len(part.slots))
    return load_chunks(part, max(1, workers), workers)
