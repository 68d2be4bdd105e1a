"""Restored images as PNG files, encoded in threads of their own."""

import re
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Self

from PIL import Image
from torch import Tensor

from runtime.files import writing

_THREADS = 2
_WAITING = 64  # images that may wait to be written


class ImageWriter:
    """Writes images below a folder while the caller goes on; `seconds` is the time it took.

    The first failure (a full disk) is raised by the next `put` or at the end of the `with` block.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self.seconds = 0.0
        self._pool = ThreadPoolExecutor(_THREADS)
        self._places = threading.BoundedSemaphore(_WAITING)
        self._lock = threading.Lock()
        self._error: BaseException | None = None

    def put(self, name: str, image: Tensor) -> None:
        """Write a uint8 image `[C, h, w]` on the CPU, C = 1 or 3, as `folder/name`."""
        if self._error:
            raise self._error
        self._places.acquire()
        self._pool.submit(self._write, self.folder / name, image).add_done_callback(self._done)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._pool.shutdown(cancel_futures=error is not None)
        if error is None and self._error:
            raise self._error

    def _write(self, path: Path, image: Tensor) -> None:
        start = time.perf_counter()
        if not self.folder.is_dir():  # another process has given up: nothing is to come back
            raise FileNotFoundError(f"the folder {self.folder} was removed")
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = image.expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy()
        with writing(path):
            Image.fromarray(pixels).save(path, compress_level=3)
        with self._lock:
            self.seconds += time.perf_counter() - start

    def _done(self, future: Future) -> None:
        if not future.cancelled() and future.exception():
            self._error = future.exception()
        self._places.release()


def image_name(index: int, *folders: str) -> str:
    """Where image `index` is kept below folders named after a degradation and a method."""
    plain = [re.sub(r"[^A-Za-z0-9_]+", "-", f.replace("H†y", "pinv")).strip("-") for f in folders]
    return "/".join([*plain, f"{index // 1000:05d}", f"{index:08d}.png"])
