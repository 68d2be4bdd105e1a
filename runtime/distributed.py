"""The few things that differ when several processes train or evaluate together."""

import atexit
import datetime
import gc
import os
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Self

import torch
import torch.distributed as dist

from runtime import signals
from runtime.errors import data_errors, one_sentence_errors
from runtime.launcher import Place, launched, place

_PATIENCE = datetime.timedelta(minutes=30)  # with the slowest process
_SILENCE = 10.0  # seconds, after which a process says that it waits for others
_POLL = 0.01  # seconds, between two looks for the others
# Models are freed before their group: if the last reference to a group is a model's, PyTorch waits
# for the group's threads while it holds the GIL, which these may be waiting for.
_groups: list[dist.ProcessGroup | None] = []


@atexit.register
def _free_groups() -> None:
    """End the groups' threads: one that needs the GIL at the interpreter's end aborts it."""
    gc.collect()  # models of an error's frames
    _groups.clear()


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes of `torchrun`, or none without it, and give this one's device.

    Uses NCCL if every process has a GPU of its own, else gloo. The block is one of `data_errors`.
    """
    with one_sentence_errors():
        here = place()
    on_gpu, device = torch.cuda.is_available(), torch.device("cpu")
    if on_gpu:
        device = torch.device("cuda", here.local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
    if dist.is_initialized():  # inside such a block
        yield device
        return
    if not launched():
        with signals.orderly_end(), data_errors():
            yield device
        return
    own_gpu = on_gpu and here.local_world <= torch.cuda.device_count()
    backend = "nccl" if own_gpu else "gloo"
    where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
    waiting = (
        f"process {here.rank} waits at {where}, for the others of {here.world}, "
        f"{_PATIENCE.seconds // 60} minutes at most"
    )
    said = threading.Timer(_SILENCE, print, [waiting], {"file": sys.stderr, "flush": True})
    said.daemon = True
    said.start()
    try:
        store = _fresh_store(here)
    except dist.DistError as error:
        reason = str(error).partition("\n")[0]
        print(f"error: the processes cannot meet at {where}: {reason}", file=sys.stderr)
        sys.exit(2)
    finally:
        said.cancel()
    dist.init_process_group(
        backend, store=store, rank=here.rank, world_size=here.world, timeout=_PATIENCE
    )
    _groups.append(dist.group.WORLD)
    try:
        with signals.orderly_end(), data_errors():
            yield device
    except Exception:
        if not claim_failure():  # a process that lost the others says so after the one that failed
            print(f"process {rank()} ends because another one did", file=sys.stderr, flush=True)
        else:
            traceback.print_exc()
            sys.stderr.flush()
        sys.exit(1)
    finally:
        dist.destroy_process_group()


def _fresh_store(here: Place) -> dist.Store:
    """A store that the processes of this start share, and those of no start before.

    `torchrun --max-restarts` starts lost processes again with the store that they had: the
    addresses of dead ones are still in it, and who connects to these waits for half an hour. So
    the processes first agree on a name that no start has used. Raises DistError if the others do
    not come.
    """
    store, *_ = next(dist.rendezvous("env://", timeout=_PATIENCE))
    store.set_timeout(_PATIENCE)
    if here.rank == 0:
        return dist.PrefixStore(_named(store, here.world), store)
    call = uuid.uuid4().hex
    store.set(f"hello/{here.rank}", call)
    name = store.get(f"name/{here.rank}/{call}").decode()
    store.add(f"joined/{name}", 1)
    return dist.PrefixStore(name, store)


def _named(store: dist.Store, world: int) -> str:
    """The name of a start, once every process has called the first one and heard of it."""
    name = uuid.uuid4().hex
    told: dict[int, bytes] = {}
    end = time.monotonic() + _PATIENCE.total_seconds()
    while store.add(f"joined/{name}", 0) < world - 1:
        for rank in range(1, world):
            if store.check([f"hello/{rank}"]):
                call = store.get(f"hello/{rank}")
                if told.get(rank) != call:  # the first may be that of a process that is dead
                    store.set(f"name/{rank}/{call.decode()}", name)
                    told[rank] = call
        if time.monotonic() > end:
            raise dist.DistError(f"not all of the {world} processes came within {_PATIENCE}")
        time.sleep(_POLL)
    return name


def check_interrupted() -> None:
    """Raise Interrupted on all processes if one was asked to end. All have to call this."""
    if any(gather(signals.asked_to_end())):
        raise signals.Interrupted


class Pulse:
    """A few numbers from every process to every other at each step, without waiting for them.

    `beat` gives the largest of each as it was a step ago, the same on all processes (alone, the
    numbers themselves). The exchange runs beside the step, on the CPU: no device is waited for.
    """

    def __init__(self) -> None:
        self.group = dist.new_group(backend="gloo") if world_size() > 1 else None
        self.pending: tuple[torch.Tensor, dist.Work] | None = None

    def beat(self, *values: float) -> Sequence[float]:
        """The largest of each value over the processes, a step late; the first time zeros."""
        if self.group is None:
            return values
        result = self._wait() or [0.0] * len(values)
        shared = torch.tensor(values, dtype=torch.float64)
        work = dist.all_reduce(shared, dist.ReduceOp.MAX, group=self.group, async_op=True)
        self.pending = shared, work
        return result

    def _wait(self) -> list[float] | None:
        if self.pending is None:
            return None
        shared, work = self.pending
        work.wait()
        self.pending = None
        return shared.tolist()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self._wait()


def claim_failure() -> bool:
    """Whether this process is the first of all to fail; those that follow have only lost it."""
    if not dist.is_initialized():
        return True
    with suppress(RuntimeError):  # the store is lost with the process that kept it
        return dist.distributed_c10d._get_default_store().add("failures", 1) == 1
    return False


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """Number of processes."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if dist.is_initialized():
        dist.barrier()


def gather(value: object) -> list:
    """The small picklable values of all processes, in their order, on every one of them."""
    if not dist.is_initialized():
        return [value]
    values: list = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def value_of_first(value: object) -> Any:
    """The first process's small picklable value, on every process."""
    return gather(value)[0]


def sum_tensor(value: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, on every process."""
    if not dist.is_initialized():
        return value
    shared = value.to("cuda") if dist.get_backend() == "nccl" else value.cpu()
    dist.all_reduce(shared)
    return shared.to(value.device)
