"""The few things that differ when several processes train or evaluate together."""

import datetime
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist

from datautils import DataError


@contextmanager
def process_group() -> Iterator[torch.device]:
    """Join the processes of `torchrun`, or none without it, and give this one's device.

    Uses NCCL where every process has a GPU of its own, gloo elsewhere.
    """
    on_gpu = torch.cuda.is_available()
    local = int(os.environ.get("LOCAL_RANK", 0))
    device = (
        torch.device("cuda", local % torch.cuda.device_count()) if on_gpu else torch.device("cpu")
    )
    if on_gpu:
        torch.cuda.set_device(device)
    if "WORLD_SIZE" not in os.environ:
        with _orderly_end():
            yield device
        return
    own_gpu = on_gpu and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    dist.init_process_group("nccl" if own_gpu else "gloo", timeout=datetime.timedelta(minutes=30))
    try:
        with _orderly_end():
            yield device
    finally:
        dist.destroy_process_group()


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM, by which torchrun ends the others when one fails, clean up like an exception."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        _asked_to_end.append(128 + number)
        heed_termination()

    _asked_to_end.clear()
    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


_asked_to_end: list[int] = []  # exit codes


def heed_termination() -> None:
    """Leave if SIGTERM has come; for loops to call, because an exception that is raised while
    Python starts a process or frees an object is lost."""
    if _asked_to_end:
        sys.exit(_asked_to_end[0])


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


@contextmanager
def one_sentence_errors() -> Iterator[None]:
    """End all processes with exit code 2 when one cannot build what the user's input asks for.

    The first process prints the first sentence. A traceback is for our own mistakes.
    """
    error = None
    try:
        yield
    except (ValueError, OSError) as caught:
        error = " ".join(str(caught).split())
    errors = [text for text in gather(error) if text is not None]
    if errors:
        if rank() == 0:
            print(f"error: {errors[0]}", file=sys.stderr, flush=True)
        sys.exit(2)


@contextmanager
def data_errors() -> Iterator[None]:
    """End this process with exit code 2 and one sentence where data cannot be read or written.

    Under torchrun the others then end too: unlike `one_sentence_errors` this waits for nobody.
    """
    try:
        yield
    except (DataError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
        sys.exit(2)


def sum_tensor(value: torch.Tensor) -> torch.Tensor:
    """The sum of every process's tensor, on every process."""
    if not dist.is_initialized():
        return value
    shared = value.to("cuda") if dist.get_backend() == "nccl" else value.cpu()
    dist.all_reduce(shared)
    return shared.to(value.device)


def from_first(value: float) -> float:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.item()
