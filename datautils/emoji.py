"""Emoji in three styles, and `python -m datautils.emoji`, which makes their files."""

import io
import os
import tarfile
import zlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import click
import numpy as np
from PIL import Image

from datautils.decode import decode_image, resize
from datautils.imagedir import ImageDir, Labels
from datautils.indexed import check_count
from datautils.loading import cores
from datautils.prepare import Originals, prepare
from runtime.cli import SETTINGS, Command
from runtime.errors import DataError, one_sentence_errors

# In the order of their classes: the folder of the pictures in the npm package, and the white border
# of a prepared picture, in 64ths of it.
STYLES = {
    "fluent": ("package/assets", 2),
    "noto": ("package/img/google/64", 0),
    "twemoji": ("package/img/twitter/64", 0),
}
COMMANDS = (
    "`npm pack @lobehub/fluent-emoji-3d@1.1.0 emoji-datasource-google@16.0.0 "
    "emoji-datasource-twitter@16.0.0` and `python -m datautils.emoji "
    "--fluent lobehub-fluent-emoji-3d-1.1.0.tgz --noto emoji-datasource-google-16.0.0.tgz "
    "--twemoji emoji-datasource-twitter-16.0.0.tgz"
)
_SHIPPED, _SHIPPED_SIDE = Path(__file__).parent / "emoji32-heldout.zip", 32
# The first code points of the held-out emoji, as in the names: one in eleven. An emoji has all
# its skin tones in one split. But Fluent has the keycaps of *, 1 and 9 under a second name,
# without the zeros, for training.
_CODES = """
002a 0031 0039 2049 2328 2604 2642 2651 265f 2665 2666 26ab 26f4 2708 2709 270a 2734 2795 2b1c 2b55
303d 3297 3299 1f1e9 1f1ef 1f1fc 1f232 1f305 1f30b 1f30c 1f310 1f312 1f332 1f334 1f339 1f342 1f361
1f36a 1f370 1f371 1f37a 1f386 1f39e 1f3a7 1f3ac 1f3af 1f3b2 1f3b6 1f3b7 1f3cc 1f3cf 1f3e1 1f3e7
1f3fe 1f40d 1f411 1f439 1f44c 1f456 1f45e 1f475 1f479 1f47a 1f48a 1f490 1f492 1f4a1 1f4af 1f4c0
1f4c2 1f4c5 1f4e9 1f4fc 1f50c 1f515 1f517 1f51a 1f52b 1f532 1f537 1f538 1f539 1f54a 1f552 1f553
1f55d 1f577 1f5c2 1f5f3 1f5fe 1f601 1f605 1f687 1f6a7 1f6b5 1f6c4 1f6cb 1f6d6 1f6dd 1f6df 1f6f0
1f7e2 1f916 1f926 1f92a 1f92c 1f92d 1f95c 1f96d 1f975 1f980 1f988 1f995 1f9a5 1f9af 1f9c2 1f9c8
1f9d8 1f9e1 1f9e6 1f9ea 1f9fe 1fa75 1fa79 1fa9d 1faa1 1faa2 1fab4 1fae5 1faf8
"""
HELDOUT = frozenset(_CODES.split())


class Emoji(ImageDir):
    """Emoji on white, resized to `resolution`; the class is the style: Fluent 3D, Noto, Twemoji.

    `path` is the folder of emoji64-train.zip and emoji64-heldout.zip, by default `data`. But
    without `path` the held-out images at 32×32 are the 256 that come with the project. Held-out
    styles take turns, in a mixed order: any first few show all kinds of emoji.
    Raises what ImageDir raises, and DataError with the commands that make a missing file.
    """

    def __init__(
        self, resolution: int = 32, split: str = "train", path: str | os.PathLike[str] | None = None
    ):
        check_count("resolution", resolution)
        folder = Path("data" if path is None else path)
        train, heldout = folder / "emoji64-train.zip", folder / "emoji64-heldout.zip"
        if path is None and resolution == _SHIPPED_SIDE:
            heldout = _SHIPPED
        needed = heldout if split == "heldout" else train
        if not needed.exists():
            raise DataError(f"{needed} is not there: make it by {COMMANDS} --dest {folder}`")
        super().__init__(
            train, split, heldout_path=heldout, size=resolution, labels="json", num_classes=3
        )

    def _choose(self, labels: Labels) -> np.ndarray:
        count, names = len(labels.values), labels.archive.names
        if self.split == "train":
            return np.arange(count)
        mixed = np.array([zlib.crc32(names[i].encode()) for i in range(count)])  # not flags first
        order = np.lexsort((mixed, labels.values))
        # The names begin with the style, so the labels are sorted.
        rank = np.arange(count) - np.searchsorted(labels.values, labels.values)
        return order[np.argsort(rank, kind="stable")]


