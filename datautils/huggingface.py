"""Data sets of the Hugging Face hub, or saved on a disk by the package `datasets`."""

import importlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from datautils.decode import MAX_BYTES, read_file
from datautils.fit import Fit, check_count
from datautils.indexed import IndexedImages, check_split
from datautils.labels import MAX_CLASSES
from datautils.streams import ImageStream, Record
from runtime.errors import DataError

_ROWS = 64  # read at a time from a stream


class HuggingFace(IndexedImages):
    """A data set of the hub (`path` is OWNER/NAME), or a folder with one, with all rows at hand.

    A folder is one of `save_to_disk`, or holds files that `datasets.load_dataset` reads (Parquet,
    for one); `config` is its second argument. Training images are the rows of `train_split`; held
    out are those of `heldout_split`, or with `heldout=N` the last N of `train_split`. Labels are
    the whole numbers in `label_column`, by default "label" if there is one, "none" for no labels;
    `num_classes` is that of the column, else the largest label + 1. `size` and `crop` are explained
    at `Fit`. Items are (uint8 image [3, h, w], label or -1). Raises ValueError for options that
    make no sense and DataError for faults of the data; of an image, when it is read.
    """

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
        check_split(split)
        if heldout is not None and heldout_split is not None:
            raise ValueError("give heldout=N or heldout_split=NAME, not both")
        if split == "heldout" and heldout is None and heldout_split is None:
            raise ValueError("heldout=N or heldout_split=NAME must say which rows are held out")
        check_count("heldout", heldout)
        check_count("num_classes", num_classes)
        self.path, self.split, self._fit = str(path), split, Fit(size, crop)
        name = heldout_split if split == "heldout" and heldout_split else train_split
        rows = open_rows(self.path, name, config, streaming=False)
        self._where = f"the split {name} of {self.path}"
        self._image, self._label = columns(rows, self._where, image_column, label_column)
        if not len(rows):
            raise DataError(f"{self._where} is empty")
        labels = self._read_labels(rows)
        self.num_classes = num_classes or self._count_classes(rows, labels)
        self._check_labels(labels)
        chosen = self._choose(len(rows), heldout)
        self._first = chosen.start
        self._labels = labels[chosen.start : chosen.stop].astype(np.int32).clip(min=-1)
        self._rows = undecoded(rows.select_columns([self._image]), self._image)

    @property
    def description(self) -> dict[str, Any]:
        """Where the images come from and what was done to them, for a record in JSON."""
        return {
            "path": self.path,
            "split": self.split,
            "rows": self._where,
            "first": self._first,
            "count": len(self),
            "size": self._fit.size,
            "crop": self._fit.crop,
            "num_classes": self.num_classes,
        }

    def _read(self, index: int) -> tuple[bytes, str]:
        row = self._first + index
        where = f"row {row} of {self._where}"
        return cell_bytes(self._rows[row][self._image], where), where

    def _read_labels(self, rows: Any) -> np.ndarray:
        """int64 [rows], -1 without a label column."""
        if self._label is None:
            return np.full(len(rows), -1)
        column = rows.select_columns([self._label]).with_format("arrow")[:][self._label]
        if column.null_count or not str(column.type).startswith(("int", "uint")):
            raise DataError(
                f"the column {self._label} of {self._where} holds {column.type}"
                f"{' and empty cells' * (column.null_count > 0)}, not a whole number for each "
                "image: name another label_column, or none"
            )
        return column.to_numpy().astype(np.int64)

    def _count_classes(self, rows: Any, labels: np.ndarray) -> int:
        """What the label column says, else the largest label + 1; 0 where all are below 0."""
        count = class_count(rows, self._label) or max(0, int(labels.max()) + 1)
        if count > MAX_CLASSES:
            raise DataError(
                f"the column {self._label} of {self._where} has the label {count - 1}, which looks "
                "like a mistake: give num_classes=N if there are so many classes"
            )
        return count

    def _check_labels(self, labels: np.ndarray) -> None:
        wrong = (labels < 0) | (labels >= self.num_classes)
        for i in np.flatnonzero(wrong)[:1] if self.num_classes else ():
            raise DataError(
                f"row {i} of {self._where} has the label {labels[i]}, but there are "
                f"{self.num_classes} classes, from 0"
            )

    def _choose(self, count: int, heldout: int | None) -> range:
        if heldout is None or self.split == "all":
            return range(count)
        if heldout >= count:
            raise ValueError(
                f"heldout={heldout} must leave images in both splits, and {self._where} has {count}"
            )
        first = count - heldout
        return range(first) if self.split == "train" else range(first, count)


