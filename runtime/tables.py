"""Tables as text."""

import re
from collections.abc import Sequence
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned table that is readable as plain text and valid Markdown.

    Floats are shown with four significant digits, None as "-". Columns of numbers are aligned to
    the right. Raises ValueError if a row does not have one value for each header.
    """
    if any(len(row) != len(headers) for row in rows):
        raise ValueError(f"every row of the table needs {len(headers)} values")
    numeric = [
        all(row[i] is None or isinstance(row[i], int | float) for row in rows)
        for i in range(len(headers))
    ]
    cells = [list(headers)] + [[_cell(value) for value in row] for row in rows]
    widths = [max(3, *(len(line[i]) for line in cells)) for i in range(len(headers))]

    def render(line: Sequence[str]) -> str:
        columns = zip(line, widths, numeric, strict=True)
        return "| " + " | ".join(c.rjust(w) if n else c.ljust(w) for c, w, n in columns) + " |"

    rule = [
        "-" * (width - 1) + ":" if right else "-" * width
        for width, right in zip(widths, numeric, strict=True)
    ]
    return "\n".join(render(line) for line in [cells[0], rule, *cells[1:]])


def fixed(value: float, places: int = 2) -> str:
    """A number with so many decimal places, or one digit where these would make it 0."""
    text = f"{value:.{places}f}"
    return f"{value:.0e}" if value and not float(text) else text


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def latex_table(headers: Sequence[str], rows: Sequence[Sequence[Any]], caption: str) -> str:
    """The same in LaTeX, for the package booktabs; **text** becomes bold."""
    lines = [[_latex(_cell(value)) for value in row] for row in [headers, *rows]]
    head, *body = [" & ".join(line) + r" \\" for line in lines]
    return "\n".join([
        r"\begin{table}", rf"\caption{{{_latex(caption)}}}", r"\centering",
        rf"\begin{{tabular}}{{{'l' * len(headers)}}}", r"\toprule", head, r"\midrule", *body,
        r"\bottomrule", r"\end{tabular}", r"\end{table}", "",
    ])  # fmt: skip


_SIGNS = {
    "↑": r"$\uparrow$", "↓": r"$\downarrow$", "±": r"$\pm$", "σ": r"$\sigma$",
    "×": r"$\times$", "–": "--", "−": "$-$", "²": "$^2$",
}  # fmt: skip


def _latex(text: str) -> str:
    text = re.sub(r"([&%$#_{}])", r"\\\1", text)
    text = re.sub(r"\*\*(.+?)\*\*", r"\\textbf{\1}", text)
    return "".join(_SIGNS.get(sign, sign) for sign in text)
