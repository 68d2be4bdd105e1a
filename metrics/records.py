"""Per-image values: written as they come, merged in order, and summed up, in bounded memory."""

import csv
import heapq
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

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

    def add(self, chunk: object, rows: Iterable[Row]) -> None:
        """Take in rows of a chunk, which is any value that differs from that of the chunk before.

        Methods are listed in the order in which an image's rows were added.
        """
        if chunk != self._chunk:
            self._flush()
            self._chunk = chunk
        self._rows += rows

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
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
    streams = [_read(part, metrics) for part in parts]
    return heapq.merge(*streams, key=lambda row: (order[row["degradation"]], row["image"]))


def _read(path: Path, metrics: Sequence[str]) -> Iterator[Row]:
    with path.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            numbers = {metric: float(row[metric]) for metric in metrics}
            yield row | {"image": int(row["image"])} | numbers


class Mean:
    """Mean of values that come one by one, with what is needed to judge it (Welford, 1962).

    Infinite values are counted but left out, because a single exact restoration would make a mean
    PSNR infinite; if all are, so is the mean. A value that is not a number is a failure and is
    not left out: it shows in the mean. Undefined statistics (no values; the error of one) are NaN.
    """

    def __init__(self) -> None:
        self.count = self.infinite = 0
        self._mean = self._squares = 0.0

    def add(self, value: float) -> None:
        """Take in a value."""
        if math.isinf(value):
            self.infinite += 1
            return
        self.count += 1
        step = value - self._mean
        self._mean += step / self.count
        self._squares += step * (value - self._mean)

    def result(self) -> dict[str, float | int]:
        """`mean` and `standard_error` (sample standard deviation / √count) of `count` values."""
        n = self.count
        return {
            "mean": self._mean if n else math.inf if self.infinite else math.nan,
            "standard_error": math.sqrt(self._squares / (n - 1) / n) if n > 1 else math.nan,
            "count": n,
            "infinite": self.infinite,
        }


class Summary:
    """{degradation: {method: {metric: mean, standard error and count}}} of rows that pass by."""

    def __init__(self, metrics: Sequence[str]):
        self.metrics = metrics
        self._means: dict[str, dict[str, dict[str, Mean]]] = {}

    def over(self, rows: Iterable[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        """The same rows, each taken into account as it passes."""
        for row in rows:
            methods = self._means.setdefault(row["degradation"], {})
            means = methods.setdefault(row["method"], {metric: Mean() for metric in self.metrics})
            for metric, mean in means.items():
                mean.add(row[metric])
            yield row

    def result(self) -> dict[str, dict[str, dict[str, Any]]]:
        """What the rows seen so far amount to."""
        return {
            degradation: {
                method: {metric: mean.result() for metric, mean in means.items()}
                for method, means in methods.items()
            }
            for degradation, methods in self._means.items()
        }
