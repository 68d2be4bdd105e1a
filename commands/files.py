"""Where a command keeps what is half done."""

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from training import distributed


@contextmanager
def working_folder(outdir: Path) -> Iterator[Path]:
    """A folder inside `outdir`, shared by all processes, that is removed whatever happens.

    An `outdir` that was made for it goes too if nothing was left there.
    """
    folder, made = outdir / ".unfinished", not outdir.exists()
    if distributed.rank() == 0:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
    distributed.barrier()
    try:
        yield folder
    finally:
        if distributed.rank() == 0:
            shutil.rmtree(folder, ignore_errors=True)
            if made:
                with contextlib.suppress(OSError):
                    outdir.rmdir()
