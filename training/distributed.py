"""The few things that differ when several processes train or evaluate together."""

import datetime
import multiprocessing
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import torch
import torch.distributed as dist

from datautils import DataError
from datautils.loading import KILLED_LOADER, is_killed_loader
from training.rendezvous import fresh_store

_PATIENCE = datetime.timedelta(minutes=30)  # with the slowest process
# Kept to the end: where a model that is freed holds the last reference to a group, PyTorch waits
# for the group's threads while it holds the GIL, which these may be waiting for.
_groups: list[dist.ProcessGroup | None] = []
RESUMABLE = 75  # exit code of a run that a signal ended: --resume goes on (sysexits: try again)


class DivergedError(Exception):
    """Training that no longer gets anywhere, in one sentence."""


class Interrupted(Exception):  # noqa: N818
    """A signal to end has come to this process, or, from `check_interrupted`, to one of all."""


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
    if not launched():
        with _orderly_end():
            yield device
        return
    own_gpu = on_gpu and int(os.environ.get("LOCAL_WORLD_SIZE", 1)) <= torch.cuda.device_count()
    try:
        store, number, count = fresh_store(_PATIENCE)
    except ValueError as error:
        print(f"error: WORLD_SIZE is set, as torchrun does it, but {error}", file=sys.stderr)
        sys.exit(2)
    except dist.DistError as error:
        where = f"{os.environ['MASTER_ADDR']}, port {os.environ['MASTER_PORT']}"
        reason = str(error).partition("\n")[0]
        print(f"error: the processes cannot meet at {where}: {reason}", file=sys.stderr)
        sys.exit(2)
    dist.init_process_group(
        "nccl" if own_gpu else "gloo", store=store, rank=number, world_size=count, timeout=_PATIENCE
    )
    _groups.append(dist.group.WORLD)
    try:
        with _orderly_end():
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


@contextmanager
def _orderly_end() -> Iterator[None]:
    """Let SIGTERM, by which torchrun ends the others when one fails, and Ctrl-C clean up like an
    exception. A second Ctrl-C is one, but not under torchrun, which passes on the first again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    process = os.getpid()

    def end(number: int, frame: object) -> None:
        again = number in _asked_to_end and not launched()
        if number == signal.SIGINT and (again or os.getpid() != process):
            raise KeyboardInterrupt  # a process that loads data ends by it without a word
        _asked_to_end.append(number)
        if not _deferring:
            heed_termination()

    _asked_to_end.clear()
    heeded = [number for number in _ENDING if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        _asked_to_end.clear()


_PARENT = os.getppid()
_ENDING = signal.SIGTERM, signal.SIGINT
_asked_to_end: list[int] = []  # signals that have come
_deferring: list[bool] = []


def _in_a_fork() -> None:
    if _deferring:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


os.register_at_fork(after_in_child=_in_a_fork)


def heed_termination() -> None:
    """Leave if a signal has come; for loops to call, because an exception that is raised while
    Python starts a process or frees an object is lost."""
    if _asked_to_end:
        sys.exit(128 + _asked_to_end[0])


def asked_to_end() -> bool:
    """Whether a signal to end has come to this process, or the torchrun that started it is gone."""
    orphaned = "TORCHELASTIC_RUN_ID" in os.environ and os.getppid() != _PARENT
    return bool(_asked_to_end) or orphaned


@contextmanager
def deferred_termination() -> Iterator[None]:
    """Let SIGTERM and Ctrl-C wait until the block asks: a step is finished, a checkpoint written.

    Processes that load data do not heed it: a queue tells them too, and they are needed till then.
    """
    before = multiprocessing.active_children()
    _deferring.append(True)
    try:
        yield
    finally:
        _deferring.pop()
        left = [child for child in multiprocessing.active_children() if child not in before]
        if left:  # an error has kept them; Python would wait for them to end
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for child in left:
                child.kill()


def check_interrupted() -> None:
    """Raise Interrupted on all processes where one was asked to end; all have to call this."""
    if any(gather(asked_to_end())):
        raise Interrupted


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

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._wait()


def launched() -> bool:
    """Whether this process is one of several that torchrun, or another launcher, has started."""
    return "WORLD_SIZE" in os.environ


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
    """End this process with exit code 2 and one sentence where data cannot be read or written,
    training has diverged, or memory does not suffice.

    Under torchrun the others then end too: unlike `one_sentence_errors` this waits for nobody.
    """
    try:
        yield
    except Exception as error:
        sentence = _sentence(error)
        if sentence is None:
            raise
        claim_failure()
        print(f"error: {' '.join(sentence.split())}", file=sys.stderr, flush=True)
        sys.exit(2)


def _sentence(error: Exception) -> str | None:
    """What is said of an error that is no mistake of ours."""
    if isinstance(error, DataError | OSError | DivergedError):
        return str(error)
    if is_killed_loader(error):
        return KILLED_LOADER
    on_cpu = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    if on_cpu or isinstance(error, torch.OutOfMemoryError | MemoryError):
        return (
            "memory does not suffice: take a smaller --batch; in training a smaller --batch-gpu "
            "leaves the batch as it is, and --set recompute=[0,1] keeps fewer activations"
        )
    return None


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


def from_first(value: float) -> float:
    """The first process's value, on every process."""
    if not dist.is_initialized():
        return value
    device = "cuda" if dist.get_backend() == "nccl" else "cpu"
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return shared.item()
