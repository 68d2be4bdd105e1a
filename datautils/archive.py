"""Pictures in a folder, a zip file or tar shards, read in the same way.

The zip's directory is parsed here instead of by `zipfile`, which keeps an object of half a kilobyte
for each entry: with a million images, the names and four columns of numbers are all that is kept.
"""

import itertools
import os
import struct
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Protocol

import numpy as np

from datautils.decode import MAX_BYTES, FileReader, open_file, read_file
from datautils.names import EXTENSIONS, LABELS, Names, is_picture, is_unsafe, position
from datautils.shards import Shards, shard_paths
from runtime.errors import DataError

_KINDS = "a folder or a zip file of images, or tar shards"
_MAX_RATIO, _RATIO_FROM = 200, 16 * 2**20  # deflated pictures come nowhere near
_STORED, _DEFLATED = 0, 8
_END, _LOCATOR, _END64 = b"PK\5\6", b"PK\6\7", b"PK\6\6"


class Archive(Protocol):
    """A folder, a zip file or shards. Can be pickled, used by several threads and processes."""

    path: Path

    @property
    def names(self) -> Sequence[str]:
        """The pictures: relative, with "/", sorted."""

    @property
    def sidecars(self) -> np.ndarray | None:
        """int64 [pictures], the labels that lie beside the pictures of shards."""

    def picture(self, index: int) -> tuple[bytes, str]:
        """The bytes of a picture, by its place in `names`, and `where` it is. Raises DataError."""

    def read(self, name: str) -> bytes:
        """The bytes of a picture, or of dataset.json. Raises DataError."""

    def where(self, name: str) -> str:
        """How a message names this file."""

    def has_labels(self) -> bool:
        """Whether there is a dataset.json."""


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """The pictures under a folder, in a zip file or in tar shards.

    Shards are a .tar file, a folder that holds .tar files instead of pictures, or a pattern such as
    train-{000..099}.tar or train-*.tar. Hidden files and those with another extension are left out.
    Raises DataError where there is nothing at `path`, no picture in it, or where a file is damaged,
    encrypted or unsafe.
    """
    path = Path(path)
    try:
        archive = _open(path)
    except OSError as error:
        where = error.filename or path  # one shard, or a folder below
        raise DataError(f"{where} cannot be read: {error.strerror or error}") from None
    if not archive.names:
        raise DataError(f"{path} holds no image ({', '.join(EXTENSIONS)})")
    return archive


def is_there(path: str | os.PathLike[str]) -> bool:
    """Whether there is a folder, a file, or a shard of a pattern."""
    try:
        return Path(path).exists() or bool(shard_paths(Path(path)))
    except OSError:  # a name that is too long, a folder that may not be looked into
        return False


def _open(path: Path) -> Archive:
    shards = shard_paths(path)
    if path.is_dir():
        folder = Folder(path)
        return Shards(path, shards) if shards and not folder.names else folder
    if shards:
        return Shards(path, shards)
    if not path.exists():
        raise DataError(f"{path} is not there: it should be {_KINDS}")
    return Zip(path)


class Folder:
    """The pictures in a folder and those below it; links are followed."""

    sidecars = None

    def __init__(self, path: Path):
        self.path = path
        self.names = Names(sorted(name for name in _files_below(path) if is_picture(name)))

    def has_labels(self) -> bool:
        return (self.path / LABELS).is_file()

    def read(self, name: str) -> bytes:
        if name != LABELS and position(self.names, name) is None:
            raise DataError(f"{self.where(name)} is not there")
        return read_file(self.where(name))

    def picture(self, index: int) -> tuple[bytes, str]:
        where = self.where(self.names[index])
        return read_file(where), where

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)


class Zip:
    """The pictures in a zip file, stored or deflated."""

    sidecars = None

    def __init__(self, path: Path):
        self.path = path
        with open_file(path) as file:
            index = _Index(path, file)
        names = index.names
        order = sorted(range(len(names)), key=names.__getitem__)
        for i, following in itertools.pairwise(order):
            if names[i] == names[following]:
                raise DataError(f"{path} holds {names[i]} twice")
        self.names = Names(names[i] for i in order)
        self._columns = {key: np.array(column)[order] for key, column in index.columns.items()}
        self._labels = index.labels
        self._file: FileReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_file": None}

    def has_labels(self) -> bool:
        return self._labels is not None

    def where(self, name: str) -> str:
        return f"{name} in {self.path}"

    def read(self, name: str) -> bytes:
        entry, i = self._labels, position(self.names, name)
        if name != LABELS:
            entry = None if i is None else self._entry(i)
        if entry is None:
            raise DataError(f"{self.where(name)} is not there")
        return self._extracted(entry, self.where(name))

    def picture(self, index: int) -> tuple[bytes, str]:
        where = self.where(self.names[index])
        return self._extracted(self._entry(index), where), where

    def _entry(self, index: int) -> "_Entry":
        return _Entry(*(int(column[index]) for column in self._columns.values()))

    def _extracted(self, entry: "_Entry", where: str) -> bytes:
        try:
            return _extract(self._read_at, entry)
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror}") from None
        except (ValueError, OverflowError, struct.error, zlib.error):
            raise DataError(f"{where} is damaged, or was changed meanwhile") from None

    def _read_at(self, offset: int, size: int) -> bytes:
        """Bytes of the file."""
        file = self._file or FileReader(self.path)
        self._file = file  # another thread may put its own here: ours stays open until we return
        return file.read_at(offset, size)


class _Entry(NamedTuple):
    offset: int  # of the local header
    packed: int  # bytes in the archive
    size: int  # bytes once unpacked
    crc: int
    method: int


