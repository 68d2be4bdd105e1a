"""Several processes of a group (gloo), forked from the one that tests: nothing is imported."""

import multiprocessing
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch._dynamo  # each fork with an optimiser would import it, for seconds

from runtime import distributed

FORK = multiprocessing.get_context("fork")


class Processes:
    """Forks that run `function(*arguments)`, one for each rank, their output in files."""

    def __init__(
        self,
        function: Callable,
        *arguments: Any,
        count: int = 1,
        environment: dict[str, str] | None = None,
        errors: Path | None = None,
    ):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        group = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        self.processes = []
        for rank in range(count):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)} | group if count > 1 else {}
            process = FORK.Process(
                target=_main, args=(function, arguments, own | (environment or {}), errors)
            )
            process.start()
            self.processes.append(process)

    def signal(self, number: int, only: int | None = None) -> None:
        """Send a signal to all processes or to one."""
        for rank, process in enumerate(self.processes):
            if only in (None, rank) and process.pid and process.is_alive():
                os.kill(process.pid, number)

    def kill(self, first: int = 0) -> None:
        """SIGKILL for one, then for those that have lost it, as torchrun does it."""
        self.signal(signal.SIGKILL, only=first)
        time.sleep(0.2)
        self.signal(signal.SIGKILL)
        self.codes()

    def codes(self) -> list[int | None]:
        """Exit codes; what has not ended after a minute is killed."""
        end = time.monotonic() + 60
        for process in self.processes:
            process.join(max(0.0, end - time.monotonic()))
            process.kill()
            process.join()
        return [process.exitcode for process in self.processes]

    def children(self) -> list[int]:
        """Processes that these have started."""
        lists = [
            path.read_text().split()
            for process in self.processes
            for path in Path(f"/proc/{process.pid}/task").glob("*/children")
        ]
        return [int(pid) for pids in lists for pid in pids]

    def alive(self) -> bool:
        return any(process.is_alive() for process in self.processes)


def _main(
    function: Callable, arguments: Any, environment: dict[str, str], errors: Path | None
) -> None:
    os.environ |= environment
    torch.cuda.is_available = lambda: False
    for number, path in ((1, Path(os.devnull)), (2, errors or Path(os.devnull))):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", buffering=1), os.fdopen(2, "w", buffering=1)
    function(*arguments)


def in_group(count: int, function: Callable, path: Path) -> list[Any]:
    """What `function()` returns (tensors, lists, numbers) in each process of a group."""
    errors = path.with_suffix(".txt")
    processes = Processes(_in_group, function, path, count=count, errors=errors)
    assert set(processes.codes()) == {0}, errors.read_text()[-3000:]
    return [torch.load(f"{path}.{rank}", weights_only=True) for rank in range(count)]


def _in_group(function: Callable, path: Path) -> None:
    with distributed.process_group():
        torch.save(function(), f"{path}.{distributed.rank()}")