class HuggingFaceStream(ImageStream):
    """The same, read from front to back, without waiting for a download.

    Held out are the first `heldout` rows of `heldout_split`. `num_classes` must be given where the
    label column does not say it, and labels are left out without.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
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
        super().__init__(split, heldout, size, crop)
        check_count("num_classes", num_classes)
        if split == "heldout" and heldout_split is None:
            raise ValueError("heldout_split must name the split of the held-out images")
        self.path = str(path)
        self._split = heldout_split if split == "heldout" and heldout_split else train_split
        rows = open_rows(self.path, self._split, config, streaming=True)
        where = f"the split {self._split} of {self.path}"
        chosen = columns(rows, where, image_column, label_column)
        self._image_column, self._label_column = chosen
        self.num_classes = 0
        if self._label_column is not None:
            self.num_classes = num_classes or class_count(rows, self._label_column)
        used = [name for name in chosen if name is not None]
        self._rows = undecoded(rows.select_columns(used), self._image_column)
        self.shards = self._rows.num_shards

    def records(self, shard: int, start: int = 0) -> Iterator[Record]:
        where = f"shard {shard} of the split {self._split} of {self.path}"
        rows = self._rows.shard(self.shards, shard).skip(start)
        try:
            # Not by iter(rows): in a worker of torch it would give each worker other shards.
            for batch in rows.iter(_ROWS):
                labels = (
                    batch[self._label_column]
                    if self._label_column
                    else [-1] * len(batch[self._image_column])
                )
                for cell, label in zip(batch[self._image_column], labels, strict=True):
                    here = f"row {start} of {where}"
                    label = label if type(label) is int and label >= 0 else -1
                    yield Record(cell_bytes(cell, here), here, label)
                    start += 1
        except DataError:
            raise
        except Exception as error:  # of the network, of the hub, of the parsers of its files
            raise DataError(f"{where} cannot be read: {first_line(error)}") from None


def package() -> Any:
    """The package `datasets`. Raises DataError where it is not installed."""
    try:
        return importlib.import_module("datasets")
    except ImportError:
        raise DataError("the hub needs the package datasets: `pip install datasets`") from None


def open_rows(path: str, split: str, config: str | None, streaming: bool) -> Any:
    """A split of a data set, as `datasets` has it. Raises DataError."""
    datasets = package()
    folder = Path(path)
    try:
        if not any((folder / f).is_file() for f in ("state.json", "dataset_dict.json")):
            return datasets.load_dataset(path, config, split=split, streaming=streaming)
        saved = datasets.load_from_disk(path)
        if isinstance(saved, Mapping):
            if split not in saved:
                raise DataError(f"{path} has no split {split}; it has {', '.join(saved)}")
            saved = saved[split]
        if not streaming:
            return saved
        files = max(1, len(saved.cache_files))
        return saved.to_iterable_dataset(num_shards=min(files, len(saved)))
    except DataError:
        raise
    except Exception as error:  # of the network, of the hub, of the parsers of its files
        raise DataError(
            f"the split {split} of {path} cannot be read by the package datasets "
            f"({first_line(error)}): is it a folder that holds one, or is the name right, and is "
            "there a network?"
        ) from None


def columns(rows: Any, where: str, image: str, label: str | None) -> tuple[str, str | None]:
    """The columns of images and labels; the second None for no labels. Raises DataError.

    where: how messages call the rows.
    """
    there = rows.column_names
    if there is None:  # a stream that only its rows tell
        try:
            there = list(next(iter(rows), ()))
        except Exception as error:  # of the network, of the hub, of the parsers of its files
            raise DataError(
                f"the first row of {where} cannot be read: {first_line(error)}"
            ) from None
        if not there:
            raise DataError(f"{where} is empty")
    if label is None:
        label = "label" if "label" in there else "none"
    for wanted in (image, label):
        if wanted not in there and not (wanted == label == "none"):
            raise DataError(f"{where} has no column {wanted}; it has {', '.join(there)}")
    return image, None if label == "none" else label


def undecoded(rows: Any, image: str) -> Any:
    """The rows with the encoded file instead of the decoded picture: we decode it as any other."""
    try:
        return rows.cast_column(image, package().Image(decode=False))
    except Exception as error:
        raise DataError(f"the column {image} holds no pictures: {first_line(error)}") from None


def class_count(rows: Any, label: str | None) -> int:
    """The number of classes that a label column knows, 0 where it does not."""
    feature = (rows.features or {}).get(label)
    return getattr(feature, "num_classes", None) or 0


def cell_bytes(cell: Any, where: str) -> bytes:
    """The encoded picture in a cell of an image column. Raises DataError."""
    content = cell if isinstance(cell, Mapping) else {}
    if isinstance(content.get("bytes"), bytes):
        return content["bytes"]
    path = content.get("path")
    if not path:
        raise DataError(f"{where} holds no picture")
    return _remote_bytes(path, where) if "://" in path else read_file(path)


def _remote_bytes(url: str, where: str) -> bytes:
    """A file that a row of a stream names: of a folder of images on the hub, hf://... for one."""
    fsspec: Any = importlib.import_module("fsspec")  # which `datasets` needs itself
    try:
        with fsspec.open(url, "rb") as file:
            data = file.read(MAX_BYTES + 1)
    except Exception as error:  # of the network, of the hub, of an archive
        raise DataError(f"{where} cannot be read: {first_line(error)}") from None
    if len(data) > MAX_BYTES:
        raise DataError(f"{where} is larger than {MAX_BYTES // 2**20} MiB")
    return data


def first_line(error: Exception) -> str:
    """What an error says, without the rest of its page."""
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
