"""Data sets of the Hugging Face hub, or saved on a disk by the package `datasets`."""

import importlib
import itertools
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from datautils.decode import read_file
from datautils.indexed import IndexedImages, check_count
from datautils.loading import Read
from runtime.errors import DataError

_SHUFFLED = 1000  # rows of a stream that are in memory to be shuffled


class HuggingFace(IndexedImages):
    """A data set of the hub (`path` is OWNER/NAME), or a folder with one, with all rows at hand.

    A folder is one of `save_to_disk`, or holds files that `datasets.load_dataset` reads (Parquet,
    for one); `config` is its second argument. Training images are the rows of `train_split`. Held
    out are those of `heldout_split`, with `heldout=N` its first N; or without it the last N of
    `train_split`. Labels are the whole numbers in `label_column`, by default "label" if there is
    one, "none" for no labels; `num_classes` is that of the column, else the largest label + 1.
    `size` and `crop` are explained at `IndexedImages`. Raises ValueError for options that make no
    sense and DataError for faults of the data; of an image, when it is read.
    """

    _streaming = False

    def __init__(
        self,
        path: str,
        split: str = "all",
        *,
        config: str | None = None,
        train_split: str = "train",
        heldout_split: str | None = None,
        heldout: int | None = None,
        image_column: str = "image",
        label_column: str | None = None,
        size: int | None = None,
        crop: int | None = None,
        num_classes: int | None = None,
    ):
        super().__init__(split, size, crop, heldout)
        check_count("num_classes", num_classes)
        if split == "heldout" and heldout is None and heldout_split is None:
            raise ValueError("heldout=N or heldout_split=NAME must say which rows are held out")
        self.path = str(path)
        name = heldout_split if split == "heldout" and heldout_split else train_split
        self._where = f"the split {name} of {self.path}"
        rows = _open_rows(self.path, name, config, self._streaming)
        there = rows.column_names or list(next(_rows_of(rows, self._where)))
        if label_column is None and "label" in there:
            label_column = "label"
        self._image = image_column
        self._label = None if label_column == "none" else label_column
        used = [image_column] if self._label is None else [image_column, self._label]
        for column in used:
            if column not in there:
                raise DataError(f"{self._where} has no column {column}; it has {', '.join(there)}")
        rows = _undecoded(rows.select_columns(used), self._image)
        feature = (rows.features or {}).get(self._label)
        self.classes = getattr(feature, "names", [])
        self.num_classes = num_classes or getattr(feature, "num_classes", None) or 0  # 0: unknown
        self._take(rows, heldout_split)

    @property
    def description(self) -> dict[str, Any]:
        rows = {"path": self.path, "rows": self._where, "first": self._first}
        return super().description | rows

    def picture(self, index: int) -> tuple[bytes, str]:
        where = f"row {self._first + index} of {self._where}"
        return _bytes_of(self._rows[self._first + index][self._image], where), where

    def _take(self, rows: Any, heldout_split: str | None) -> None:
        """Set the labels and the rows of this split."""
        if not len(rows):
            raise DataError(f"{self._where} is empty")
        labels = self._read_labels(rows)
        self.num_classes = self.num_classes or int(labels.max()) + 1
        wrong = (labels < 0) | (labels >= self.num_classes)
        for i in np.flatnonzero(wrong)[:1] if self.num_classes else ():
            raise DataError(
                f"row {i} of {self._where} has the label {labels[i]}, but there are "
                f"{self.num_classes} classes, from 0"
            )
        if heldout_split is None:
            chosen = self._part(len(rows), self._where)
        else:
            chosen = range(len(rows))[: self.heldout if self.split == "heldout" else None]
        self._first = chosen.start
        self.labels = labels[chosen.start : chosen.stop].astype(np.int32)
        self._rows = rows.select_columns([self._image])

    def _read_labels(self, rows: Any) -> np.ndarray:
        """int64 [rows], -1 without a label."""
        if self._label is None:
            return np.full(len(rows), -1)
        column = rows.select_columns([self._label]).with_format("arrow")[:][self._label]
        if column.null_count or not str(column.type).startswith(("int", "uint")):
            raise DataError(
                f"the column {self._label} of {self._where} holds {column.type}"
                f"{' and empty cells' * (column.null_count > 0)}, not a whole number for each "
                "image: name another label_column, or none"
            )
        return column.to_numpy().astype(np.int64).clip(min=-1)


