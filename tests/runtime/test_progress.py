"""Bars of one process say nothing about those of another."""

from processes import FORK
from tqdm import tqdm

import runtime.progress  # noqa: F401  sets the lock of bars


def test_a_fork_that_ends_while_it_draws_stops_no_bar() -> None:
    lock = tqdm.get_lock()
    fork = FORK.Process(target=lock.acquire)  # ends with it
    fork.start()
    fork.join()
    assert fork.exitcode == 0 and lock.acquire(timeout=1)
    lock.release()
