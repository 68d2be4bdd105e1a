"""The originals that `prepare` reads: from a folder, a zip file, or the Hugging Face hub."""

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from datautils.archive import Archive, open_archive
from datautils.huggingface import cell_bytes, columns, first_line, open_rows, undecoded
from datautils.labels import read_labels
from runtime.errors import DataError


class Original(NamedTuple):
    """A picture as it came: how the prepared file is named, and how to read this one."""

    stem: str  # relative path without the extension
    where: str  # for messages
    label: int  # -1 for none
    read: Callable[[], bytes]  # raises DataError


class Source(NamedTuple):
    """Originals in order, each read only when its turn comes."""

    originals: Iterable[Original]
    total: int | None  # at most so many; None where it is not known beforehand
    labelled: bool


def archive_source(path: Path, labels: str = "auto", limit: int | None = None) -> Source:
    """The first `limit` images, by name, of a folder or zip file. Raises DataError.

    Labels are numbered over all images of it, so a limit does not change them.
    """
    archive = open_archive(path)
    found = read_labels(archive, labels)
    names = archive.names[:limit]
    _check_stems(archive, names)
    originals = (
        Original(_stem(name), archive.where(name), int(label), partial(archive.read, name))
        for name, label in zip(names, found.values, strict=False)
    )
    return Source(originals, len(names), found.mode != "none")


def hub_source(
    name: str,
    split: str = "train",
    image_column: str = "image",
    label_column: str | None = None,
    labels: str = "auto",
    limit: int | None = None,
) -> Source:
    """The first `limit` rows of a data set of the hub (OWNER/NAME), downloaded as they are used.

    They are named 00000/00000000, 00000/00000001, ... with a thousand in a folder. "auto" labels
    are those of `label_column`, which must then be there, or of the column "label" if there is one.
    Needs the package `datasets`. Raises DataError where that is missing, the hub cannot be reached
    or has no such data, split or column.
    """
    if labels not in ("auto", "none"):
        raise DataError(f"labels={labels} is for folders and zip files: the hub has a label column")
    rows = open_rows(name, split, None, streaming=True)
    label_column = "none" if labels == "none" else label_column
    image, label = columns(rows, f"the split {split} of {name}", image_column, label_column)
    used = rows.select_columns([column for column in (image, label) if column is not None])
    originals = (
        _row_original(row, i, f"row {i} of {name}", image, label)
        for i, row in enumerate(_first_rows(undecoded(used, image), f"{split} of {name}", limit))
    )
    return Source(originals, limit, label is not None)


def _first_rows(rows: Any, where: str, limit: int | None) -> Iterator[Mapping[str, Any]]:
    count = 0
    try:
        for row in itertools.islice(rows, limit):
            yield row
            count += 1
    except Exception as error:  # of the network, of the hub, of the parsers of its files
        raise DataError(
            f"row {count} of the split {where} cannot be read: {first_line(error)}"
        ) from None
    if not count:
        raise DataError(f"the split {where} is empty")


def _row_original(
    row: Mapping[str, Any], i: int, where: str, image_column: str, label_column: str | None
) -> Original:
    label = -1 if label_column is None else row[label_column]
    if label_column is not None and (type(label) is not int or label < 0):
        raise DataError(
            f"the label of {where} is {str(label)[:80]}, not an integer from 0: name another "
            "label column, or take labels=none"
        )
    stem = f"{i // 1000:05d}/{i:08d}"
    return Original(stem, where, label, partial(cell_bytes, row[image_column], where))


def _check_stems(archive: Archive, names: Sequence[str]) -> None:
    """Raise DataError where two originals would become one file, or a name cannot be kept."""
    seen: set[str] = set()
    for name in names:
        stem = _stem(name)
        if not _is_utf8(stem):
            raise DataError(f"{archive.where(name)!r} has a name that is not UTF-8: rename it")
        if stem in seen:
            raise DataError(
                f"{archive.where(name)} differs from another file in the extension only: both "
                f"would become {stem}"
            )
        seen.add(stem)


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
