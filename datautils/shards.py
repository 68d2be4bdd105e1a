"""Pictures in tar files, the shards of WebDataset, each read where it lies.

A sample is the members of one key, the path up to the first dot of its last part: n01/123.jpg and
n01/123.cls. Its label is the whole number in its .cls, or in its .json as such or under "label" or
"cls". The places of all pictures are found once, by going through the headers, and kept in an
index file beside the shards where that folder can be written.
"""

import contextlib
import hashlib
import itertools
import json
import lzma
import os
import re
import tarfile
import tempfile
import zipfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

import numpy as np
from tqdm import tqdm

from datautils.decode import MAX_BYTES, FileReader, open_file
from datautils.names import LABELS, Names, is_hidden, is_picture, is_unsafe, position
from runtime.errors import DataError

NO_LABEL, BAD_LABEL = -1, -2
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")
_OPEN_FILES = 128
# Counted up where `headers` learns to refuse more: older index files are then made again.
_CHECKS = 2
_MAX_SHARDS = 10**6
_BUFFER = 2**18  # bytes
SHARD_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst")
_MAGIC = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd")  # of these
# Columns of the index file; "text" and "ends" are those of the names, "labels" of the sidecars.
_COLUMNS = {"shard": "uint32", "offset": "uint64", "size": "uint64"}


class Member(NamedTuple):
    """A file of a shard: its path, and where in the shard its bytes are."""

    name: str
    offset: int
    size: int


class Shards:
    """The pictures of several tar files together, in the order of their names."""

    def __init__(self, path: Path, paths: Sequence[Path]):
        """path: how messages call all of them."""
        self.path, self._paths = path, list(paths)
        index = _kept_index(self._paths)
        self.names: Sequence[str] = index.names
        self._places, self._labels_at = index.places, index.labels_at
        self.sidecars = None if (index.labels == NO_LABEL).all() else index.labels
        self._files: dict[int, FileReader] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def has_labels(self) -> bool:
        return self._labels_at is not None

    def where(self, name: str) -> str:
        i = position(self.names, name)
        shard = None if i is None else self._paths[self._places["shard"][i]]
        return f"{name} in {shard or self.path}"

    def read(self, name: str) -> bytes:
        if name == LABELS and self._labels_at:
            return self._bytes(self._labels_at, self.where(name))
        i = position(self.names, name)
        if i is None:
            raise DataError(f"{self.where(name)} is not there")
        return self.picture(i)[0]

    def picture(self, index: int) -> tuple[bytes, str]:
        place = tuple(int(self._places[key][index]) for key in _COLUMNS)
        where = f"{self.names[index]} in {self._paths[place[0]]}"
        return self._bytes(place, where), where

    def _bytes(self, place: Sequence[int], where: str) -> bytes:
        """place: (shard, offset, size)."""
        shard, offset, size = place
        try:
            data = self._file(shard).read_at(offset, size)
        except OSError as error:
            raise DataError(f"{where} cannot be read: {error.strerror}") from None
        if len(data) != size:
            raise DataError(f"{where} is damaged, or was changed meanwhile")
        return data

    def _file(self, shard: int) -> FileReader:
        """The shard, opened; of thousands only so many are open at a time."""
        if file := self._files.get(shard):
            return file
        file = FileReader(self._paths[shard])
        while len(self._files) >= _OPEN_FILES:
            with contextlib.suppress(RuntimeError, StopIteration):  # another thread was quicker
                self._files.pop(next(iter(self._files)), None)
        self._files[shard] = file
        return file


def shard_paths(path: Path) -> list[Path]:
    """The tar files that a path means; none where it means something else. Raises DataError.

    A folder means those directly in it (only where there are none, the compressed ones), a name
    with {000..099} all of these numbers, one with * or ? those that match and are not hidden, each
    in the order of the names.
    """
    if path.is_dir():
        compressed = (p for p in _matching(path, "*") if p.name.endswith(SHARD_SUFFIXES))
        return _matching(path, "*.tar") or list(compressed)
    if path.exists():
        return [path] if path.name.endswith(SHARD_SUFFIXES) else []
    expanded = [Path(name) for name in expand(str(path))]
    if expanded != [path]:
        for one in expanded:
            if not one.exists():
                raise DataError(f"{one}, a shard of {path}, is not there")
        return expanded
    if set("*?") & set(path.name):
        return _matching(path.parent, path.name)
    return []


def _matching(folder: Path, pattern: str) -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))


