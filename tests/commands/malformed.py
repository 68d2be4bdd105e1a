"""Malformed inputs, made of sound ones by a seed, and how a command has to take them."""

import json
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
from command_lines import contents
from runner import Runner

# What stands where a number, a text or anything else is expected.
WORDS = ("", "x", "nan", "inf", "-1", "0", "1e39", "1e-300", "2^99", "9" * 400, "1.5", "٣")
VALUES = (None, True, -1, 0, 1.5, 1e308, 10**30, "x", "", [], [[]], {}, {"x": 1}, "9" * 400)


def judge(command: click.Command, words: list[str], sound: Callable[[], str] = str) -> str:
    """What is wrong with the way in which a command took its words; empty if nothing is.

    It has to refuse them with one sentence and leave everything as it was, or to take them, and
    then `sound` says what is wrong with the result. What it has written is removed.
    """
    before = contents(Path())
    result = Runner().invoke(command, words)
    after, last = contents(Path()), (result.stderr.strip().splitlines() or [""])[-1]
    fault = ""
    if result.exit_code == 2 and isinstance(result.exception, SystemExit):
        if not last.lower().startswith("error: ") or len(last) < 20 or len(last) > 900:
            fault = f"no sentence: {last[-200:]}"
        elif after != before:
            fault = f"left {sorted(after.keys() ^ before.keys())}"
    elif result.exit_code == 0:
        fault = sound()
    elif result.exit_code == 1 and "failed, its consistency" in result.stdout:
        pass  # weights that restore nothing, and that is said
    else:
        fault = f"{type(result.exception).__name__}: {str(result.exception)[:150]}"
    for name in sorted(after.keys() - before.keys(), reverse=True):
        path = Path(name)
        path.rmdir() if path.is_dir() else path.unlink()
    return fault and f"{' '.join(words)[:250]!r}: {fault}"


def mutations(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """Damaged forms of a file: empty, cut, with bytes changed, taken out, repeated or put in."""
    rng = np.random.default_rng(seed)
    yield b""
    yield rng.bytes(len(data))
    for _ in range(count - 2):
        at, end = sorted(int(i) for i in rng.integers(0, len(data) + 1, 2))
        small = at + int(rng.integers(1, 9))
        kind = int(rng.integers(6))
        if kind == 0:
            yield data[:at]
        elif kind == 1:  # in the head, where sizes stand
            at = int(rng.integers(0, min(200, len(data))))
            yield data[:at] + rng.bytes(4) + data[at + 4 :]
        elif kind == 2:
            yield data[:at] + rng.bytes(small - at) + data[small:]
        elif kind == 3:
            yield data[:at] + data[small:]
        elif kind == 4:
            yield data[:at] + data[at:end][:999] * 2 + data[end:]
        else:
            yield data[:at] + b"\xff" * (small - at) + data[at:]


def paths(value: Any, below: tuple = ()) -> Iterator[tuple]:
    """The places in a JSON value, of the innermost and of all around them."""
    if below:
        yield below
    if isinstance(value, list):
        value = dict(enumerate(value))
    for key, item in value.items() if isinstance(value, dict) else ():
        yield from paths(item, (*below, key))


def replaced(value: Any, path: tuple, by: Any) -> Any:
    """The value with another one in a place; `...` removes the place."""
    value = json.loads(json.dumps(value))
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if by is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = by
    return value


def variants(value: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """A JSON value with one place each time removed, or of another kind."""
    rng = np.random.default_rng(seed)
    places = list(paths(value))
    for _ in range(count):
        place = places[int(rng.integers(len(places)))]
        yield replaced(value, place, (..., *VALUES)[int(rng.integers(len(VALUES) + 1))])


def described(path: Path, key: str, change: Callable[[Any], Any]) -> bytes:
    """A safetensors file whose metadata hold another JSON value under a key."""
    data = path.read_bytes()
    (size,) = struct.unpack("<Q", data[:8])
    header = json.loads(data[8 : 8 + size])
    header["__metadata__"][key] = json.dumps(change(json.loads(header["__metadata__"][key])))
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data[8 + size :]
