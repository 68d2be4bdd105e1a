"""Options are read from text by the types that a class declares, and classes found by name."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from runtime.reader import arguments, key_values, parse_count, read
from runtime.registry import Registry


class Data:
    def __init__(
        self, path: str | Path, split: str, config: str | None = None, *, size: int | None = None
    ):
        self.values = path, split, config, size


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("16", int, 16),
        ("4Ki", int, 4096),
        ("2^20", int, 2**20),
        ("1e-3", float, 1e-3),
        ("False", bool, False),
        ("no", str, "no"),
        ("2024", str | None, "2024"),
        ("no", str | Path, "no"),
        (Path("a"), str | Path, Path("a")),
        ("none", int | None, None),
        ("2,4", tuple[int, ...], (2, 4)),
        ("[0.5, 2]", tuple[float, ...], (0.5, 2.0)),
        ([1, 2], tuple[int, ...], (1, 2)),
        ("{a: 1}", dict[str, Any], {"a": 1}),
        ("none", tuple[float, ...], ()),
        ("9007199254740993", int, 9007199254740993),
        ("a", Path, Path("a")),
        ("b", Literal["a", "b"], "b"),
        ("anything", Any, "anything"),
    ],
)
def test_values_are_read_by_their_type(text: Any, kind: Any, value: Any) -> None:
    found = read(text, kind, "option")
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "kind", "accepted"),
    [
        ("2.5", int, "a whole number"),
        (True, int, "a whole number"),
        ("nan", float, "a number"),
        ("inf", float, "a number"),
        ("yes", bool, "true or false"),
        (1, bool, "true or false"),
        (None, bool, "true or false"),
        (False, str | None, "a text, or none"),
        ("2,", tuple[int, ...], "whole numbers such as 2,4"),
        ("2", dict[str, Any], "a mapping of names to values"),
        ("x", object, "given as a value, not as text"),
    ],
)
def test_values_of_another_type_are_refused(text: Any, kind: Any, accepted: str) -> None:
    with pytest.raises(ValueError, match=f"^size={re.escape(repr(text))} must be {accepted}"):
        read(text, kind, "size")


def test_arguments_follow_the_signature() -> None:
    given = {"path": "2024", "config": "no", "size": "8"}
    found = arguments(Data, given, "data set 'Data'", fixed=("split",))
    assert found == {"path": "2024", "config": "no", "size": 8}
    with pytest.raises(ValueError, match="data set 'Data' needs the option 'path'"):
        arguments(Data, {}, "data set 'Data'", fixed=("split",))
    with pytest.raises(ValueError, match=r"no option 'split'; it has path, config, size$"):
        arguments(Data, {"split": "train"}, "data set 'Data'", fixed=("split",))


def test_options_without_a_type_follow_their_default() -> None:
    class Plain:
        def __init__(self, size=32, name=None):
            self.size, self.name = size, name

    assert arguments(Plain, {"size": "64", "name": "7"}, "Plain") == {"size": 64, "name": "7"}
    with pytest.raises(ValueError, match="Plain must take the argument 'split'"):
        arguments(Plain, {}, "Plain", fixed=("split",))


def test_key_values() -> None:
    assert key_values(["a=1", "b=x=y"], "--opt") == {"a": "1", "b": "x=y"}
    with pytest.raises(ValueError, match="'a' is no option such as key=value"):
        key_values(["a"], "--opt")


def test_a_registry_builds_by_name_and_by_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = Registry("sampler")

    @registry.register("steps")
    @dataclass
    class Steps:
        count: int = 3

    (tmp_path / "my_samplers.py").write_text(
        "from dataclasses import dataclass\n@dataclass\nclass Mine:\n    rate: float = 1\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert registry.build("steps", {"count": "5"}) == Steps(5)
    assert registry.build("my_samplers.Mine", {"rate": "2"}).rate == 2.0
    with pytest.raises(ValueError, match=r"unknown sampler 'stebs': is it steps\?"):
        registry.find("stebs")
    with pytest.raises(ValueError, match=r"sampler .x.; known are steps, and module\.Class"):
        registry.find("x")


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4096", 4096), (" 64Ki ", 65536), ("8Mi", 2**23), ("1gi", 2**30), ("10k", 10_000),
     ("2M", 2_000_000), ("1.5Ki", 1536), ("2^0", 1), (7, 7)],
)  # fmt: skip
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "Ki", "-1", "4 096", "1e3", "64Kb", "2^", "2^-1", "3^2", "0x10"]
)
def test_what_is_no_count(text):
    with pytest.raises(ValueError, match="no count such as 4096, 64Ki"):
        parse_count(text)
