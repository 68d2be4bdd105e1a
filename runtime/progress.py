"""Progress: a bar on a terminal, a line every few seconds elsewhere; and time that passes."""

import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import TextIO, TypeVar, cast

import torch
from tqdm import tqdm

T = TypeVar("T")
_SECONDS = 5.0  # between two lines
# Of this process alone: a fork that is killed while it draws would keep a shared lock for ever.
tqdm.set_lock(threading.RLock())


class _Lines:
    """Turns a bar, which draws over itself, into lines."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> None:
        with suppress(BrokenPipeError):  # Ctrl-C ends `tee` too, and a checkpoint is still to come
            if text := text.strip("\r\n "):
                self.stream.write(f"{text}\n")


def progress(
    total: int,
    what: str,
    unit: str,
    silent: bool = False,
    initial: int = 0,
    seconds: float | None = None,
) -> tqdm:
    """A bar of `total` units on stderr, to be used in a `with` statement; silent: none.

    initial: units that were done before; seconds: between two lines, by default 5.
    """
    bar = partial(tqdm, total=total, initial=initial, desc=what)
    if silent or sys.stderr.isatty():
        return bar(unit=f" {unit}", leave=False, disable=silent, dynamic_ncols=True)
    lines, interval = cast(TextIO, _Lines(sys.stderr)), seconds or _SECONDS
    shown = "{desc}: {n_fmt} of {total_fmt} {unit}, {elapsed} passed, {remaining} left{postfix}"
    return bar(unit=unit, file=lines, bar_format=shown, mininterval=interval)


def each(items: Sequence[T], what: str, unit: str) -> Iterator[T]:
    """The items in turn, with such a bar."""
    with progress(len(items), what, unit) as bar:
        for item in items:
            yield item
            bar.update()


def in_words(seconds: float) -> str:
    """A time such as 25 s, 40 min or 3.5 h."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def seconds_now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
