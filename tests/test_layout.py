"""Imports between the rooms point one way, and no file outgrows one subject.

`ALLOWED` says which rooms each room may import. No room imports an entry script, a benchmark or a
test.
"""

import ast
import functools
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parents[1]
ALLOWED: dict[str, set[str]] = {  # besides the room itself
    "runtime": set(),
    "degradation": {"runtime"},
    "networks": {"runtime", "degradation"},
    "samplers": {"runtime", "degradation"},
    "zero_shot": {"runtime", "degradation", "samplers"},
    "datautils": {"runtime"},
    "metrics": {"runtime", "degradation", "datautils"},
    "training": {
        "runtime",
        "degradation",
        "networks",
        "samplers",
        "zero_shot",
        "metrics",
        "datautils",
    },
}
ALLOWED["commands"] = set(ALLOWED)
ROOMS = tuple(ALLOWED)
ENTRIES = ("train", "calculate_metrics", "restore", "reproduce")
OUTSIDE = (*ENTRIES, "benchmarks", "tests")  # may import rooms, never imported by one
MAX_LINES = 450


@functools.cache
def project_files() -> list[str]:
    """Python files of the project, tracked or not yet, as paths relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", "*.py"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True, text=True)
        names = listed.stdout.split("\0")
    except (OSError, subprocess.CalledProcessError):  # an unpacked archive, or no git
        folders = (*ROOMS, "benchmarks", "tests")
        paths = [
            *ROOT.glob("*.py"),
            *(p for folder in folders for p in (ROOT / folder).rglob("*.py")),
        ]
        names = [p.relative_to(ROOT).as_posix() for p in paths]
    return sorted(name for name in set(names) if name and (ROOT / name).is_file())


def imported(path: str, source: str) -> Iterator[tuple[int, str]]:
    """(line, top-level name) of every import in a file: nested, type-checking-only or by name."""
    package = PurePosixPath(path).parent.parts
    for node in ast.walk(ast.parse(source, path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name.split(".")[0]
        elif isinstance(node, ast.ImportFrom):
            module = tuple(node.module.split(".")) if node.module else ()
            full = (
                (*package[: max(0, len(package) + 1 - node.level)], *module)
                if node.level
                else module
            )
            for name in full[:1] or [alias.name for alias in node.names]:
                yield node.lineno, name
        elif isinstance(node, ast.Call) and node.args:
            called = node.func.attr if isinstance(node.func, ast.Attribute) else None
            called = node.func.id if isinstance(node.func, ast.Name) else called
            first = node.args[0]
            if called in ("import_module", "__import__") and isinstance(first, ast.Constant):
                yield node.lineno, str(first.value).split(".")[0]


def wrong_imports(path: str, source: str) -> list[str]:
    """One sentence for each import of a room's file that goes that its room may not make."""
    room = PurePosixPath(path).parts[0]
    if room not in ROOMS or PurePosixPath(path).name == "__main__.py":  # an entry script
        return []
    return [
        f"{path}:{line}: {room} imports {name}"
        for line, name in imported(path, source)
        if name in (*ROOMS, *OUTSIDE) and name not in {room, *ALLOWED[room]}
    ]


def imported_tests(source: str) -> list[str]:
    """Names of tests that a file imports: what tests share stands in other files."""
    return re.findall(r"^\s*(?:import|from)\s+(test_\w+)", source, re.M)


