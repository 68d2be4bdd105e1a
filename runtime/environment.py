"""What a result was made with: versions, machine, commit."""

import contextlib
import os
import platform
import subprocess
from pathlib import Path

import numpy as np
import torch


def environment() -> dict[str, str | int | None]:
    """Versions, machine and the commit of this checkout, for a record in JSON.

    `commit` ends in "-dirty" if files differ from it, and is None outside a git checkout.
    """
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cpu_count": os.cpu_count(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "commit": _commit(Path(__file__).resolve().parents[1]),
    }


def _cpu() -> str:
    """The processor's name if the system has it, else its kind."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit(checkout: Path) -> str | None:
    if not (checkout / ".git").exists():  # a folder above may be a checkout of something else
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
        return answer.stdout.strip()
    return None
