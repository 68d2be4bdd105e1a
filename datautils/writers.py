"""Files of prepared images: one zip, or a folder of tar shards."""

import io
import json
import shutil
import tarfile
import zipfile
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol, Self

from datautils.names import LABELS
from runtime.errors import DataError

_LARGEST = 10**6  # shards have six digits


class Writer(Protocol):
    """Takes images in order; `names` and `labels` (-1: none) are those written so far."""

    names: list[str]
    labels: array

    def add(self, stem: str, suffix: str, data: bytes, label: int) -> None:
        """Write an image. Raises DataError where its name is taken."""

    def finish(self, labelled: bool) -> None:
        """Write what comes last."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *error: object) -> None: ...


class ZipWriter:
    """A zip file with dataset.json, its members stored with a fixed date: same bytes again."""

    def __init__(self, path: Path):
        self._zip = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)
        self.names: list[str] = []
        self.labels = array("i")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self._zip.close()

    def add(self, stem: str, suffix: str, data: bytes, label: int) -> None:
        self._zip.writestr(zipfile.ZipInfo(stem + suffix), data)
        self.names.append(stem + suffix)
        self.labels.append(label)

    def finish(self, labelled: bool) -> None:
        with self._zip.open(zipfile.ZipInfo(LABELS), "w", force_zip64=True) as file:
            for text in self._json(labelled):
                file.write(text.encode())

    def _json(self, labelled: bool) -> Iterator[str]:
        """dataset.json, piece by piece: whole it would be as large as all names together."""
        if not labelled:
            yield '{"labels": null}'
            return
        for i, pair in enumerate(zip(self.names, self.labels, strict=True)):
            yield ('{"labels": [' if i == 0 else ", ") + json.dumps(pair)
        yield "]}"


class ShardWriter:
    """A folder of 000000.tar, 000001.tar ... with so many images each, and a .cls for each label.

    In WebDataset a name ends at its first dot, so further dots become underscores.
    """

    def __init__(self, path: Path, shard_size: int):
        self._path, self._size = path, shard_size
        path.mkdir()
        self._tar: tarfile.TarFile | None = None
        self._taken: set[str] = set()
        self.names: list[str] = []
        self.labels = array("i")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        if self._tar:
            self._tar.close()

    def add(self, stem: str, suffix: str, data: bytes, label: int) -> None:
        folder, slash, last = stem.rpartition("/")
        stem = folder + slash + last.replace(".", "_")
        if stem in self._taken:
            raise DataError(f"two originals would become {stem}: a shard has no dots in names")
        self._taken.add(stem)
        tar = self._shard()
        _add(tar, stem + suffix, data)
        if label >= 0:
            _add(tar, stem + ".cls", str(label).encode())
        self.names.append(stem + suffix)
        self.labels.append(label)

    def finish(self, labelled: bool) -> None:
        if not labelled and self._tar:  # else folders in the names might be taken for classes
            _add(self._tar, LABELS, b'{"labels": null}')

    def _shard(self) -> tarfile.TarFile:
        """The tar file that the next image belongs to."""
        number, begun = divmod(len(self.names), self._size)
        if not begun:
            if self._tar:
                self._tar.close()
            if number >= _LARGEST:
                raise DataError(f"more than {_LARGEST} shards: take a larger --shard-size")
            self._tar = tarfile.open(self._path / f"{number:06d}.tar", "w")  # noqa: SIM115
        assert self._tar
        self._tar.members.clear()  # type: ignore[attr-defined]  # a kilobyte for each
        return self._tar


def remove(path: Path) -> None:
    """Remove a file or a folder, where there is one."""
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info: Any = tarfile.TarInfo(name)  # of 1970: same bytes again
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
