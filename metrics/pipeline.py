"""Steps of an evaluation that run at the same time, each in a thread of its own."""

import queue
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import Generic, Self, TypeVar

import torch

Item = TypeVar("Item")


class Stage(Generic[Item]):
    """Does `work` on every item that is put, in order, in one thread, while the caller goes on.

    At most `depth` items wait, so memory stays bounded. On a GPU the thread has a stream of its
    own; what an item holds must be computed when it is put. An exception of the work is raised by
    the next `put` or at the end of the `with` block; `seconds` is the time the work has taken.
    """

    def __init__(self, work: Callable[[Item], None], device: torch.device, depth: int = 2):
        self.seconds = 0.0
        self._device = device
        self._work = work
        self._items: queue.Queue[Item | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, daemon=True)

    def put(self, item: Item) -> None:
        """Hand over an item; waits while the stage is too far behind."""
        self._raise()
        self._items.put(item)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is not None:  # what still waits is not wanted any more
            self._error = self._error or error
        self._items.put(None)
        self._thread.join()
        if error is None:
            self._raise()

    def _run(self) -> None:
        if self._device.type != "cuda":
            self._work_off()
            return
        torch.cuda.set_device(self._device)  # the current device is a thread's own
        with torch.cuda.stream(torch.cuda.Stream(self._device)):
            self._work_off()

    def _work_off(self) -> None:
        while (item := self._items.get()) is not None:
            if self._error is None:
                start = time.perf_counter()
                try:
                    self._work(item)
                    if self._device.type == "cuda":
                        torch.cuda.current_stream().synchronize()
                except BaseException as error:
                    self._error = error
                self.seconds += time.perf_counter() - start

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error
