"""What is no mistake of ours ends a command with one sentence; a bug keeps its traceback."""

import errno
import os
from collections.abc import Callable

import click
import numpy as np
import pytest
import torch
from runner import Runner

from runtime.cli import Command
from runtime.errors import is_out_of_memory

OUT_OF_MEMORY: list[Callable[[], object]] = [
    lambda: np.empty(2**55),
    lambda: torch.empty(2**50),
    lambda: torch.empty(2**62),
    lambda: torch.empty(2**70),
    lambda: bytearray(2**60),
]


@pytest.mark.parametrize("attempt", OUT_OF_MEMORY)
def test_memory_that_does_not_suffice_is_one_sentence(attempt: Callable[[], object]) -> None:
    with pytest.raises(Exception) as caught:
        attempt()
    assert is_out_of_memory(caught.value)

    @click.command(cls=Command)
    def main() -> None:
        attempt()

    result = Runner().invoke(main, [])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "memory does not suffice" in result.stderr


@pytest.mark.parametrize("error", [TypeError("no"), RuntimeError("bug"), ValueError("bug")])
def test_mistakes_of_ours_keep_their_traceback(error: Exception) -> None:
    @click.command(cls=Command)
    def main() -> None:
        raise error

    assert Runner().invoke(main, []).exception is error


def test_a_disk_that_is_full_is_one_sentence() -> None:
    @click.command(cls=Command)
    def main() -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a.csv")

    result = Runner().invoke(main, [])
    assert result.exit_code == 2 and "a.csv" in result.stderr
