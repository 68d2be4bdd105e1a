"""Tables as text."""

import re
from collections.abc import Sequence
from typing import Any


def table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """An aligned table that is readable as plain text and valid Markdown.

    Floats are shown with four significant digits, None as "-". Columns of numbers are aligned to
    the right. Raises ValueError if a row does not have one value for each header.
    """
    columns = []
    for header, *values in zip(headers, *rows, strict=True):
        texts = [header, *map(_cell, values)]
        width = max(3, *map(len, texts))
        if all(isinstance(value, int | float | None) for value in values):
            texts.insert(1, "-" * (width - 1) + ":")
            columns.append([text.rjust(width) for text in texts])
        else:
            texts.insert(1, "-" * width)
            columns.append([text.ljust(width) for text in texts])
    return "\n".join(f"| {' | '.join(line)} |" for line in zip(*columns, strict=True))


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
