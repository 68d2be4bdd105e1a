"""Class labels of an archive's pictures: from dataset.json, beside the pictures, by subfolder."""

import json
import os
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from datautils.archive import Archive
from datautils.names import LABELS, position
from datautils.shards import NO_LABEL, key_of
from runtime.errors import DataError

MODES = ("auto", "json", "sidecar", "subfolders", "none")
MAX_CLASSES = 10**6  # unless more are asked for: a network has a column of weights for each


class Labels(NamedTuple):
    """The label of each picture of an archive, and where it was read."""

    mode: str  # "json", "sidecar", "subfolders" or "none"
    values: np.ndarray  # int64 [pictures], -1 without labels
    classes: tuple[str, ...] = ()  # the subfolders' names, label by label


def read_labels(archive: Archive, mode: str = "auto") -> Labels:
    """Labels of an archive's pictures, in the order of its names.

    "json" follows EDM: dataset.json holds {"labels": [[name, label], ...]}, or {name: label}, or
    null for no labels. "sidecar" is WebDataset's: a .cls or .json beside each picture of a shard.
    "subfolders" numbers the top-level folders in the order of their names, or,
    where one folder holds everything, those below it.
    "auto" is "json" where there is a dataset.json; "sidecar" where a picture of a shard has one;
    "subfolders" where there are at least two that are not all mere numbers, which are shards; else
    "none".
    Raises ValueError for an unknown mode, DataError for labels that are missing or wrong.
    """
    if mode not in MODES:
        raise ValueError(f"labels must be one of {', '.join(MODES)}, not {mode!r}")
    labels = _read(archive, mode)
    if mode in ("json", "subfolders") and labels.mode == "none":
        raise DataError(f"{archive.where(LABELS)} holds no labels: give labels=none")
    return labels


def count_classes(labels: Labels, archive: Archive) -> int:
    """The largest label + 1; 0 without labels. Raises DataError beyond a million."""
    count = int(labels.values.max()) + 1
    if count > MAX_CLASSES:
        name = archive.names[int(labels.values.argmax())]
        raise DataError(
            f"{archive.where(name)} has the label {count - 1}, which looks like a mistake: give "
            "num_classes=N if there are so many classes"
        )
    return count


def check_range(labels: Labels, num_classes: int, archive: Archive) -> None:
    """Raise DataError where there are no labels, or one that is not in 0..num_classes - 1."""
    if labels.mode == "none":
        raise DataError(f"{archive.path} has no labels, but should have {num_classes} classes")
    for i in np.flatnonzero(labels.values >= num_classes)[:1]:
        raise DataError(
            f"{archive.where(archive.names[i])} has the label {labels.values[i]}, "
            f"but there are {num_classes} classes, from 0"
        )


def same_classes(labels: Labels, train: Labels, archive: Archive, training: Archive) -> None:
    """Raise DataError where held-out labels do not mean the same as those of the training set."""
    if labels.mode != train.mode:
        raise DataError(
            f"the labels of {training.path} are of the kind '{train.mode}', those of "
            f"{archive.path} '{labels.mode}': they must be alike"
        )
    for name in sorted(set(labels.classes) ^ set(train.classes))[:1]:
        one, other = (archive, training) if name in labels.classes else (training, archive)
        raise DataError(f"{one.path} has a class folder '{name}' that {other.path} has not")


def _read(archive: Archive, mode: str) -> Labels:
    none = Labels("none", np.full(len(archive.names), -1, dtype=np.int64))
    if mode == "json" or (mode == "auto" and archive.has_labels()):
        pairs = _pairs(archive)
        return Labels("json", _assign(archive, pairs)) if pairs else none
    if mode == "sidecar" or (mode == "auto" and archive.sidecars is not None):
        return Labels("sidecar", _from_sidecars(archive))
    root, folders = ("", []) if mode == "none" else _class_folders(archive.names)
    numbers = all(folder.isdigit() for folder in folders)
    if mode == "subfolders" or (len(folders) > 1 and not numbers):
        return Labels("subfolders", _from_folders(archive, root, folders), tuple(folders))
    return none


def _parsed(archive: Archive) -> Any:
    """The parsed dataset.json. Raises DataError."""
    data = archive.read(LABELS)
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{archive.where(LABELS)} is no valid JSON: {error}") from None


def _pairs(archive: Archive) -> list[Any]:
    """The (name, label) pairs of dataset.json, their types unchecked; empty where it has none."""
    where = archive.where(LABELS)
    content = _parsed(archive)
    if not isinstance(content, dict) or "labels" not in content:
        raise DataError(f'{where} must hold {{"labels": [[name, label], ...]}}')
    labels = content["labels"]
    pairs = list(labels.items()) if isinstance(labels, dict) else labels or []
    if not isinstance(pairs, list):
        raise DataError(f'"labels" in {where} must be a list of [name, label], or null')
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not isinstance(pair[0], str):
            raise DataError(f'"labels" in {where} holds {str(pair)[:80]}, not [name, label]')
    return pairs


def _assign(archive: Archive, pairs: Iterable[tuple[str, Any]]) -> np.ndarray:
    where = archive.where(LABELS)
    values = np.full(len(archive.names), -1, dtype=np.int64)
    for name, label in pairs:
        i = position(archive.names, name)
        if i is None:
            raise DataError(f"{where} has a label for {name}, which is not there")
        if values[i] >= 0:
            raise DataError(f"{where} has two labels for {name}")
        if type(label) is not int or not 0 <= label < 2**31:
            raise DataError(
                f"the label of {name} in {where} is {str(label)[:80]}, not an integer from 0"
            )
        values[i] = label
    _check_all(archive, values, f"{where} has labels for others")
    return values


def _from_sidecars(archive: Archive) -> np.ndarray:
    if archive.sidecars is None:
        raise DataError(f"{archive.path} has no .cls or .json with labels beside its pictures")
    for i in np.flatnonzero(archive.sidecars < NO_LABEL)[:1]:
        raise DataError(
            f"the .cls or .json beside {archive.where(archive.names[i])} holds no whole number "
            "from 0 as a label"
        )
    reason = f"others have a .cls or .json such as {key_of(archive.names[0])}.cls"
    _check_all(archive, archive.sidecars, reason)
    return archive.sidecars


def _from_folders(archive: Archive, root: str, folders: list[str]) -> np.ndarray:
    number = {folder: i for i, folder in enumerate(folders)}
    tops = (name[len(root) :].partition("/") for name in archive.names)
    values = np.array([number[top] if slash else -1 for top, slash, _ in tops], dtype=np.int64)
    _check_all(archive, values, "it lies in no subfolder; give labels=none if these are no classes")
    return values


def _class_folders(names: Sequence[str]) -> tuple[str, list[str]]:
    """(root, folders): what all of the sorted names begin with, "" or ending in "/", and the names
    of the folders next to it. With fewer than two of these the root's last folder is the only one.
    """
    slash = os.path.commonprefix([names[0], names[-1]]).rfind("/")  # noqa: RUF071
    root = names[0][: slash + 1]
    below = (name[len(root) :].partition("/") for name in names)
    folders = sorted({top for top, found, _ in below if found})
    if root and len(folders) < 2:
        parent, _, last = root[:-1].rpartition("/")
        return (f"{parent}/" if parent else ""), [last]
    return root, folders


def _check_all(archive: Archive, values: np.ndarray, reason: str) -> None:
    for i in np.flatnonzero(values < 0)[:1]:
        raise DataError(f"{archive.where(archive.names[i])} has no label: {reason}")
