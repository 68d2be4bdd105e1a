"""JSON and YAML of anybody's, and dataclasses from what they hold."""

from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from runtime.records import parse_json, parse_yaml, record


@dataclass
class Inner:
    name: str = "x"


@dataclass
class Outer:
    count: int
    rate: float = 0.5
    on: bool = False
    kind: Literal["a", "b"] = "a"
    shape: tuple[int, int] = (1, 2)
    rates: list[float] = field(default_factory=list)
    inner: Inner | None = None
    by_name: dict[str, list[int]] = field(default_factory=dict)
    any: Any = None

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


def test_a_record_is_read_by_its_annotations():
    values = {
        "count": 3, "rate": 1, "on": True, "kind": "b", "shape": [4, 5], "rates": [1, 0.5],
        "inner": {"name": "y"}, "by_name": {"z": [1]}, "any": [None],
    }  # fmt: skip
    expected = Outer(3, 1.0, True, "b", (4, 5), [1.0, 0.5], Inner("y"), {"z": [1]}, [None])
    assert record(Outer, values, "it") == expected
    assert isinstance(record(Outer, values, "it").rate, float)
    assert record(Outer, {"count": 1, "inner": None}, "it") == Outer(1)


@pytest.mark.parametrize(
    "change",
    [
        {"count": "3"}, {"count": 3.0}, {"count": True}, {"count": None}, {"count": 2**63},
        {"count": -1}, {"rate": "1"}, {"rate": float("nan")}, {"rate": 10**400}, {"on": 1},
        {"kind": "c"}, {"kind": []}, {"shape": [1]}, {"shape": [1, 2, 3]}, {"shape": [1, "2"]},
        {"shape": 3}, {"rates": {"0": 1}}, {"rates": [[1]]}, {"inner": []}, {"inner": {"name": 1}},
        {"by_name": {"z": 1}}, {"by_name": [1]}, {"unknown": 1},
    ],
    ids=str,
)  # fmt: skip
def test_any_other_value_is_refused_by_name(change):
    (name,) = change
    with pytest.raises(ValueError, match=rf"^the record.*{name}"):
        record(Outer, {"count": 3} | change, "the record")


def test_a_missing_entry_and_another_kind_are_refused_and_others_may_be_passed_over():
    with pytest.raises(ValueError, match="lacks count"):
        record(Outer, {}, "it")
    with pytest.raises(ValueError, match="mapping"):
        record(Outer, [3], "it")
    assert record(Outer, {"count": 3, "position": []}, "it", others=True) == Outer(3)


@pytest.mark.parametrize("text", ["[" * 100_000, "[" * 2000 + "]" * 2000, "{", b"\xff\xfe\xfd"])
def test_json_that_is_none_or_too_deep_is_a_value_error(text):
    with pytest.raises(ValueError):
        parse_json(text)


def test_yaml_with_aliases_is_read():
    text = "a: &x [1, 2]\nb: *x\nc: {d: *x}"
    assert parse_yaml(text) == {"a": [1, 2], "b": [1, 2], "c": {"d": [1, 2]}}
    assert parse_yaml("") is None


@pytest.mark.parametrize(
    "text",
    ["a: [", "a: \0", "a: *b", "[" * 1000 + "]" * 1000, "a: !!python/object:os.system x"],
)
def test_what_is_no_yaml_raises(text):
    with pytest.raises(ValueError, match=r"cannot be read as YAML|too deep"):
        parse_yaml(text)
