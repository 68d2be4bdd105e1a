"""Prepare a data set: `python -m datautils.prepare --source FOLDER --dest data/x.zip --size 64`."""

import io
import json
import signal
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click
import numpy as np
import torch
from torch import Tensor

from datautils.archive import LABELS
from datautils.decode import decode_image
from datautils.huggingface import HuggingFace
from datautils.imagedir import MODES, ImageDir
from datautils.indexed import fit
from datautils.loading import cores, in_order
from runtime.cli import SETTINGS, Command
from runtime.errors import DataError, one_sentence_errors
from runtime.files import check_output, replacing
from runtime.progress import progress

_FORMATS = ("png", "webp")


class Originals(NamedTuple):
    """Pictures as they came."""

    stems: Sequence[str]  # how the prepared files are named, without the extension
    labels: Sequence[int] | np.ndarray  # -1 for none
    read: Callable[[int], tuple[bytes, str]]  # the bytes, and how a message names them


class Done(NamedTuple):
    """How many images were written, of how many classes, and a message for each left out."""

    images: int
    classes: int
    broken: list[str]

    def __str__(self) -> str:
        text = f"{self.images} images, {self.classes or 'no'} classes"
        return text + (f"; {len(self.broken)} broken ones left out" if self.broken else "")


def folder_originals(path: Path, labels: str = "auto") -> Originals:
    """The pictures of a folder or a zip file; they keep their names but for the extension.

    Raises DataError if two would become one file.
    """
    data = ImageDir(path, labels=labels)
    stems = [str(PurePosixPath(name).with_suffix("")) for name in data.names]
    ((stem, count),) = Counter(stems).most_common(1)
    if count > 1:
        raise DataError(f"{path} holds two files {stem}, which differ in the extension only")
    return Originals(stems, data.labels, data.picture)


def prepare(
    originals: Originals,
    dest: Path,
    *,
    size: int,
    crop: int | None = None,
    format: str = "png",
    workers: int = 0,
    skip_broken: bool = False,
) -> Done:
    """Write the centre squares of the originals, resized to `size` pixels, into a new zip file.

    The options are those of the command; with 0 workers everything is done in this process. The
    result does not depend on their number. Raises DataError for a broken original and if `dest` is
    there, OSError if it cannot be written; then, as after any other error, nothing is left there.
    """
    if dest.exists():
        raise DataError(f"{dest} is already there: remove it, or choose another --dest")
    convert = partial(_converted, originals.read, size, crop, format, skip_broken)
    count = len(originals.stems)
    results = in_order(convert, range(count), min(workers, count))
    pairs, broken = [], []
    with (
        replacing(dest) as path,
        closing(results),
        zipfile.ZipFile(path, "w") as file,
        progress(count, "preparing", "images") as bar,
    ):
        for stem, label, result in zip(originals.stems, originals.labels, results, strict=True):
            bar.update()
            if isinstance(result, str):
                broken.append(result)
                continue
            pairs.append((f"{stem}.{format}", int(label)))
            file.writestr(zipfile.ZipInfo(pairs[-1][0]), result.numpy().tobytes())
        if not pairs:
            raise DataError(f"none of the originals could be read, the first: {broken[0]}")
        classes = {label for _, label in pairs} - {-1}
        labels = json.dumps({"labels": pairs if classes else None})
        file.writestr(zipfile.ZipInfo(LABELS), labels)
    return Done(len(pairs), len(classes), broken)


def _converted(
    read: Callable[[int], tuple[bytes, str]],
    size: int,
    crop: int | None,
    format: str,
    skip_broken: bool,
    index: int,
) -> Tensor | str:
    """The encoded prepared image, or with `skip_broken` what is wrong with a broken original.

    As a tensor, in shared memory: many bytes in a pipe would keep a worker from ending with a main
    process that was killed.
    """
    try:
        data, where = read(index)
        image = fit(decode_image(data, where), size, crop, where)
    except DataError as error:
        if skip_broken:
            return str(error)
        raise
    encoded = io.BytesIO()
    image.save(encoded, format, lossless=True)  # as PNG always is
    return torch.frombuffer(encoded.getbuffer(), dtype=torch.uint8)


@click.command(cls=Command, context_settings=SETTINGS | {"show_default": True})
@click.option("--source", type=click.Path(path_type=Path), help="Folder or zip file of originals.")
@click.option("--hub", metavar="OWNER/NAME", help="Hugging Face data set, instead.")
@click.option("--hub-split", default="train", help="Split of the hub's data set.")
@click.option("--image-column", default="image", help="The hub's column of images.")
@click.option(
    "--label-column",
    help="The hub's column of class labels, or none.  [default: label, if there is one]",
)
@click.option("--dest", required=True, type=click.Path(path_type=Path), help="Zip file to write.")
@click.option(
    "--size", required=True, type=click.IntRange(1, 2**16), metavar="PIXELS",
    help="Side of the prepared images, in pixels; smaller originals are enlarged.",
)  # fmt: skip
@click.option(
    "--crop", type=click.IntRange(1, 2**16), metavar="PIXELS",
    help="Side, in pixels of the original, of the square cut out of its middle before resizing.  "
    "[default: its shorter side]",
)  # fmt: skip
@click.option(
    "--labels", type=click.Choice(MODES), default="auto",
    help="Of a folder or zip file. json: from dataset.json; subfolders: the top-level folders, "
    "sorted, are the classes; auto: whichever of these there is.",
)  # fmt: skip
@click.option(
    "--format", type=click.Choice(_FORMATS), default="png",
    help="Both are lossless; webp is smaller, and slower to write.",
)  # fmt: skip
@click.option("--workers", type=click.IntRange(0), help="Processes.  [default: one for each core]")
@click.option("--limit", type=click.IntRange(1), help="Number of originals to take, the first.")
@click.option("--skip-broken", is_flag=True, help="Leave out originals that cannot be prepared.")
def main(
    source: Path | None, hub: str | None, hub_split: str, image_column: str,
    label_column: str | None, dest: Path, size: int, crop: int | None, labels: str, format: str,
    workers: int | None, limit: int | None, skip_broken: bool,
) -> None:  # fmt: skip
    """Crop and resize originals (Lanczos) into a zip file, as the data sets read it.

    Files keep their relative names but for the extension. After an error nothing is left.
    """
    with one_sentence_errors():
        check_output(dest, "--dest", ".zip")
        if source is not None and hub is None:
            originals = folder_originals(source, labels)
        elif hub is not None and source is None:
            rows = HuggingFace(
                hub, train_split=hub_split, image_column=image_column, label_column=label_column
            )
            stems = [f"{i // 1000:05d}/{i:08d}" for i in range(len(rows))]  # a thousand a folder
            originals = Originals(stems, rows.labels, rows.picture)
        else:
            raise ValueError("give one of --source and --hub")
        done = prepare(
            originals._replace(stems=originals.stems[:limit], labels=originals.labels[:limit]),
            dest, size=size, crop=crop, format=format,
            workers=cores() if workers is None else workers, skip_broken=skip_broken,
        )  # fmt: skip
    for sentence in done.broken[:20]:
        click.echo(f"left out: {sentence}", err=True)
    click.echo(f"{dest}: {done}")


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # clean up as after any error
    main()