class HuggingFaceStream(HuggingFace):
    """The same without waiting for a download: rows as they arrive, shuffled by `datasets`.

    Training images have no index. Held out are the rows of `heldout_split`, of which `heldout=N`
    keeps the first N, in memory and with an index. `size` or `crop` must be given, and
    `num_classes` if the label column does not tell it; without it labels are left out.
    """

    _streaming = True

    def reads(self, seed: int, rank: int, world: int) -> Iterator[Read]:
        """The training images of one of `world` processes, endless; in a worker of torch, its part.

        Raises DataError if rows cannot be had.
        """
        split = importlib.import_module("datasets.distributed").split_dataset_by_node
        rows = split(self._rows.shuffle(seed=seed, buffer_size=_SHUFFLED), rank, world)
        for epoch in itertools.count():
            rows.set_epoch(epoch)
            for row in _rows_of(rows, self._where):
                yield partial(self._decoded, row)

    def workers(self, world: int) -> int:
        """So many workers of each process have files to read from."""
        return max(1, self._rows.num_shards // world)

    def __len__(self) -> int:
        if self.split != "heldout":
            raise DataError(f"{self._where} is a stream: only held-out images have an index")
        return super().__len__()

    def _decoded(self, row: Mapping[str, Any]) -> tuple[Tensor, int]:
        cell, label = row[self._image], -1 if self._label is None else row[self._label]
        where = f"{cell.get('path') or 'a picture'} in {self._where}"
        if self.num_classes and (type(label) is not int or not 0 <= label < self.num_classes):
            raise DataError(
                f"{where} has the label {label!r:.80}, not an integer from 0 to "
                f"{self.num_classes - 1}"
            )
        return self._fitted(_bytes_of(cell, where), where), label

    def _take(self, rows: Any, heldout_split: str | None) -> None:
        if (self.size or self.crop) is None:
            raise ValueError("a stream needs size=N or crop=N: the shape of its images")
        if not self.num_classes:
            self._label = None
        if self.split != "heldout":
            self._rows = rows
        elif heldout_split is None:
            raise ValueError("heldout_split must name the split of a stream's held-out images")
        else:
            first = list(_rows_of(itertools.islice(rows, self.heldout), self._where))
            rows = package().Dataset.from_list(first, features=rows.features)
            super()._take(rows, heldout_split)


def package() -> Any:
    """The package `datasets`. Raises DataError if it is not installed."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise DataError("the hub needs the package datasets: `pip install datasets`") from None


def _open_rows(path: str, split: str, config: str | None, streaming: bool) -> Any:
    """A split of a data set, as `datasets` has it. Raises DataError."""
    datasets = package()
    try:
        if not any(Path(path, f).is_file() for f in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(path, config, split=split, streaming=streaming)
        saved = datasets.load_from_disk(path)
        if isinstance(saved, Mapping):
            saved = saved[split]
        return saved.to_iterable_dataset() if streaming else saved
    except Exception as error:  # of the network, of the hub, of the parsers of its files
        raise DataError(
            f"the split {split} of {path} cannot be read by the package datasets "
            f"({_first_line(error)}): is it a folder that holds one, or is the name right, and is "
            "there a network?"
        ) from None


def _undecoded(rows: Any, image: str) -> Any:
    """The rows with the encoded file instead of the decoded picture: we decode it as any other."""
    try:
        return rows.cast_column(image, package().Image(decode=False))
    except Exception as error:
        raise DataError(f"the column {image} holds no pictures: {_first_line(error)}") from None


def _rows_of(rows: Any, where: str) -> Iterator[Mapping[str, Any]]:
    """The rows of a stream. Raises DataError if there is none, or if one cannot be read."""
    row = None
    try:
        for row in rows:
            yield row
    except Exception as error:  # of the network, of the hub, of the parsers of its files
        raise DataError(f"{where} cannot be read: {_first_line(error)}") from None
    if row is None:
        raise DataError(f"{where} is empty")


def _bytes_of(cell: Any, where: str) -> bytes:
    """The encoded picture in a cell of an image column. Raises DataError."""
    content = cell if isinstance(cell, Mapping) else {}
    if isinstance(content.get("bytes"), bytes):
        return content["bytes"]
    path = content.get("path")
    if not path:
        raise DataError(f"{where} holds no picture")
    if "://" not in path:
        return read_file(path)
    fsspec: Any = importlib.import_module("fsspec")  # which `datasets` needs itself
    try:
        with fsspec.open(path, "rb") as file:  # a row of a stream may name hf://...
            return file.read()
    except Exception as error:  # of the network, of the hub, of an archive
        raise DataError(f"{where} cannot be read: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    """What an error says, without the rest of its page."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
