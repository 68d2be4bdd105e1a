"""How much memory there is, for what would otherwise fail after a long time, or be killed."""

import os
import resource
from pathlib import Path

_GROUP = Path("/sys/fs/cgroup/memory.max")  # of a container


def memory() -> int:
    """Bytes that this process may use at most: of the machine, by `ulimit -v`, of its container."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        limits.append(soft)
    if _GROUP.is_file() and (text := _GROUP.read_text().strip()).isdecimal():
        limits.append(int(text))
    return min(limits)


def check_memory(numbers: int, option: str, bytes_each: int = 4) -> None:
    """Raise ValueError if an option asks for more numbers than the memory holds."""
    needed, there = numbers * bytes_each, memory()
    if needed > there:
        raise ValueError(
            f"{option} takes {needed / 2**30:.3g} GiB of memory, and there are {there / 2**30:.3g}"
        )
