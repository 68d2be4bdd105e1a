"""`report.html`: results as one page that needs no server and no network, made from their files.

All of the page but its data is `page.html`. What files hold reaches it as JSON, shown as text.
"""

import contextlib
import html
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from metrics.calibration import coverages
from metrics.examples import NAME
from metrics.measure import PER_IMAGE
from metrics.perceptual import PERCEPTUAL
from metrics.report import RISING, UNITS, best_of, metrics_rows, title_of
from metrics.results import read_rows
from runtime.errors import DataError
from runtime.files import replacing
from runtime.records import plain

PAGE = "report.html"
_TEMPLATE = Path(__file__).with_name("page.html")
_FIRST = 1000  # images of a family whose values the page has
# What the plane may show against PSNR, in this order.
_PERCEPTION = ("cfid", "cfd", "fid", "fd", "kid", "kd", *PERCEPTUAL)

Record = dict[str, Any]  # what metrics.json holds
Cells = dict[str, dict[str, dict[str, Any]]]  # of the page, by family and method


def write_report(folder: Path) -> Path:
    """Write `report.html` from what `gen` left in a folder. Raises DataError."""
    with _results(folder):
        record, cells = read_result(folder)
        settings = record["settings"]
        values, names = record["metrics"]["values"], _names(settings)
        headers, rows = metrics_rows(values, names, settings["compiled"], intervals=True)
        tables = []
        for family, methods in values.items():
            own = [row[1:] for row in rows if row[0] == family]
            for i, name in enumerate(names, 1):
                means = {method: cell[name]["mean"] for method, cell in methods.items()}
                means = {method: mean for method, mean in means.items() if not math.isnan(mean)}
                for row in own:
                    if len(means) > 1 and row[0] in best_of(means, name):
                        row[i] = f"**{row[i]}**"
            table = {"title": family, "head": headers[1:], "methods": [*methods], "rows": own}
            tables.append(table)
        title = f"{settings['data']}: {settings['images']} images restored"
        units = {name: text for name, text in record["metrics"]["units"].items() if name in names}
        details = {"metrics": units, "settings": settings, "environment": record["environment"]}
        write_page(folder / PAGE, title, _notes(settings), tables, cells, details)
    return folder / PAGE


def write_page(
    path: Path,
    title: str,
    notes: Sequence[str],
    tables: Sequence[Mapping[str, Any]],
    cells: Cells,
    details: Mapping[str, Mapping[str, Any]],
) -> None:
    """Write a page.

    tables: each with "title", "head", "rows" of texts (**best** is bold, and what stands in
    brackets is small) and "methods", those of its rows as the cells call them.
    """
    pictures: dict[str, int] = {}
    shown = {
        f: {m: _with_pictures(c, pictures) for m, c in own.items()} for f, own in cells.items()
    }
    data = {
        "title": title, "notes": notes, "tables": tables, "cells": shown, "details": details,
        "titles": {metric: title_of(metric) for metric in UNITS}, "rising": RISING,
        "perception": _PERCEPTION, "first": _FIRST, "pictures": [*pictures],
    }  # fmt: skip
    text = json.dumps(plain(data), ensure_ascii=False, separators=(",", ":"))
    parts = {"title": html.escape(title), "data": text.replace("<", "\\u003c")}
    template = _TEMPLATE.read_text(encoding="utf-8")
    page = re.sub(r"\{\{(\w+)\}\}", lambda found: parts[found[1]], template)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8", errors="backslashreplace")


def read_result(folder: Path) -> tuple[Record, Cells]:
    """What `gen` left in a folder: `metrics.json`, and the cells of a page.

    A cell has "metrics", "nfe", "images" (numbers of the first ones), "rows" (their values by
    metric), "calibration" and "examples". Raises DataError if the files are not those of `gen`.
    """
    with _results(folder):
        record = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        return record, _cells(folder, record)


@contextlib.contextmanager
def _results(folder: Path) -> Iterator[None]:
    try:
        yield
    except DataError:
        raise
    except FileNotFoundError as error:
        raise DataError(
            f"{folder} lacks {Path(error.filename).name}: a report is of what `gen` wrote with a "
            "--degradation"
        ) from error
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{folder} holds damaged results: {error!r}") from error


def _cells(folder: Path, record: Record) -> Cells:
    names = _names(record["settings"])
    own = [name for name in names if name in PER_IMAGE]
    found: Cells = {}
    for family, methods in record["metrics"]["values"].items():
        for method, values in methods.items():
            for name in names:
                _restore(values[name])
            cell = found.setdefault(family, {})[method] = {
                "metrics": {name: values[name] for name in names}, "nfe": values["evaluations"],
                "images": [], "rows": {name: [] for name in own},
            }  # fmt: skip
            if "calibration" in values and None not in values["calibration"]["rank_histogram"]:
                cell["calibration"] = _calibration(values["calibration"])
    for row in read_rows(folder / "per_image.csv", own):
        if row["image"] < _FIRST:
            cell = found[row["degradation"]][row["method"]]
            cell["images"].append(row["image"])
            for name in own:
                cell["rows"][name].append(float(f"{row[name]:.5g}"))
    if (folder / "samples.csv").exists():
        for row in read_rows(folder / "samples.csv", ("variance", "squared_error")):
            calibration = found[row["degradation"]][row["method"]].get("calibration")
            if calibration and row["image"] < _FIRST and math.isfinite(row["variance"]):
                spread = (1 + 1 / calibration["samples"]) * row["variance"]
                calibration["spread"].append([spread**0.5, row["squared_error"] ** 0.5])
    if (folder / NAME).exists():
        for family, methods in json.loads((folder / NAME).read_text(encoding="utf-8")).items():
            for method, examples in methods.items():
                found[family][method]["examples"] = examples
    return found


def _names(settings: Mapping[str, Any]) -> list[str]:
    return [name for name in settings["metrics"].split(",") if name]


def _restore(value: dict[str, Any]) -> None:
    """Numbers that are not finite, which JSON cannot write."""
    equal = value.get("infinite") and not value["count"]
    for name in ("mean", "low", "high"):
        if name in value and value[name] is None:
            value[name] = math.inf if equal and name == "mean" else math.nan


def _calibration(found: Mapping[str, Any]) -> dict[str, Any]:
    """What the plots show; of `metrics.sampled.calibration`."""
    count, ranks = found["samples"], found["rank_histogram"]
    return {
        "samples": count,
        "ranks": [(count + 1) * share for share in ranks],
        "central": coverages(torch.tensor(ranks, dtype=torch.float64)),
        "tarp": [*zip(found["tarp"]["levels"], found["tarp"]["coverage"], strict=True)],
        "spread": [],
    }


def _notes(settings: Mapping[str, Any]) -> list[str]:
    """What is to be known before the figures."""
    noise = f"noise of {settings['noise_level']:g}" if settings["noise_level"] else "no noise"
    if settings["poisson_peak"]:
        noise = f"photon noise of peak {settings['poisson_peak']:g}"
    return [f"{settings['split']} images", f"{noise} on y", f"seed {settings['seed']}"]


def _with_pictures(cell: Mapping[str, Any], pictures: dict[str, int]) -> dict[str, Any]:
    """The cell with numbers in place of its pictures, which are collected: each is there once."""
    examples = {
        place: {
            name: value if name == "image" else pictures.setdefault(value, len(pictures))
            for name, value in example.items()
        }
        for place, example in cell.get("examples", {}).items()
    }
    return {**cell, "examples": examples}