def originals(archives: dict[str, Path], size: int) -> dict[str, Originals]:
    """The emoji of both splits, drawn at `size` pixels, from the package of each style.

    Of pictures that are the same within a style, the first by name is taken. Raises DataError.
    """
    found: dict[str, list[_Emoji]] = {"train": [], "heldout": []}
    for label, (name, path) in enumerate(archives.items()):
        seen = set()
        for file, data in sorted(_pictures(path, STYLES[name][0]).items()):
            if data not in seen:
                seen.add(data)
                stem = PurePosixPath(file).stem
                split = "heldout" if stem.split("-")[0] in HELDOUT else "train"
                found[split].append(_Emoji(f"{name}/{stem}", label, data, f"{file} in {path}"))
    return {
        split: Originals(
            [e.stem for e in emoji], [e.label for e in emoji], partial(_drawn, emoji, size)
        )
        for split, emoji in found.items()
    }


class _Emoji(NamedTuple):
    stem: str
    label: int
    data: bytes
    where: str  # for messages


def _pictures(path: Path, folder: str) -> dict[str, bytes]:
    """The bytes of the files in a folder of an npm package, by their names. Raises DataError."""
    try:
        with tarfile.open(path) as archive:
            found = {
                PurePosixPath(member.name).name: archive.extractfile(member).read()  # type: ignore[union-attr]
                for member in archive
                if member.isfile() and str(PurePosixPath(member.name).parent) == folder
            }
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from None
    if not found:
        raise DataError(f"{path} has no {folder}: give the package that `npm pack` stores")
    return found


def _drawn(emoji: Sequence[_Emoji], size: int, index: int) -> tuple[bytes, str]:
    """A picture over white inside the border of its style, `size` pixels high and wide, as PPM."""
    stem, _, data, where = emoji[index]
    border = round(STYLES[stem.split("/")[0]][1] * size / 64)
    image = Image.new("RGB", (size, size), "white")
    image.paste(resize(decode_image(data, where), size - 2 * border), (border, border))
    file = io.BytesIO()
    image.save(file, "PPM")
    return file.getvalue(), where


@click.command(cls=Command, context_settings=SETTINGS | {"show_default": True})
@click.option("--fluent", required=True, type=click.Path(path_type=Path), help="Fluent 3D, .tgz.")
@click.option("--noto", required=True, type=click.Path(path_type=Path), help="Noto, .tgz.")
@click.option("--twemoji", required=True, type=click.Path(path_type=Path), help="Twemoji, .tgz.")
@click.option("--dest", default="data", type=click.Path(path_type=Path), help="Folder to write to.")
@click.option("--size", default=64, type=click.IntRange(1), help="Side of the images, in pixels.")
def main(dest: Path, size: int, **archives: Path) -> None:
    """Write emoji64-train.zip and emoji64-heldout.zip from the npm packages of three styles."""
    with one_sentence_errors():
        for split, drawn in originals({name: archives[name] for name in STYLES}, size).items():
            path = dest / f"emoji{size}-{split}.zip"
            done = prepare(drawn, path, size=size, format="webp", workers=cores())
            click.echo(f"{path}: {done}")


if __name__ == "__main__":
    main()
