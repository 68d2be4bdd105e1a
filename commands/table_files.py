"""The tables and figures of the paper as files: configs/tables/*.yaml, and what they stand on."""

from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from runtime.records import parse_yaml, record

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "configs" / "tables"

T = TypeVar("T")


@dataclass(frozen=True)
class Made:
    """A file, and the command that makes it (none for files of the project)."""

    file: str
    made_by: str = ""

    @property
    def path(self) -> Path:
        """Where the file is; relative paths are the project's."""
        return ROOT / self.file


@dataclass(frozen=True)
class Setting:
    """A data set, its networks, and how they are measured (configs/tables/settings)."""

    title: str
    data: str
    images: int
    metrics: dict[str, str]  # a metric of the paper, and the one of `gen` that stands for it
    networks: dict[str, Made]
    small: str = ""  # the setting that stands in for this one at the small scale
    data_opt: dict[str, Any] = field(default_factory=dict)
    batch: int = 32
    ref: Made | None = None
    any_count: bool = False
    samplers: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Options of samplers and baselines, by name, before those of a row."""
    presets: dict[str, str] = field(default_factory=dict)  # of samplers, by name, likewise
    cfg: float | None = None


@dataclass(frozen=True)
class Block:
    """Columns that stand together: one family of operators on one data set."""

    title: str
    setting: str
    metrics: list[str]
    family: str | None = None  # none draws images from the network alone
    noise_level: float = 0.0
    poisson_peak: float | None = None


@dataclass(frozen=True)
class Row:
    """One method."""

    method: str
    network: str = ""  # by its name in the setting; empty for a method without one
    sampler: str = "heun"  # a baseline, if there is no network
    group: str = ""
    options: dict[str, Any] = field(default_factory=dict)  # of the sampler
    presets: dict[str, str] = field(default_factory=dict)
    """More of them, by block: presets of the sampler (configs/samplers/presets.yaml)."""
    metrics: list[str] | None = None  # only these
    nfe: int | None = None  # as published
    paper: dict[str, dict[str, float]] = field(default_factory=dict)
    """Published figures, by block and metric."""


@dataclass(frozen=True)
class Table:
    """A table of the paper."""

    title: str
    blocks: dict[str, Block]
    rows: list[Row]
    note: str = ""


@dataclass(frozen=True)
class Figure:
    """A figure of the paper: one evaluation with pictures."""

    title: str
    setting: str
    networks: list[str]
    samplers: list[str]
    images: int
    families: list[str] = field(default_factory=list)
    picture: str = "grid.png"


W = TypeVar("W", Block, Figure)


def names() -> list[str]:
    """All tables and figures, in the order of the paper."""
    found = [path.stem for path in FOLDER.glob("*.yaml")]
    return sorted(found, key=lambda name: (name.rstrip("0123456789") != "table", len(name), name))


def load(name: str, scale: str = "paper") -> Table | Figure:
    """A table or figure by name, on the settings of a scale, which its titles name.

    A setting of the small scale stands for several: of blocks that became the same, the first is
    left, and published figures are left out. Raises ValueError if it is not there or not sound.
    """
    if name not in names():
        raise ValueError(f"there is no '{name}': known are {', '.join(names())}, list and all")
    path = FOLDER / f"{name}.yaml"
    if name.startswith("figure"):
        return _scaled(_read(Figure, path), scale)
    table = _read(Table, path)
    blocks: dict[tuple, tuple[str, Block]] = {}
    for key, block in table.blocks.items():
        block = _scaled(block, scale)
        same = block.setting, block.family, *block.metrics, block.noise_level, block.poisson_peak
        blocks.setdefault(same, (key, block))
    table = replace(table, blocks=dict(blocks.values()))
    if scale == "paper":
        return table
    used = dict.fromkeys(setting_of(block.setting).title for block in table.blocks.values())
    rows = [replace(row, paper={}, nfe=None) for row in table.rows]
    return replace(table, title=f"{table.title}, here on {', '.join(used)}", rows=rows)


@cache
def setting_of(name: str) -> Setting:
    """A setting by name. Raises ValueError if it is not sound."""
    return _read(Setting, FOLDER / "settings" / f"{name}.yaml")


def _scaled(what: W, scale: str) -> W:
    """The block or figure with its setting at a scale, whose title stands where its own has
    {data}."""
    small = setting_of(what.setting).small if scale == "small" else ""
    name = small or what.setting
    return replace(what, setting=name, title=what.title.replace("{data}", setting_of(name).title))


def _read(cls: type[T], path: Path) -> T:
    try:
        values = parse_yaml(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return record(cls, values, str(path))
