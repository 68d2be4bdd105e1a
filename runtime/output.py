"""Output that breaks: a pipe whose reader is gone, a full disk, a terminal without our letters, and
texts from files that would steer a terminal."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, TextIO, cast

# Letters of our tables in ASCII, each as wide as before.
_ASCII = str.maketrans("†×−–²σΠé…·‖→≤≥σₙ", "+x--2sPe.*|><>sn")
# Whatever begins a sequence that a terminal obeys; the escape, and those of 8 bits.
_CONTROLS = dict.fromkeys({*range(32), *range(127, 160)} - set(map(ord, "\n\r\t")), "?")
_MOVES = re.compile(r"(\n|\x1b\[A)*")  # of a bar below another


class _Unbroken:
    """A stream that drops what it is given once it can no longer be written.

    Letters that it cannot encode become ASCII, and control characters question marks.
    """

    def __init__(self, stream: TextIO):
        self._stream = stream

    def write(self, text: str) -> int:
        if not _MOVES.fullmatch(text):
            text = text.translate(_CONTROLS)
        encoding = self._stream.encoding or "utf-8"
        try:
            text.encode(encoding)
        except UnicodeEncodeError:
            text = text.translate(_ASCII).encode(encoding, "replace").decode(encoding)
        with self._giving_up():
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        with self._giving_up():
            self._stream.flush()

    @contextmanager
    def _giving_up(self) -> Iterator[None]:
        """Python, too, writes what is left when it ends: nothing may be told of that either."""
        try:
            yield
        except OSError:
            with suppress(OSError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # click would write into it where the encoding is ASCII
            raise AttributeError(name)
        return getattr(self._stream, name)


@contextmanager
def unbroken_output() -> Iterator[None]:
    """Let the block go on in silence where stdout or stderr is closed, or breaks; what it prints is
    readable on any terminal, and steers none."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (cast(TextIO, _Unbroken(s or open(os.devnull, "w"))) for s in before)  # noqa: SIM115
    try:
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        sys.stdout, sys.stderr = before
