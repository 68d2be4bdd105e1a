"""The blocks of docs/tutorial.md run one after another and print what stands there.

`python tests/test_tutorial.py`, in the folder of the project, writes there what they print now.
"""

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "tutorial.md"
BLOCK = re.compile(r"(?<=^```)(python|text)\n(.*?)(?=^```$)", re.M | re.S)
NUMBER = re.compile(r"-?\d+\.\d+")


def printed(text: str) -> tuple[dict[str, Any], list[str]]:
    """The names that the blocks of Python define, and what each block of text should be."""
    names: dict[str, Any] = {}
    outputs, out = [], ""
    for kind, block in BLOCK.findall(text):
        if kind == "text":
            outputs.append(out)
            continue
        with contextlib.redirect_stdout(io.StringIO()) as stream:
            exec(block, names)
        # What a progress bar draws is no output: it stands alone on lines that are drawn over.
        out = "".join(f"{line}\n" for line in _lines(stream.getvalue()))
    return names, outputs


def _lines(text: str) -> list[str]:
    return [line for line in text.split("\n") if line.strip() and "\r" not in line]


def test_the_tutorial_runs_and_prints_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    text = PAGE.read_text(encoding="utf-8")
    names, outputs = printed(text)
    shown = [block for kind, block in BLOCK.findall(text) if kind == "text"]
    for now, there in zip(outputs, shown, strict=True):
        assert NUMBER.sub("#", now) == NUMBER.sub("#", there)
        values = [[float(n) for n in NUMBER.findall(part)] for part in (now, there)]
        assert values[0] == pytest.approx(values[1], rel=0.05, abs=0.002), (now, there)
    assert names["table"]["trained, MMSE"][0] > names["table"]["H†y"][0] + 0.5


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    page = PAGE.read_text(encoding="utf-8")
    parts = iter(printed(page)[1])
    PAGE.write_text(
        BLOCK.sub(lambda m: m[0] if m[1] == "python" else f"text\n{next(parts)}", page),
        encoding="utf-8",
    )