class _Index:
    """The directory of a zip file: the pictures' names and, by the same index, their places."""

    def __init__(self, path: Path, file: BinaryIO):
        self.path = path
        self.length = file.seek(0, os.SEEK_END)
        self.names: list[str] = []
        # 8-byte integers without objects around them: there may be a million.
        self.columns = {key: array("Q") for key in _Entry._fields}
        self.labels: _Entry | None = None
        try:
            for name, flags, entry in _entries(file):
                self._add(name, flags, entry)
        except (struct.error, UnicodeDecodeError, OverflowError, _NoZip):
            raise DataError(
                f"{path} is no zip file, or a damaged one: it should be {_KINDS}"
            ) from None

    def _add(self, name: str, flags: int, entry: _Entry) -> None:
        where = f"{name} in {self.path}"
        if is_unsafe(name):
            raise DataError(f"{where} has a path that leaves the archive: refused")
        if name != LABELS and not is_picture(name):
            return
        if flags & 1:
            raise DataError(f"{where} is encrypted: unpack the archive and zip it without password")
        if entry.method not in (_STORED, _DEFLATED):
            raise DataError(f"{where} is compressed by method {entry.method}: store or deflate it")
        swollen = entry.size > _RATIO_FROM and entry.size > _MAX_RATIO * entry.packed
        if max(entry.size, entry.packed) > MAX_BYTES or swollen:
            raise DataError(
                f"{where} claims {entry.size} bytes in {entry.packed}: refused as a zip bomb"
            )
        if entry.offset + entry.packed > self.length:
            raise DataError(f"{where} lies beyond the end of the file, which is damaged or cut off")
        if name == LABELS:
            self.labels = entry
            return
        self.names.append(name)
        for key, value in zip(self.columns, entry, strict=True):
            self.columns[key].append(value)


class _NoZip(Exception):  # noqa: N818
    """The bytes are not those of a zip file."""


def _entries(file: BinaryIO) -> Iterator[tuple[str, int, _Entry]]:
    """(name, flags, entry) of every file that the directory of a zip file lists."""
    start, size, count, shift = _directory(file)
    file.seek(start)
    data = file.read(size)
    at = 0
    for _ in range(count):
        fields = struct.unpack_from("<4s6H3L5H2L", data, at)
        signature, flags, method, crc, packed, unpacked = (fields[i] for i in (0, 3, 4, 7, 8, 9))
        name_length, extra_length, comment_length, offset = (fields[i] for i in (10, 11, 12, 16))
        if signature != b"PK\1\2":
            raise _NoZip
        raw = data[at + 46 : at + 46 + name_length]
        extra = data[at + 46 + name_length : at + 46 + name_length + extra_length]
        unpacked, packed, offset = _long_sizes(extra, (unpacked, packed, offset))
        at += 46 + name_length + extra_length + comment_length
        name = raw.decode("utf-8" if flags & 0x800 else "cp437")
        if not name.endswith("/"):
            yield name, flags, _Entry(offset + shift, packed, unpacked, crc, method)


def _directory(file: BinaryIO) -> tuple[int, int, int, int]:
    """(offset, bytes, entries) of the directory, and by how much all offsets are too small.

    The shift is not zero where something was put before the archive.
    """
    length = file.seek(0, os.SEEK_END)
    tail_at = max(0, length - 22 - 65535 - 20 - 56)  # end record, comment, and those of ZIP64
    file.seek(tail_at)
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0:
        raise _NoZip
    count, size, offset = struct.unpack_from("<HLL", tail, end + 10)
    if tail[end - 20 : end - 16] == _LOCATOR and tail[end - 76 : end - 72] == _END64:
        end -= 76
        count, size, offset = struct.unpack_from("<QQQ", tail, end + 32)
    start = tail_at + end - size
    if start < offset or count * 46 > size:
        raise _NoZip
    return start, size, count, start - offset


def _long_sizes(extra: bytes, values: tuple[int, int, int]) -> Iterator[int]:
    """The (size, packed size, offset) of an entry; those that did not fit stand in the extra field
    of ZIP64, in this order."""
    at = 0
    while 0xFFFFFFFF in values and at + 4 <= len(extra):
        key, length = struct.unpack_from("<HH", extra, at)
        if key == 1:
            long = iter(struct.unpack_from(f"<{min(length // 8, 3)}Q", extra, at + 4))
            return (next(long, v) if v == 0xFFFFFFFF else v for v in values)
        at += 4 + length
    return iter(values)


def _extract(read_at: Any, entry: _Entry) -> bytes:
    """The bytes of an entry. Raises ValueError, struct.error or zlib.error where they are damaged.

    read_at(offset, size) reads from the file.
    """
    header = read_at(entry.offset, 30)
    signature, name_length, extra_length = struct.unpack("<4s22x2H", header)
    data = read_at(entry.offset + 30 + name_length + extra_length, entry.packed)
    if entry.method == _DEFLATED:  # one byte more than promised is enough to see the lie
        data = zlib.decompressobj(-15).decompress(data, entry.size + 1)
    if signature != b"PK\3\4" or len(data) != entry.size or zlib.crc32(data) != entry.crc:
        raise ValueError
    return data


def _files_below(path: Path) -> Iterator[str]:
    """Relative names of all files below a folder; links to a folder seen before lead no further."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(path, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        subfolders.sort()
        relative = Path(folder).relative_to(path).as_posix()
        yield from (name if relative == "." else f"{relative}/{name}" for name in files)


def _raise(error: OSError) -> None:
    """A folder that cannot be listed is told, not left out."""
    raise error