def imported_of_commands(source: str) -> set[str]:
    """Modules of commands/ that an entry script, or a file of commands/, imports."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = [*["commands"] * (node.level > 0), *([node.module] if node.module else [])]
            names += [".".join([*start, alias.name]) for alias in node.names]
    return {name.split(".")[1] for name in names if name.startswith("commands.")}


def too_long(source: str) -> bool:
    return len(source.splitlines()) > MAX_LINES


def test_imports_point_one_way() -> None:
    files = project_files()
    assert "tests/test_layout.py" in files  # the listing sees the project
    wrong = [w for f in files for w in wrong_imports(f, (ROOT / f).read_text(encoding="utf-8"))]
    assert not wrong, "\n".join(wrong)


def test_commands_do_not_import_one_another() -> None:
    """A module that an entry script imports holds a command, but for the one of all options."""
    sources = {f: (ROOT / f).read_text(encoding="utf-8") for f in project_files()}
    called = set().union(*(imported_of_commands(sources[f"{entry}.py"]) for entry in ENTRIES))
    commands = called - {"options"}
    assert {"train", "gen", "draw", "reproduce"} <= commands
    own = {f: s for f, s in sources.items() if f.startswith("commands/")}
    wrong = [f for f, source in own.items() if imported_of_commands(source) & commands]
    assert not wrong, f"what commands share stands in modules that hold none: {wrong}"


def test_no_test_imports_another() -> None:
    files = [f for f in project_files() if f.startswith("tests/")]
    wrong = [f for f in files if imported_tests((ROOT / f).read_text(encoding="utf-8"))]
    assert not wrong, f"{', '.join(wrong)} import tests"


def test_files_are_one_subject_each() -> None:
    long = [f for f in project_files() if too_long((ROOT / f).read_text(encoding="utf-8"))]
    assert not long, f"over {MAX_LINES} lines: {', '.join(long)}"


def test_rooms_do_not_grow_silently() -> None:
    """docs/architecture.md says how many lines a room may have."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = text.partition("## Sizes")[2].partition("\n## ")[0]
    allowed = {name.strip("`/"): int(n) for name, n in re.findall(r"\| (\S.*?) \| (\d+) \|", table)}
    lines = dict.fromkeys(allowed, 0)
    for path in project_files():
        room = PurePosixPath(path).parts[0] if "/" in path else "entry scripts"
        if room in lines:
            count = len((ROOT / path).read_text(encoding="utf-8").splitlines())
            lines[room] += count
            lines["all"] += count
    assert set(ROOMS) <= set(lines)
    grown = {room: n for room, n in lines.items() if n > allowed[room]}
    assert not grown, f"more lines than docs/architecture.md allows: {grown}"


@pytest.mark.parametrize(
    ("path", "source", "culprit"),
    [
        ("degradation/mask.py", "import networks.hdit", "networks"),
        ("degradation/mask.py", "import torch, samplers", "samplers"),
        ("networks/hdit.py", "from samplers import Heun", "samplers"),
        ("samplers/heun.py", "from zero_shot.ddrm import DDRM", "zero_shot"),
        ("zero_shot/ddrm.py", "def f():\n    from metrics import fd", "metrics"),
        ("samplers/heun.py", "from networks import Denoiser", "networks"),
        ("metrics/loop.py", "from networks import Denoiser", "networks"),
        ("runtime/files.py", "from datautils import photos", "datautils"),
        ("zero_shot/ddrm.py", "import training.loss", "training"),
        ("metrics/loop.py", "if TYPE_CHECKING:\n    import training.ema as e", "training"),
        ("training/loop.py", "from train import main", "train"),
        ("samplers/base.py", "import benchmarks.speed", "benchmarks"),
        (
            "networks/presets.py",
            "import importlib\nimportlib.import_module('training')",
            "training",
        ),
        ("networks/blocks/attention.py", "from ...samplers import base", "samplers"),
        ("networks/hdit.py", "from .. import samplers", "samplers"),
        ("datautils/folder.py", "from degradation import Mask", "degradation"),
        ("networks/hdit.py", "from datautils import photos", "datautils"),
    ],
)
def test_checker_finds_an_import_against_the_order(path: str, source: str, culprit: str) -> None:
    found = wrong_imports(path, source)
    assert len(found) == 1
    assert found[0].startswith(f"{path}:")
    assert found[0].endswith(f"imports {culprit}")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        (
            "degradation/mask.py",
            "import torch\nfrom . import base\nfrom .base import Mask",
        ),
        ("networks/blocks/attention.py", "from ..presets import P\nfrom degradation import Mask"),
        ("training/loop.py", "import degradation, networks, samplers, metrics, runtime"),
        ("training/loop.py", "from datautils.folder import ImageFolder"),
        ("datautils/folder.py", "from .base import Images\nimport datautils.photos"),
        ("train.py", "from training.loop import run\nimport datautils"),
        ("benchmarks/speed.py", "import training, benchmarks.timing"),
        ("samplers/heun.py", "import trainer\nfrom torch.nn import training"),
    ],
)
def test_checker_lets_the_right_way_pass(path: str, source: str) -> None:
    assert wrong_imports(path, source) == []


def test_checker_finds_a_test_that_another_imports() -> None:
    for source in ("import os\nimport test_a", "from test_a import b", "if x:\n    import test_a"):
        assert imported_tests(source) == ["test_a"]
    assert not imported_tests("from helpers import test_data")


def test_checker_finds_a_command_that_another_imports() -> None:
    for source in (
        "def f():\n    from commands.gen import run",
        "from commands import gen",
        "import torch, commands.gen as g",
        "from . import gen",
        "from .gen import run",
    ):
        assert imported_of_commands(source) == {"gen"}
    assert not imported_of_commands("import commands\nfrom metrics.gen import run")


def test_checker_counts_lines() -> None:
    assert not too_long("x = 1\n" * MAX_LINES)
    assert too_long("x = 1\n" * (MAX_LINES + 1))
