"""`metrics.json`; values of images, written as they come, merged in order, in bounded memory."""

import csv
import heapq
from array import array
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TextIO

from metrics.evaluate import Group
from metrics.means import summaries
from runtime.environment import environment
from runtime.files import replacing, write_json, writing

Row = dict[str, Any]
Values = dict[str, dict[str, dict[str, "array[float]"]]]  # by degradation, method and metric

COLUMNS = ("degradation", "image", "structure", "method")  # and one for each metric


def write_metrics(
    folder: Path,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
    name: str = "metrics.json",
) -> None:
    """Write `folder/name`: {"metrics", "settings", "environment"}, strict JSON.

    Values are as of `write_json`: what is no finite number becomes null.
    """
    record = {"metrics": metrics, "settings": settings, "environment": environment()}
    write_json(folder / name, record)


class PartialRecords:
    """The rows of one process in a file of their own, ordered by degradation and image.

    Rows may be added in any order within a chunk; a chunk is written, sorted, when the next begins.
    """

    def __init__(self, path: Path, metrics: Sequence[str]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = _writer(self._file, metrics)
        self._chunk: object = None
        self._rows: list[Row] = []

    def add(self, group: Group, method: str, values: Mapping[str, Sequence[float]]) -> None:
        """Take in the values of a group's images, by metric.

        Methods are listed in the order in which an image's rows were added.
        """
        if (group.degradation, group.chunk) != self._chunk:
            self._flush()
            self._chunk = group.degradation, group.chunk
        for i, index in enumerate(group.indices):
            place = group.degradation, index, str(group.structure), method
            own = {metric: column[i] for metric, column in values.items()}
            self._rows.append(dict(zip(COLUMNS, place, strict=True)) | own)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is None:
            self._flush()
        self._file.close()

    def _flush(self) -> None:
        with writing(self.path):
            self._writer.writerows(sorted(self._rows, key=lambda row: row["image"]))
            self._file.flush()
        self._rows = []


def read_rows(path: Path, metrics: Sequence[str]) -> Iterator[Row]:
    """The rows of one file, such as per_image.csv, one at a time; values as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {metric: float(row[metric]) for metric in metrics}
            yield row | {"image": int(row["image"])} | numbers


def write_merged(
    path: Path, parts: Sequence[Path], degradations: Sequence[str], metrics: Sequence[str]
) -> Values:
    """Write the rows of all processes into one file, by degradation and image, one at a time.

    The values are those of its rows, in order.
    """
    order = {name: i for i, name in enumerate(degradations)}
    streams = [read_rows(part, metrics) for part in parts]
    rows = heapq.merge(*streams, key=lambda row: (order[row["degradation"]], row["image"]))
    found: Values = {}
    with replacing(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = _writer(file, metrics)
        for row in rows:
            writer.writerow(row)
            methods = found.setdefault(row["degradation"], {})
            values = methods.setdefault(row["method"], {m: array("d") for m in metrics})
            for metric, seen in values.items():
                seen.append(row[metric])
    return found


def summarised(values: Values) -> dict[str, dict[str, dict[str, Any]]]:
    """What values amount to (`metrics.means.summaries`), by degradation, method and metric."""
    found = {}
    for degradation, methods in values.items():
        cells = summaries({(t, m): v for t, own in methods.items() for m, v in own.items()})
        found[degradation] = {t: {m: cells[t, m] for m in own} for t, own in methods.items()}
    return found


def _writer(file: TextIO, metrics: Sequence[str]) -> "csv.DictWriter[str]":
    """A writer of rows whose titles are written."""
    writer = csv.DictWriter(file, [*COLUMNS, *metrics], lineterminator="\n")
    writer.writeheader()
    return writer
