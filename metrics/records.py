"""Per-image values: written as they come, merged in order, and summed up, in bounded memory."""

import csv
import heapq
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from metrics.evaluate import Group
from metrics.means import summaries
from runtime.files import writing

Row = dict[str, Any]

COLUMNS = ("degradation", "image", "structure", "method")  # and one for each metric


class PartialRecords:
    """The rows of one process in a file of their own, ordered by degradation and image.

    Rows may be added in any order within a chunk; a chunk is written, sorted, when the next begins.
    """

    def __init__(self, path: Path, metrics: Sequence[str]):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("w", newline="", encoding="utf-8")
        self._writer = csv.DictWriter(self._file, [*COLUMNS, *metrics], lineterminator="\n")
        self._writer.writeheader()
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


def merged(
    parts: Sequence[Path], degradations: Sequence[str], metrics: Sequence[str]
) -> Iterator[Row]:
    """The rows of all processes by degradation and image, one at a time; values as numbers."""
    order = {name: i for i, name in enumerate(degradations)}
    streams = [read_rows(part, metrics) for part in parts]
    return heapq.merge(*streams, key=lambda row: (order[row["degradation"]], row["image"]))


def read_rows(path: Path, metrics: Sequence[str]) -> Iterator[Row]:
    """The rows of one file, such as per_image.csv, one at a time; values as numbers."""
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {metric: float(row[metric]) for metric in metrics}
            yield row | {"image": int(row["image"])} | numbers


class Summary:
    """{degradation: {method: {metric: mean, interval and count}}} of rows that pass by.

    Keeps 8 bytes of each value.
    """

    def __init__(self, metrics: Sequence[str]):
        self.metrics = metrics
        self.values: dict[str, dict[str, dict[str, array[float]]]] = {}
        """Those seen so far, in the same order."""

    def over(self, rows: Iterable[Row]) -> Iterator[Row]:
        """The same rows, each taken into account as it passes."""
        for row in rows:
            methods = self.values.setdefault(row["degradation"], {})
            values = methods.setdefault(row["method"], {m: array("d") for m in self.metrics})
            for metric, seen in values.items():
                seen.append(row[metric])
            yield row

    def result(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What the rows seen so far amount to (`metrics.means.summaries`)."""
        found: dict[str, dict[str, dict[str, Any]]] = {}
        for degradation, methods in self.values.items():
            cells = summaries({(t, m): v for t, seen in methods.items() for m, v in seen.items()})
            found[degradation] = {
                method: {metric: cells[method, metric] for metric in self.metrics}
                for method in methods
            }
        return found
