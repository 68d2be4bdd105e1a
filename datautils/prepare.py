"""Prepare a data set: `python -m datautils.prepare --source FOLDER --dest data/x.zip --size 64`."""

import io
import os
import signal
import sys
import threading
import time
import warnings
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
from click.core import ParameterSource
from PIL import Image
from tqdm import tqdm

from datautils.archive import open_archive
from datautils.decode import decode_image
from datautils.fit import check_side, fit
from datautils.labels import MODES, read_labels
from datautils.loading import cores
from datautils.names import position
from datautils.originals import Original, Source, archive_source, hub_source
from datautils.shards import SHARD_SUFFIXES
from datautils.writers import ShardWriter, Writer, ZipWriter, remove
from runtime.errors import DataError

_WATCH = 1.0  # seconds between two looks for the main process
_AHEAD = 8  # originals in memory for each worker
_WRITER: dict[str, dict[str, Any]] = {
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "lossless": True},
}


class Done(NamedTuple):
    """What was written, in order, and the sentences about what was left out."""

    names: list[str]
    labels: array  # int32, -1 without labels
    broken: list[str]


def prepare(
    source: Source,
    dest: Path,
    *,
    size: int,
    crop: int | None = None,
    format: str = "png",
    workers: int = 0,
    skip_broken: bool = False,
    shard_size: int | None = None,
) -> Done:
    """Write the centre squares of the originals, resized to `size` pixels, into `dest`: a zip file
    or, with `shard_size` images in each, a folder of tar shards.

    The options are those of the command; with 0 workers everything is done in this process. The
    result does not depend on their number. Raises ValueError for a size or a `dest` that cannot be,
    DataError for faults of the originals and where `dest` cannot be written; then, as after any
    other error, nothing is left at `dest`.
    """
    check_side("size", size)
    _check_dest(dest, shard_size)
    with _replacing(dest) as temporary, _pool(workers) as pool:
        convert_one = partial(convert, size=size, crop=crop, format=format)
        results = _in_order(pool, convert_one, source.originals, _AHEAD * max(1, workers))
        bar = tqdm(results, "preparing", source.total, unit=" images")
        with ShardWriter(temporary, shard_size) if shard_size else ZipWriter(temporary) as writer:
            done = _write(writer, bar, f".{format}", source.labelled, skip_broken)
        verify(temporary, done, size, pool, workers)
    return done


