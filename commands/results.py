"""Where a command keeps what is half done, and how it becomes its result."""

import contextlib
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from commands.options import GenOptions
from metrics.keeping import FOLDER as KEPT
from runtime import distributed
from runtime.errors import one_sentence_errors
from runtime.files import check_folder, claimed

RESULTS = (
    *("metrics.json", "per_image.csv", "samples.csv", "examples.json", "report.html"),
    *("grid*.png", "components*.png", "calibration*.png"),
)
IMAGES = "images"
UNFINISHED = ".unfinished"
_OURS = (".lock", UNFINISHED)


@contextmanager
def working_folder(outdir: Path, results: Sequence[str], resumes: bool = False) -> Iterator[Path]:
    """A folder inside `outdir`, shared by all processes. It is removed at the end.

    If the block ends well, the `results` in it, given as patterns, then move to `outdir`, the first
    one last.

    resumes: if the block is cut off, what is kept in it (`metrics.keeping`) stays for the next run.

    Folders that were made for it go too if nothing was left there. Ends the program with one
    sentence where another command writes into `outdir`, or has left its `results` there meanwhile.
    """
    folder = outdir / UNFINISHED
    made = [path for path in (outdir, *outdir.parents) if not path.exists()]
    with contextlib.ExitStack() as stack:
        with one_sentence_errors():
            if distributed.rank() == 0:
                stack.callback(_remove, made)
                stack.enter_context(claimed(outdir, "writes into"))
                check_new(outdir, results)
                stack.callback(_clear, folder, resumes)
                _clear(folder, resumes)
                folder.mkdir(exist_ok=True)
        yield folder
        if distributed.rank() == 0:
            paths = [path for pattern in results for path in sorted(folder.glob(pattern))]
            for path in reversed(dict.fromkeys(paths)):  # several patterns may fit
                path.replace(outdir / path.name)
            shutil.rmtree(folder / KEPT, ignore_errors=True)


def _clear(folder: Path, resumes: bool) -> None:
    """Remove a working folder, but for what is kept in it."""
    for path in folder.glob("*"):
        if not resumes or path.name != KEPT:
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink()
    _remove([folder / KEPT, folder])
    if (folder / KEPT).exists() and sys.exc_info()[0]:
        print(f"the same command goes on from what is kept in {folder / KEPT}", file=sys.stderr)


def _remove(folders: Sequence[Path]) -> None:
    for path in folders:
        with contextlib.suppress(OSError):  # what holds results stays
            path.rmdir()


def results_of(options: GenOptions) -> tuple[str, ...]:
    """What `gen` leaves, as patterns, the record first."""
    return (*RESULTS, IMAGES) if options.save_images else RESULTS


def check_new(outdir: Path, results: Sequence[str]) -> None:
    """Raise ValueError if a folder cannot be made, or holds one of the results already, which
    may be patterns such as "*"."""
    check_folder(outdir)
    for pattern in results:
        for path in sorted(outdir.glob(pattern)):
            if path.name not in _OURS:
                raise ValueError(f"{path} is there already: choose another --outdir")
