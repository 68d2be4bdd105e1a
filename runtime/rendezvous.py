"""A store that the processes of one start share, and those of no start before.

`torchrun --max-restarts` starts lost processes again with the store that they had: the addresses of
dead ones are still in it, and who connects to these waits for half an hour. So the processes first
agree on a name that no start has used.
"""

import datetime
import time
import uuid

import torch.distributed as dist

_POLL = 0.01  # seconds


def fresh_store(timeout: datetime.timedelta) -> tuple[dist.Store, int, int]:
    """A store for the processes that torchrun, or another launcher, has just started; this one's
    rank, and their number.

    The environment is that of a launcher (`runtime.launcher.place`). Raises DistError if the others
    do not come within `timeout`.
    """
    store, rank, world = next(dist.rendezvous("env://", timeout=timeout))
    store.set_timeout(timeout)
    name = _found(store, world, timeout) if rank == 0 else _joined(store, rank)
    return dist.PrefixStore(name, store), rank, world


def _found(store: dist.Store, world: int, timeout: datetime.timedelta) -> str:
    """Name the start, once every other process has heard of the name."""
    name = uuid.uuid4().hex
    told: dict[int, bytes] = {}
    end = time.monotonic() + timeout.total_seconds()
    while store.add(f"joined/{name}", 0) < world - 1:
        for rank in range(1, world):
            if store.check([f"hello/{rank}"]):
                call = store.get(f"hello/{rank}")
                if told.get(rank) != call:  # the first may be that of a process that is dead
                    store.set(f"name/{rank}/{call.decode()}", name)
                    told[rank] = call
        if time.monotonic() > end:
            raise dist.DistError(f"not all of the {world} processes came within {timeout}")
        time.sleep(_POLL)
    return name


def _joined(store: dist.Store, rank: int) -> str:
    """Call the first process, and learn the name of the start from it."""
    call = uuid.uuid4().hex
    store.set(f"hello/{rank}", call)
    name = store.get(f"name/{rank}/{call}").decode()
    store.add(f"joined/{name}", 1)
    return name
