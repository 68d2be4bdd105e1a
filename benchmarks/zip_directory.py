"""Memory for a zip file of a million pictures: `python -m benchmarks.zip_directory`.

Measures `zipfile` alone, and a data set's archive: what stays once it is open, and the peak before.
Each is opened in a process of its own. Writes benchmarks/results/zip-directory.json.
"""

import multiprocessing
import resource
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import report
from datautils.archive import open_archive
from runtime.tables import table

MEMBERS = 10**6


def memory(opener: Callable, path: Path) -> dict[str, int]:
    """MiB that `opener` keeps for a file, and takes at most meanwhile."""
    before = resident()
    opened = opener(path)
    kept = resident() - before
    del opened
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"kept_mib": round(kept), "peak_mib": round(peak - before)}


def resident() -> float:
    """Resident memory of this process, MiB (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def main() -> None:
    """Measure both, print and keep the result."""
    record: dict = {"members": MEMBERS}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "million.zip"
        with zipfile.ZipFile(path, "w") as file:
            for i in range(MEMBERS):
                file.writestr(zipfile.ZipInfo(f"{i // 1000:05d}/img{i:08d}.png"), b"x")
        for name, opener in (("zipfile", zipfile.ZipFile), ("archive", open_archive)):
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                record[name] = pool.apply(memory, (opener, path))
    rows = [[name, *record[name].values()] for name in ("zipfile", "archive")]
    report("zip-directory", table(["opened by", "kept, MiB", "peak, MiB"], rows), record)


if __name__ == "__main__":
    main()
