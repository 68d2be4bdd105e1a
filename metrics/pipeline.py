"""Steps of an evaluation that run at the same time, in threads of their own."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import torch


class Stage:
    """Does `work` on every item that is put while the caller goes on: one thread works in order.

    At most `depth` items are under way, so memory stays bounded. On a GPU a thread has a stream of
    its own; what an item holds must be computed when it is put. An exception of the work is raised
    by the next `put` or at the end of the `with` block, and no further item is worked on; `seconds`
    is the time the work has taken.
    """

    def __init__(
        self,
        work: Callable[..., None],
        device: torch.device = torch.device("cpu"),
        depth: int = 3,
        threads: int = 1,
    ):
        self.seconds = 0.0
        self._work, self._device = work, device
        self._pool, self._own = ThreadPoolExecutor(threads), threading.local()
        self._places, self._lock = threading.BoundedSemaphore(depth), threading.Lock()
        self._error: BaseException | None = None

    def put(self, *item: Any) -> None:
        """Hand over the arguments of the work; waits while the stage is too far behind."""
        self._raise()
        self._places.acquire()
        self._pool.submit(self._run, item)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        self._error = self._error or error  # what still waits is not wanted any more
        self._pool.shutdown()
        if error is None:
            self._raise()

    def _begin(self) -> None:
        if self._device.type == "cuda" and not hasattr(self._own, "begun"):
            torch.cuda.set_device(self._device)  # device and stream are a thread's own
            torch.cuda.set_stream(torch.cuda.Stream(self._device))
            self._own.begun = True

    def _run(self, item: tuple) -> None:
        start = time.perf_counter()
        try:
            if self._error is None:
                self._begin()
                self._work(*item)
                if self._device.type == "cuda":
                    torch.cuda.current_stream().synchronize()
        except BaseException as error:
            self._error = self._error or error
        self._places.release()
        with self._lock:
            self.seconds += time.perf_counter() - start

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
