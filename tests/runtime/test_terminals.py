"""What is printed can be read on any terminal and steers none; output that breaks ends nothing."""

import errno
import io
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from runner import Runner

from runtime.cli import Command
from runtime.errors import is_out_of_memory
from runtime.output import unbroken_output
from runtime.tables import table

ROOT = Path(__file__).resolve().parents[2]
TABLE = table(["method", "mean (y − Hx)²"], [["H†y", 0.5], ["ΠGDM", 0.25]])


def printed(text: str, encoding: str) -> str:
    """What a command prints on a terminal of this encoding."""

    @click.command(cls=Command)
    def main() -> None:
        print(text)

    result = Runner(charset=encoding).invoke(main, [])
    assert result.exit_code == 0, result.exception
    return result.stdout_bytes.decode(encoding)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_tables_are_aligned_in_every_encoding(encoding: str) -> None:
    lines = printed(TABLE, encoding).splitlines()
    assert len({len(line) for line in lines}) == 1
    assert ("H†y" if encoding == "utf-8" else "H+y") in lines[2]


def test_what_a_terminal_can_show_stays_as_it_is() -> None:
    assert printed(TABLE, "utf-8") == TABLE + "\n"
    assert printed("é\udcff", "latin-1") == "e?\n"  # a name of bytes that are no UTF-8


def test_texts_do_not_steer_the_terminal() -> None:
    shown = printed("cat\x1b[2J\x9b1mdog\x07\ttail", "utf-8")
    assert shown == "cat?[2J?1mdog?\ttail\n"


def test_a_bar_may_move_the_cursor(capfd: pytest.CaptureFixture[str]) -> None:
    with unbroken_output():
        sys.stderr.write("\x1b[A\x1b[A")
    assert capfd.readouterr().err == "\x1b[A\x1b[A"


@pytest.mark.parametrize("redirection", ["2>&1 >&-", "2>&-", ">/dev/full", "| head -c 0"])
def test_output_that_breaks_or_is_closed_is_no_error(redirection: str) -> None:
    words = f"PYTHONIOENCODING=ascii {sys.executable} restore.py -h {redirection}"
    command = ["bash", "-c", f"set -o pipefail; {words}"]
    program = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (program.returncode, program.stderr) == (0, "")


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


def test_a_broken_stream_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stream, monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        with unbroken_output():
            print("x" * io.DEFAULT_BUFFER_SIZE * 2)
            print("y", flush=True)