def expand(pattern: str) -> list[str]:
    """All names of a pattern: "{08..11}" stands for 08, 09, 10 and 11. Raises DataError."""
    names, count = [""], 1
    at = 0
    for match in _RANGE.finditer(pattern):
        first, last = int(match[1]), int(match[2])
        count *= last - first + 1
        if not 0 < count <= _MAX_SHARDS:
            raise DataError(f"{pattern} must stand for 1 to {_MAX_SHARDS} shards")
        numbers = [f"{number:0{len(match[1])}d}" for number in range(first, last + 1)]
        names = [name + pattern[at : match.start()] + n for name in names for n in numbers]
        at = match.end()
    return [name + pattern[at:] for name in names]


def key_of(name: str) -> str:
    """The sample that a member belongs to."""
    folder, slash, last = name.rpartition("/")
    return folder + slash + last.partition(".")[0]


def is_sidecar(name: str) -> bool:
    """Whether a member holds, perhaps, the label of its sample."""
    return name.rpartition("/")[2].partition(".")[2].lower() in ("cls", "json")


def sidecar_label(name: str, data: bytes, before: int) -> int:
    """The label of a sample that was `before`, after one more sidecar: a .cls outdoes a .json.

    NO_LABEL where a .json has none, BAD_LABEL where it is no whole number from 0.
    """
    if before >= 0 and not name.lower().endswith(".cls"):
        return before
    try:  # a .cls may have leading zeros, which JSON has not
        value = int(data) if data.strip().isdigit() else json.loads(data)
    except (ValueError, RecursionError):
        return BAD_LABEL
    if isinstance(value, dict):
        value = value.get("label", value.get("cls"))
        if value is None:
            return before
    return value if type(value) is int and 0 <= value < 2**31 else BAD_LABEL


class _Index(NamedTuple):
    names: Names
    places: dict[str, np.ndarray]  # by the names of _COLUMNS, [pictures]
    labels: np.ndarray  # int64 [pictures]
    labels_at: tuple[int, int, int] | None  # (shard, offset, size) of dataset.json


def _kept_index(paths: Sequence[Path]) -> _Index:
    """The index of shards from its file, or made now and left there for the next time."""
    stats = [path.stat() for path in paths]
    state = np.array([(s.st_size, s.st_mtime_ns) for s in stats], dtype=np.int64)
    home = paths[0].parent
    names = "\0".join(os.path.relpath(path, home) for path in paths)
    digest = hashlib.sha256(os.fsencode(f"{_CHECKS}\0{names}")).hexdigest()
    file = home / f".index-{digest[:16]}.npz"
    index = _load(file, state)
    if index is None:
        index = _scan(paths)
        _save(file, state, index)
    return index


def _load(file: Path, state: np.ndarray) -> _Index | None:
    """The index in a file, None where there is none, a damaged one, or one of other shards."""
    try:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
            if not np.array_equal(arrays["state"], state):
                return None
            names = Names.of(arrays["text"], arrays["ends"])
            places = {key: arrays[key].astype(kind) for key, kind in _COLUMNS.items()}
            labels, labels_at = arrays["labels"].astype(np.int64), arrays["labels_at"].tolist()
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None
    if any(len(column) != len(names) for column in (*places.values(), labels)):
        return None
    if not all(_inside(state[:, 0], *place) for place in (places.values(), labels_at) if place):
        return None
    return _Index(names, places, labels, tuple(labels_at) or None)


def _inside(lengths: np.ndarray, shard: Any, offset: Any, size: Any) -> bool:
    """Whether places, each a number or an array, lie within shards of these lengths in bytes."""
    if np.any(shard >= len(lengths)) or np.any(size > MAX_BYTES):
        return False
    return bool(np.all(offset <= lengths[shard] - size))


def _save(file: Path, state: np.ndarray, index: _Index) -> None:
    """Nothing where the folder cannot be written: the index is then made every time."""
    arrays = index.names.arrays() | index.places
    arrays |= {"state": state, "labels": index.labels}
    arrays["labels_at"] = np.array(index.labels_at or (), dtype=np.int64)
    with contextlib.suppress(OSError):
        number, temporary = tempfile.mkstemp(dir=file.parent, prefix=file.name, suffix=".partial")
        try:
            with os.fdopen(number, "wb") as stream:
                np.savez(stream, **arrays)  # type: ignore[arg-type]
            os.chmod(temporary, 0o644)
            os.replace(temporary, file)
        finally:
            Path(temporary).unlink(missing_ok=True)


