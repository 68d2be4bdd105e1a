"""`reproduce.py`: the missing cells of tables are measured, and the tables are written."""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from commands.cells import Cell, Cells, cells_of, figure_cell
from commands.options import GenOptions, ReproduceOptions
from commands.paper import columns, write_table_page
from commands.table_files import ROOT, Figure, Table, load, names
from runtime import distributed
from runtime.errors import one_sentence_errors
from runtime.files import replacing
from runtime.launcher import launched
from runtime.tables import latex_table, table

_BEST = "MMSE estimates are no samples, so they have a best of their own."


@dataclass(frozen=True)
class Wanted:
    """A table or figure with its cells; those of a figure are one."""

    name: str
    what: Table | Figure
    rows: list[int]  # the rows that are asked for, by their place in the table
    cells: Cells


def reproduce(options: ReproduceOptions, gen: Callable[[GenOptions], Any]) -> None:
    """Make, measure by `gen` and write what is asked for, or list what there is."""
    with one_sentence_errors():
        wanted = _wanted(options)
        if options.make:
            _make(wanted)
            wanted = _wanted(options)
    if options.what == "list":
        _list(wanted)
        return
    with distributed.process_group():
        failed = _measure(wanted, gen)
        for one in wanted if distributed.rank() == 0 else []:
            (_table if isinstance(one.what, Table) else _figure)(one, options)
    if failed:
        print("failed, see above: " + "; ".join(failed), file=sys.stderr)
    # A job of several must not look done; its table says what is missing.
    blocked = options.rows and any(cell.missing for w in wanted for cell in w.cells.values())
    if failed or blocked:
        sys.exit(2)


def _measure(wanted: Sequence[Wanted], gen: Callable[[GenOptions], Any]) -> list[str]:
    """Make the cells that are open, and give the names of those that failed.

    The first process decides for all just before a cell is made: another job may have made it.
    """
    cells = {cell.options.outdir: cell for w in wanted for cell in w.cells.values()}
    failed = []
    for i, cell in enumerate(cells.values(), 1):
        if not distributed.value_of_first(cell.open):
            continue
        if distributed.rank() == 0:
            print(f"{cell.name} ({i} of {len(cells)})", file=sys.stderr, flush=True)
        try:
            cell.run(gen)
        except SystemExit as stop:  # its sentence is printed
            if stop.code != 2 or launched():
                raise
            failed.append(cell.name)
    return failed


def _wanted(options: ReproduceOptions) -> list[Wanted]:
    """What is asked for. Raises ValueError."""
    every, wanted = options.what in ("list", "all"), []
    for name in names() if every else [options.what]:
        what = load(name, options.scale)
        if options.rows and (every or isinstance(what, Figure)):
            raise ValueError("--row picks rows of one table: name the table")
        if isinstance(what, Figure):
            wanted.append(Wanted(name, what, [], {(0, ""): figure_cell(what, options.outdir)}))
        else:
            rows = _chosen(what, options.rows)
            wanted.append(Wanted(name, what, rows, cells_of(what, rows, options.outdir)))
    return wanted


def _chosen(what: Table, rows: Sequence[str]) -> list[int]:
    """Rows by number, from 1 on, or by the name of the method. Raises ValueError."""
    known = [row.method for row in what.rows]
    for row in rows:
        if row not in known and row not in map(str, range(1, len(known) + 1)):
            methods = ", ".join(dict.fromkeys(known))
            raise ValueError(f"--row {row} must be a number from 1 to {len(known)}, or {methods}")
    return [i for i, name in enumerate(known) if not rows or name in rows or str(i + 1) in rows]


def _make(wanted: Sequence[Wanted]) -> None:
    """Run the commands of the files that are missing. Raises ValueError if one fails."""
    if launched():
        raise ValueError("--make runs commands of its own: leave out torchrun for it")
    needs = [made for w in wanted for cell in w.cells.values() for made in cell.needs]
    for made in [made for made in dict.fromkeys(needs) if not made.path.exists()]:
        words = shlex.split(made.made_by)
        if not words:
            raise ValueError(f"{made.file} comes with the project, and is not there")
        print(made.made_by, file=sys.stderr, flush=True)
        words[0] = sys.executable if words[0] == "python" else words[0]
        if subprocess.run(words, cwd=ROOT).returncode or not made.path.exists():
            raise ValueError(f"{made.file} was not made by: {made.made_by}")


def _table(wanted: Wanted, options: ReproduceOptions) -> None:
    found = wanted.what
    assert isinstance(found, Table)
    headers, rows = columns(found, wanted.rows, wanted.cells, options.intervals)
    number = wanted.name.removeprefix("table")
    title = f"Table {number}. {found.title}"
    brackets = "In brackets: as published. " * (options.scale == "paper")
    caption = f"{title}. {brackets}{found.note}".strip()
    lines = [caption, "", table(headers, rows), "", *_missing(wanted.cells.values())]
    text = "\n".join(lines).rstrip() + "\n"
    print(text)
    if options.rows:  # a job of several: the whole table is for the last one
        return
    stem = options.outdir / f"{wanted.name}-{options.scale}"
    for suffix, content in ((".md", text), (".tex", latex_table(headers, rows, caption))):
        with replacing(stem.with_suffix(suffix)) as temporary:
            temporary.write_text(content, encoding="utf-8")
    notes = [note for note in (brackets.strip(), found.note, _BEST) if note]
    write_table_page(stem.with_suffix(".html"), title, notes, found, wanted.cells)
    print(f"written: {stem}.md, {stem}.tex and {stem}.html\n")


def _figure(wanted: Wanted, options: ReproduceOptions) -> None:
    assert isinstance(wanted.what, Figure)
    (cell,) = wanted.cells.values()
    print(f"{wanted.name}: {wanted.what.title}")
    for line in _missing([cell]):
        print(line)
    if cell.done:
        picture = options.outdir / f"{wanted.name}-{options.scale}.png"
        with replacing(picture) as temporary:
            shutil.copyfile(cell.options.outdir / wanted.what.picture, temporary)
        print(f"written: {picture}\n")


def _list(wanted: Sequence[Wanted]) -> None:
    """Rows, what exists of them, and what is missing."""
    for one in wanted:
        print(f"{one.name}: {one.what.title}")
        for i in one.rows or [0]:
            own = [cell for (number, _), cell in one.cells.items() if number == i]
            label = "picture"
            if isinstance(one.what, Table):
                row = one.what.rows[i]
                label = f"{i + 1:2} {row.method}" + (f" ({row.group})" if row.group else "")
            print(f"  {label}: {_state(own)}")
        for line in _missing(one.cells.values()):
            print(f"  {line}")
        print()


def _state(cells: Sequence[Cell]) -> str:
    if not cells:
        return "not in this setting"
    done, blocked = sum(cell.done for cell in cells), sum(bool(cell.missing) for cell in cells)
    text = f"{done} of {len(cells)} measured"
    return text + (f", {blocked} lack something" if blocked else "")


def _missing(cells: Iterable[Cell]) -> Iterator[str]:
    """A line for each thing that is missing, with the command that makes it."""
    for line in dict.fromkeys(line for cell in cells for line in cell.missing):
        yield f"missing: {line}"
