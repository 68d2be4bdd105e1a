"""Steps of an evaluation that run at the same time, in threads of their own."""

import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Self

import torch


class Stage:
    """Does `work` on every item that is put while the caller goes on; one thread works in order.

    At most `depth` items are under way, so memory stays bounded. On a GPU a thread has a stream of
    its own; what an item holds must be computed when it is put. An exception of the work is raised
    by a later `put` or at the end of the `with` block, and what still waits is dropped. `seconds`
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
        self._work, self._device, self._depth = work, device, depth
        self._pool, self._own = ThreadPoolExecutor(threads), threading.local()
        self._waiting: deque[Future[float]] = deque()

    def put(self, *item: Any) -> None:
        """Hand over the arguments of the work; waits while the stage is too far behind."""
        while self._waiting and (len(self._waiting) == self._depth or self._waiting[0].done()):
            self.seconds += self._waiting.popleft().result()
        self._waiting.append(self._pool.submit(self._run, item))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        try:
            while self._waiting and error is None:
                self.seconds += self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)

    def _begin(self) -> None:
        if self._device.type == "cuda" and not hasattr(self._own, "begun"):
            torch.cuda.set_device(self._device)  # device and stream are a thread's own
            torch.cuda.set_stream(torch.cuda.Stream(self._device))
            self._own.begun = True

    def _run(self, item: tuple) -> float:
        start = time.perf_counter()
        self._begin()
        self._work(*item)
        if self._device.type == "cuda":
            torch.cuda.current_stream().synchronize()
        return time.perf_counter() - start
