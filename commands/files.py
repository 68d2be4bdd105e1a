"""Where a command keeps what is half done, and how it becomes its result."""

import contextlib
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from runtime import distributed

IMAGES = "images"


@contextmanager
def working_folder(outdir: Path) -> Iterator[Path]:
    """A folder inside `outdir`, shared by all processes, that is removed whatever happens.

    Folders that were made for it go too if nothing was left there.
    """
    folder = outdir / ".unfinished"
    made = [path for path in (outdir, *outdir.parents) if not path.exists()]
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    distributed.barrier()
    try:
        yield folder
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            with contextlib.suppress(OSError):  # what holds results stays
                for path in made:
                    path.rmdir()


def publish(folder: Path, outdir: Path, names: Sequence[str]) -> None:
    """Move finished files and folders from a working folder to their place, in this order."""
    for name in names:
        if (folder / name).exists():
            (folder / name).replace(outdir / name)


def check_new(outdir: Path, save_images: bool = False) -> None:
    """Raise ValueError where results would be written over others, or images among other files."""
    names = ["metrics.json", IMAGES] if save_images else ["metrics.json"]
    for name in names:
        if (outdir / name).exists():
            raise ValueError(f"{outdir / name} is there already: choose another --outdir")