def _check_dest(dest: Path, shard_size: int | None) -> None:
    if dest.exists():
        raise DataError(f"{dest} is already there: remove it, or choose another --dest")
    parent = next(folder for folder in dest.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise ValueError(f"--dest {dest} cannot be written: {parent} is no folder")
    if not shard_size and dest.name.endswith(SHARD_SUFFIXES):
        raise ValueError(
            f"--dest {dest} would be read as a shard, but is to be a zip file: call it .zip, or "
            "give --shard-size for a folder of shards"
        )


def convert(data: bytes, where: str, *, size: int, crop: int | None, format: str) -> bytes:
    """The encoded prepared image of an original's bytes. Raises DataError."""
    image = fit(decode_image(data, where), size, crop, where)
    encoded = io.BytesIO()
    image.save(encoded, **_WRITER[format])
    return encoded.getvalue()


def verify(
    path: Path, done: Done, size: int, pool: Executor | None = None, workers: int = 0
) -> None:
    """Read what was prepared as a data set would, every image of it. Raises DataError."""
    archive = open_archive(path)
    labels = read_labels(archive).values
    places = [position(archive.names, name) for name in done.names]
    if len(archive.names) != len(places) or None in places:
        raise DataError(f"{path} does not hold the {len(places)} images written to it")
    if not np.array_equal(labels[np.array(places, dtype=np.int64)], np.array(done.labels)):
        raise DataError(f"the labels in {path} are not those written to it")
    written = (
        Original(name, archive.where(name), -1, partial(archive.read, name)) for name in done.names
    )
    sizes = _in_order(pool, _size_of, written, _AHEAD * max(1, workers))
    for original, future in tqdm(sizes, "checking", len(done.names), unit=" images"):
        if future.result() != (size, size):
            raise DataError(f"{original.where} is not of {size}x{size} pixels")


def _size_of(data: bytes, where: str) -> tuple[int, int]:
    return decode_image(data, where).size


def _write(
    writer: Writer,
    results: Iterable[tuple[Original, Future]],
    suffix: str,
    labelled: bool,
    skip_broken: bool,
) -> Done:
    broken = []
    for original, future in results:
        try:
            data = future.result()
        except DataError as error:
            if not skip_broken:
                raise
            broken.append(str(error))
            continue
        writer.add(original.stem, suffix, data, original.label)
    if not writer.names:
        raise DataError("none of the originals could be read: nothing was written")
    writer.finish(labelled)
    return Done(writer.names, writer.labels, broken)


def _in_order(
    pool: Executor | None,
    function: Callable,
    originals: Iterable[Original],
    ahead: int,
) -> Iterator[tuple[Original, Future]]:
    """Every original with the future of function(its bytes, where), `ahead` of them at a time."""
    pending: deque[tuple[Original, Future]] = deque()
    for original in originals:
        pending.append((original, _submit(pool, function, original)))
        if len(pending) >= ahead:
            yield pending.popleft()
    yield from pending


def _submit(pool: Executor | None, function: Callable, original: Original) -> Future:
    """The future result, or DataError, of reading an original here and `function` in the pool."""
    future: Future = Future()
    try:
        data = original.read()
        if pool is not None:
            return pool.submit(function, data, original.where)
        future.set_result(function(data, original.where))
    except DataError as error:
        future.set_exception(error)
    return future


@contextmanager
def _pool(workers: int) -> Iterator[Executor | None]:
    if not workers:
        yield None
        return
    pool = ProcessPoolExecutor(workers, initializer=_start_worker)
    try:
        yield pool
    except BrokenProcessPool:
        raise DataError(
            "a worker process was killed, perhaps for lack of memory: take fewer --workers"
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is answered by the main process
    _no_bomb_warnings()
    threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    """End this worker where the main process was killed: it would wait for its orders for ever."""
    while os.getppid() == parent:
        time.sleep(_WATCH)
    os._exit(1)


def _no_bomb_warnings() -> None:
    """`decode_image` refuses what Pillow warns of: the warning would only say it twice."""
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


@contextmanager
def _replacing(dest: Path) -> Iterator[Path]:
    """A temporary path that becomes `dest`; on an error it is removed, and new folders with it.

    An OSError, of a full disk for one, becomes a DataError.
    """
    new = [folder for folder in dest.absolute().parents if not folder.exists()]
    temporary = dest.with_name(f".{dest.name}.{os.getpid()}.partial")
    try:
        dest.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        os.replace(temporary, dest)
    except BaseException as error:
        with suppress(OSError):
            remove(temporary)
            for folder in new:
                folder.rmdir()  # not where something else is in it by now
        if isinstance(error, OSError):
            raise DataError(f"{dest} cannot be written: {error.strerror or error}") from None
        raise


def _report(dest: Path, done: Done, labelled: bool, size: int) -> str:
    classes = f"{len(set(done.labels))} classes" if labelled else "no labels"
    text = f"{dest}: {len(done.names)} images of {size}x{size} pixels, {classes}"
    return text + (f"; {len(done.broken)} broken ones left out" if done.broken else "")


def _check_hub_options(context: click.Context) -> None:
    """Raise ValueError where options of the hub are given for files."""
    for option in ("hub_split", "image_column", "label_column"):
        if context.get_parameter_source(option) is ParameterSource.COMMANDLINE:
            raise ValueError(f"--{option.replace('_', '-')} goes with --hub, not with --source")


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--source", type=click.Path(path_type=Path), help="Folder, zip file or shards of originals."
)
@click.option("--hub", "hub_name", metavar="OWNER/NAME", help="Hugging Face data set, instead.")
@click.option("--hub-split", default="train", help="Split of the hub's data set.")
@click.option("--image-column", default="image", help="The hub's column of images.")
@click.option(
    "--label-column", help="The hub's column of class labels.  [default: label, if there is one]"
)
@click.option(
    "--dest",
    required=True,
    type=click.Path(path_type=Path),
    help="Zip file to write, or with --shard-size the folder.",
)
@click.option(
    "--size", required=True, type=click.IntRange(1), metavar="PIXELS",
    help="Side of the prepared images, in pixels; smaller originals are enlarged.",
)  # fmt: skip
@click.option(
    "--crop", type=click.IntRange(1), metavar="PIXELS",
    help="Side, in pixels of the original, of the square cut out of its middle before resizing.  "
    "[default: its shorter side]",
)  # fmt: skip
@click.option(
    "--labels", type=click.Choice(MODES), default="auto",
    help="json: from dataset.json; sidecar: the .cls or .json beside each picture of a shard; "
    "subfolders: the top-level folders, sorted, are the classes; "
    "auto: whichever of these there is (of the hub: its label column).",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(tuple(_WRITER)), default="png",
    help="Both are lossless; webp is smaller, and slower to write.",
)  # fmt: skip
@click.option(
    "--shard-size", type=click.IntRange(1), metavar="IMAGES",
    help="Write a folder of tar shards (WebDataset) with so many images each, instead of a zip.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(0), help="Processes.  [default: one for each core]")
@click.option("--limit", type=click.IntRange(1), help="Number of originals to take, the first.")
@click.option("--skip-broken", is_flag=True, help="Leave out originals that cannot be prepared.")
@click.pass_context
def main(
    context: click.Context, source: Path | None, hub_name: str | None, hub_split: str,
    image_column: str, label_column: str | None, dest: Path, size: int, crop: int | None,
    labels: str, format: str, shard_size: int | None, workers: int | None, limit: int | None,
    skip_broken: bool,
) -> None:  # fmt: skip
    """Crop and resize originals (Lanczos) into a zip file or shards, as the data sets read them.

    Files keep their relative names but for the extension. The result is checked before it appears
    under its name, and after an error nothing is left.
    """
    _no_bomb_warnings()
    try:
        if (source is None) == (hub_name is None):
            raise ValueError("give one of --source and --hub")
        if hub_name is not None:
            chosen = hub_source(hub_name, hub_split, image_column, label_column, labels, limit)
        elif source is not None:
            _check_hub_options(context)
            chosen = archive_source(source, labels, limit)
        done = prepare(
            chosen, dest, size=size, crop=crop, format=format,
            workers=cores() if workers is None else workers, skip_broken=skip_broken,
            shard_size=shard_size,
        )  # fmt: skip
    except (ValueError, OSError) as error:
        click.echo(f"error: {' '.join(str(error).split())}", err=True)
        sys.exit(2)
    for sentence in done.broken[:20]:
        click.echo(f"left out: {sentence}", err=True)
    click.echo(_report(dest, done, chosen.labelled, size))


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up as after any error
    main()
