"""Output that breaks ends nothing: what is written then is dropped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from runtime.output import unbroken_output

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import sys
from runtime.output import unbroken_output
with unbroken_output():
    for i in range(20000):
        print("H†y", i)
    print("done", file=sys.stderr)
sys.exit(5)
"""


def run(redirection: str, **environment: str) -> subprocess.CompletedProcess:
    """The program, its output led elsewhere by a shell."""
    command = f"{sys.executable} -c '{PROGRAM}' {redirection}"
    return subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, env=os.environ | environment,
        capture_output=True, timeout=60, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("redirection", ["| head -c 60", ">/dev/full", ">&-"])
def test_a_program_goes_on_without_its_output(redirection):
    done = run(redirection)
    assert (done.returncode, done.stderr) == (5, b"done\n")


def test_a_closed_stderr_is_no_end_either():
    done = run("2>&-")
    assert done.returncode == 5 and done.stdout.decode().endswith("H†y 19999\n")


def test_letters_that_a_terminal_lacks_are_replaced():
    done = run("", PYTHONIOENCODING="latin-1")
    assert done.returncode == 5 and done.stdout.startswith(b"H+y 0\n")


def test_output_is_as_before_afterwards(capsys):
    before = sys.stdout, sys.stderr
    with unbroken_output():
        print("said")
    assert (sys.stdout, sys.stderr) == before and capsys.readouterr().out == "said\n"
