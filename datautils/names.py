"""Names of the pictures in an archive: which files are pictures, and a million names kept small."""

import bisect
from array import array
from collections.abc import Iterable, Sequence
from typing import Self, overload

import numpy as np

EXTENSIONS = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".ppm", ".pgm",
)  # fmt: skip
LABELS = "dataset.json"


class Names(Sequence[str]):
    """A list of names in one piece of memory.

    A million strings are a million objects whose reference counts every process that reads one
    writes to, so that forked workers would end up with a copy of them each.
    """

    def __init__(self, names: Iterable[str]):
        text, ends = bytearray(), array("q", [0])
        for name in names:
            text += name.encode(errors="surrogateescape")
            ends.append(len(text))
        self._text, self._ends = bytes(text), np.array(ends)

    @classmethod
    def of(cls, text: np.ndarray, ends: np.ndarray) -> Self:
        """The names that `arrays` gave. Raises ValueError where these do not fit together."""
        names = cls([])
        names._text, names._ends = text.astype(np.uint8).tobytes(), ends.astype(np.int64)
        if not len(ends) or ends[0] or ends[-1] != len(text) or (np.diff(names._ends) < 0).any():
            raise ValueError("damaged names")
        return names

    def arrays(self) -> dict[str, np.ndarray]:
        """The names as two arrays, for a file."""
        return {"text": np.frombuffer(self._text, dtype=np.uint8), "ends": self._ends}

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = range(len(self))[index]
        start, end = self._ends[index : index + 2].tolist()
        return self._text[start:end].decode(errors="surrogateescape")

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]


def position(names: Sequence[str], name: str) -> int | None:
    """Index of a name in a sorted list, None where it is not there."""
    i = bisect.bisect_left(names, name)
    return i if i < len(names) and names[i] == name else None


def is_picture(name: str) -> bool:
    """Whether a file is a picture by its extension, and not hidden."""
    return name.lower().endswith(EXTENSIONS) and not is_hidden(name)


def is_hidden(name: str) -> bool:
    """Whether a file, or a folder around it, is hidden, as the twins are that macOS gives files."""
    parts = name.split("/")
    dotted = any(part.startswith(".") and part not in (".", "..") for part in parts)
    return dotted or "__MACOSX" in parts[:-1]


def is_unsafe(name: str) -> bool:
    """Whether the path of a member leads out of its archive."""
    parts = name.replace("\\", "/").split("/")
    return parts[0] == "" or parts[0].endswith(":") or ".." in parts or "\0" in name