def _scan(paths: Sequence[Path]) -> _Index:
    names: list[str] = []
    columns = {key: array("Q") for key in _COLUMNS}
    labels, labels_at = array("q"), None
    for shard, path in enumerate(tqdm(paths, "indexing", unit=" shards", delay=5, leave=False)):
        with open_file(path) as file:
            pictures, of_key, found = _scan_one(path, file)
        labels_at = (shard, *found) if found else labels_at
        for name, offset, size in pictures:
            names.append(name)
            labels.append(of_key.get(key_of(name), NO_LABEL))
            for column, value in zip(columns.values(), (shard, offset, size), strict=True):
                column.append(value)
    order = sorted(range(len(names)), key=names.__getitem__)
    for i, following in itertools.pairwise(order):
        if names[i] == names[following]:
            one, other = (paths[columns["shard"][k]] for k in (i, following))
            raise DataError(f"{names[i]} is in {one} and again in {other}: names must differ")
    places = {key: np.array(columns[key], dtype=kind)[order] for key, kind in _COLUMNS.items()}
    values = np.array(labels, dtype=np.int64)[order]
    return _Index(Names(names[i] for i in order), places, values, labels_at)


def _scan_one(
    path: Path, file: BinaryIO
) -> tuple[list[Member], dict[str, int], tuple[int, int] | None]:
    """The pictures of a shard, the labels by key, the place of dataset.json."""
    pictures: list[Member] = []
    labels: dict[str, int] = {}
    labels_at = None
    for member in members(path, file):
        if member.name == LABELS:
            labels_at = member.offset, member.size
        elif is_picture(member.name):
            pictures.append(member)
        elif is_sidecar(member.name):
            file.seek(member.offset)
            key = key_of(member.name)
            data = file.read(member.size)
            labels[key] = sidecar_label(member.name, data, labels.get(key, NO_LABEL))
    return pictures, labels, labels_at


def members(path: Path, file: BinaryIO) -> Iterator[Member]:
    """The regular files of an uncompressed tar file. Raises DataError for a damaged one."""
    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(8).startswith(_MAGIC):
        raise DataError(
            f"{path} is compressed, so it has no index: unpack it, or read it as a stream by "
            "datautils.tarstream.TarStream"
        )
    file.seek(0)
    with tar_errors(path), tarfile.open(fileobj=file, mode="r:", tarinfo=Header) as tar:
        for info in headers(path, tar):
            if info.offset_data + info.size > length:
                raise DataError(
                    f"{info.name} in {path} lies beyond the end of the shard, which is damaged or "
                    "cut off"
                )
            yield Member(checked_name(path, info), info.offset_data, info.size)


class Header(tarfile.TarInfo):
    """A member's header. Where tarfile takes a broken one for the end, this is an error."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the end of the archive is a block of zeros
            raise ValueError("a header is broken, or the end is missing") from None


@contextlib.contextmanager
def tar_errors(path: object) -> Iterator[None]:
    """Errors of tarfile as DataError, in one sentence that names the shard."""
    try:
        yield
    except (tarfile.TarError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no tar file, or damaged or cut off: {error}") from None


def headers(path: object, tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Those of the regular files that are not hidden.

    Raises DataError for a picture that is a link, ValueError where something follows the end.
    """
    while (info := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # a kilobyte for each
        if (info.islnk() or info.issym()) and is_picture(info.name):
            raise DataError(
                f"{info.name} in {path} is a link to {info.linkname}: pack the shard again with "
                "`tar --dereference --hard-dereference`"
            )
        if info.isreg() and not is_hidden(info.name):
            yield info
    if _goes_on(tar):
        raise ValueError("more follows its end, as where tar files were joined by cat")


def _goes_on(tar: tarfile.TarFile) -> bool:
    """Whether anything but zeros follows the end."""
    while rest := tar.fileobj.read(_BUFFER):
        if rest.strip(b"\0"):
            return True
    # Of several compressed streams tarfile reads the first; gzip's own end is 8 bytes.
    unused = getattr(getattr(tar.fileobj, "cmp", None), "unused_data", b"")
    return bool(unused[8:].strip(b"\0"))


def checked_name(path: object, info: tarfile.TarInfo) -> str:
    """The name of a member. Raises DataError where it may not be read."""
    where = f"{info.name} in {path}"
    if is_unsafe(info.name):
        raise DataError(f"{where} has a path that leaves the archive: refused")
    if info.issparse():
        raise DataError(f"{where} is a sparse file, which is no way to keep pictures: refused")
    if info.size > MAX_BYTES:
        raise DataError(f"{where} is larger than {MAX_BYTES // 2**20} MiB")
    return info.name.removeprefix("./")
