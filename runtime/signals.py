"""SIGTERM and Ctrl-C: what they end, and what they let finish first."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from runtime.launcher import launched

RESUMABLE = 75  # exit code of a run that a signal ended: --resume goes on (sysexits: try again)
_PARENT = os.getppid()
_ENDING = signal.SIGTERM, signal.SIGINT
_asked_to_end: list[int] = []  # signals that have come
_deferring: list[bool] = []


class Interrupted(Exception):  # noqa: N818
    """A signal to end has come to this process, or, from `check_interrupted`, to one of all."""


def _in_a_fork() -> None:
    if _deferring:
        signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)


os.register_at_fork(after_in_child=_in_a_fork)


@contextmanager
def orderly_end() -> Iterator[None]:
    """Let SIGTERM, by which torchrun ends the others when one fails, and Ctrl-C clean up like an
    exception. A second Ctrl-C is one, but not under torchrun, which passes on the first again."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    process = os.getpid()

    def end(number: int, frame: object) -> None:
        again = number in _asked_to_end and not launched()
        if number == signal.SIGINT and (again or os.getpid() != process):
            raise KeyboardInterrupt  # ends a process that loads data, silently
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

    Processes that load data ignore it: a queue signals them too, and they are still needed.
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
