"""The columns of a table of the paper: what was measured, beside what was published."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from commands.cells import Cell, Cells
from commands.table_files import Table, setting_of
from metrics.page import read_result, write_page
from metrics.report import RISING, best_of, shown, title_of


def columns(
    found: Table, rows: Sequence[int], cells: Cells, intervals: bool
) -> tuple[list[str], list[list[str]]]:
    """Titles and rows of the table, with the best of every column in bold.

    rows: by their place in the table; those without a cell are left out. intervals: means have
    their 95 % interval. Published figures stand in brackets.
    """
    rows = [i for i in rows if any(number == i for number, _ in cells)]
    grouped = any(row.group for row in found.rows)
    headers = ["kind", "method"] if grouped else ["method"]
    lines = [[found.rows[i].group, found.rows[i].method][not grouped :] for i in rows]
    for key, block in found.blocks.items():
        for metric in block.metrics:
            used = setting_of(block.setting).metrics[metric]
            headers.append(f"{block.title} {title_of(used)} {'↑' if used in RISING else '↓'}")
            wanted = [i for i in rows if metric in (found.rows[i].metrics or [metric])]
            own = {i: cells[i, key] for i in wanted if (i, key) in cells}
            texts = _texts(found, own, used, intervals)
            for i, line in zip(rows, lines, strict=True):
                published = found.rows[i].paper.get(key, {}).get(metric)
                line.append(_beside(texts.get(i, "-"), published))
    headers.append("NFE")
    for i, line in zip(rows, lines, strict=True):
        count = _evaluations([cells.get((i, key)) for key in found.blocks])
        line.append(_beside(count, found.rows[i].nfe))
    return headers, lines


def write_table_page(
    path: Path, title: str, notes: Sequence[str], found: Table, cells: Cells
) -> None:
    """Write the whole table as a page, with the values and pictures of its cells by block."""
    methods = [row.method for row in found.rows]
    labels = [
        f"{row.method} ({row.group})" if row.group and methods.count(row.method) > 1 else row.method
        for row in found.rows
    ]
    rows = sorted({i for i, _ in cells})
    headers, lines = columns(found, rows, cells, intervals=True)
    shown: dict[str, dict[str, Any]] = {}
    for (i, key), cell in cells.items():
        block = found.blocks[key]
        if cell.done and block.family:
            (methods_of,) = read_result(cell.options.outdir)[1].values()
            (shown.setdefault(block.title, {})[labels[i]],) = methods_of.values()
    table = {"title": "", "head": headers, "rows": lines, "methods": [labels[i] for i in rows]}
    missing = {cell.name: "; ".join(cell.missing) for cell in cells.values() if cell.missing}
    write_page(path, title, notes, [table], shown, {"missing": missing})


def _texts(found: Table, cells: Mapping[int, Cell], metric: str, interval: bool) -> dict[int, str]:
    """A metric, as this setting calls it, of some cells of a block, by row."""
    measured = {i: cell.values() for i, cell in cells.items() if cell.done}
    values = {i: cell[metric] for i, cell in measured.items() if metric in cell}
    texts = dict.fromkeys(cells, "missing")
    texts |= {i: _shown(metric, value, interval) for i, value in values.items()}
    return texts | {i: f"**{texts[i]}**" for i in _best(found, values, metric)}


def _beside(text: str, published: float | None) -> str:
    return text if published is None else f"{text} ({published:g})"


def _best(found: Table, values: Mapping[int, Mapping[str, Any]], metric: str) -> set[int]:
    """The rows to print in bold. MMSE estimates are no samples: they have a best of their own."""
    best: set[int] = set()
    for estimates in (False, True):
        part = {
            i: value["mean"]
            for i, value in values.items()
            if (found.rows[i].sampler == "mmse") == estimates and value["mean"] is not None
        }
        best |= best_of(part, metric)
    return best


def _shown(metric: str, value: Mapping[str, Any], intervals: bool) -> str:
    if value["mean"] is None:
        return "not finite"
    text = shown(metric, value["mean"])
    if intervals and value.get("low") is not None:
        text += f" [{shown(metric, value['low'])}, {shown(metric, value['high'])}]"
    return text


def _evaluations(cells: Sequence[Cell | None]) -> str:
    """As counted: one number, or the smallest and the largest."""
    counts = {cell.values()["evaluations"] for cell in cells if cell and cell.done}
    ends = sorted({min(counts), max(counts)}) if counts else []
    return "–".join(f"{count:g}" for count in ends) or "-"
