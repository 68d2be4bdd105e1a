"""Pictures in a folder or in a zip file, read in the same way."""

import os
import re
import struct
import warnings
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath

import numpy as np

from datautils.decode import EXTENSIONS, read_file
from runtime.errors import DataError

LABELS = "dataset.json"
_KINDS = "a folder or a zip file of images"
_HIDDEN = re.compile(r"(^|/)(\.|__MACOSX(/|$))")  # a file, or a folder around it; macOS makes twins
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
_UTF8, _ENCRYPTED = 0x800, 1  # flags of a member
_ENTRY = np.dtype(
    [("offset", "u8"), ("packed", "u8"), ("size", "u8"), ("crc", "u4"), ("method", "u2")]
)


class Names(Sequence[str]):
    """A list of names in one array.

    A million strings are a million objects, whose counts of references every forked worker writes
    to: each would end up with a copy.
    """

    def __init__(self, names: Iterable[str]):
        self._bytes = np.array([name.encode(errors="surrogateescape") for name in names], bytes)

    def __len__(self) -> int:
        return len(self._bytes)

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # no slices
        return self._bytes[index].decode(errors="surrogateescape")


class Archive(ABC):
    """The pictures of a folder or a zip file. Can be pickled, and used by threads and processes.

    names: the pictures, sorted, with "/" between folders; hidden files are left out. labels: the
    dataset.json nearest to the top, None without one.
    """

    def __init__(self, path: Path, files: Iterable[str]):
        """Raises DataError if none of the files is a picture; warns of files that are none."""
        files = [name for name in files if not name.endswith("/") and not _HIDDEN.search(name)]
        self.path = path
        self.names = Names(sorted(name for name in files if name.lower().endswith(EXTENSIONS)))
        labels = [name for name in files if name.rpartition("/")[2] == LABELS]
        self.labels = min(labels, key=lambda name: (name.count("/"), name), default=None)
        left = Counter(map(_extension, files)) - Counter(map(_extension, [*self.names, *labels]))
        others = ", ".join(f"{count} {extension}" for extension, count in left.most_common(9))
        if not self.names:
            read = f"{', '.join(EXTENSIONS)} are read" + (f", there are {others}" if others else "")
            raise DataError(f"{path} holds no image: {read}")
        if others:
            told = f"files in {path} that are no images are left out: {others}"
            warnings.warn(told, stacklevel=2)

    @abstractmethod
    def where(self, name: str) -> str:
        """How a message names a file."""

    def picture(self, index: int) -> tuple[bytes, str]:
        """The bytes of a picture, and `where` it is. Raises DataError."""
        where = self.where(self.names[index])
        return self._read(index, where), where

    def read_labels(self) -> bytes:
        """The bytes of `labels`. Raises DataError."""
        assert self.labels
        return self._read(len(self.names), self.where(self.labels))

    @abstractmethod
    def _read(self, number: int, where: str) -> bytes:
        """The bytes of a file; dataset.json has the number that follows those of the pictures."""


def open_archive(path: str | os.PathLike[str]) -> Archive:
    """The pictures under a folder or in a zip file.

    Raises DataError if none is there, and if the zip file is damaged or encrypted.
    """
    path = Path(path)
    try:
        if path.is_dir():
            return Folder(path, _files_below(path))
        if path.exists():
            return _zip(path)
    except OSError as error:
        raise DataError(
            f"{error.filename or path} cannot be read: {error.strerror or error}"
        ) from None
    raise DataError(f"{path} is not there: it should be {_KINDS}")


def _zip(path: Path) -> "Zip":
    try:
        return Zip(path)
    except DataError:
        raise
    except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError, struct.error):
        raise DataError(f"{path} is no zip file, or a damaged one: it should be {_KINDS}") from None


class Folder(Archive):
    """The pictures in a folder and those below it; links are followed."""

    def where(self, name: str) -> str:
        return os.path.join(self.path, name)

    def _read(self, number: int, where: str) -> bytes:
        return read_file(where)


class Zip(Archive):
    """The pictures in a zip file, stored or deflated.

    `zipfile` reads the directory. What it keeps of each member, half a kilobyte, is let go for a
    row of numbers, by which the member is read from a file that is opened each time.
    """

    def __init__(self, path: Path):
        with zipfile.ZipFile(path) as archive:
            members = {_name(info): info for info in archive.infolist()}
        super().__init__(path, members)
        kept = [members[name] for name in (*self.names, self.labels) if name is not None]
        for info in kept:
            if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
                raise DataError(
                    f"{self.where(_name(info))} is encrypted or compressed by a rare method: "
                    "unpack the file and zip it without a password, stored or deflated"
                )
        rows = (
            (i.header_offset, i.compress_size, i.file_size, i.CRC, i.compress_type) for i in kept
        )
        self._entries = np.fromiter(rows, _ENTRY, len(kept))

    def where(self, name: str) -> str:
        return f"{name} in {self.path}"

    def _read(self, number: int, where: str) -> bytes:
        offset, packed, size, crc, method = self._entries[number].item()
        try:
            with self.path.open("rb") as file:
                file.seek(offset)
                signature, name, extra = struct.unpack("<4s22x2H", file.read(30))
                file.seek(name + extra, os.SEEK_CUR)
                data = file.read(packed)
            if method == zipfile.ZIP_DEFLATED:  # one byte more than promised shows a wrong size
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, size + 1)
            if signature == b"PK\3\4" and len(data) == size and zlib.crc32(data) == crc:
                return data
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror}") from None
        except (ValueError, OverflowError, MemoryError, struct.error, zlib.error):
            pass
        raise DataError(f"{where} is damaged, or was changed meanwhile")


def _extension(name: str) -> str:
    extension = PurePosixPath(name).suffix.lower()
    return extension if extension[1:].isalnum() else "without an extension"


def _files_below(path: Path) -> Iterator[str]:
    """Relative names of all files below a folder; links to a folder seen before lead no further."""
    seen: set[str] = set()
    for folder, subfolders, files in os.walk(path, onerror=_raise, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            subfolders.clear()
            continue
        seen.add(real)
        relative = Path(folder).relative_to(path)
        yield from ((relative / name).as_posix() for name in files)


def _raise(error: OSError) -> None:
    """A folder that cannot be listed raises DataError; it is not skipped."""
    raise error


def _name(info: zipfile.ZipInfo) -> str:
    """The name of a member, with "/" between folders. Many programs write UTF-8 without its flag,
    which `zipfile` takes for code page 437."""
    name = info.orig_filename
    if not info.flag_bits & _UTF8:
        with suppress(UnicodeDecodeError):
            name = name.encode("cp437").decode()
    return name.replace("\\", "/").removeprefix("./")
