"""The command lines that the project prints: in its pages, configs and tables."""

import importlib
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np
import yaml
from PIL import Image
from torch.distributed.run import get_args_parser

from training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[1]
PAGES = [
    ROOT / "README.md", ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "checkpoints").glob("*.md")),
]  # fmt: skip
HEADERS = sorted(path for path in (ROOT / "configs").iterdir() if path.is_file())
SETTINGS = sorted((ROOT / "configs" / "tables" / "settings").glob("*.yaml"))
SCRIPTS = ("train.py", "calculate_metrics.py", "restore.py", "reproduce.py")
RUN = TrainConfig(
    preset="tiny", data={"resolution": 16, "size": 8}, degradation="MissingPatches", batch=4,
    duration=8, workers=0, validate_images=4,
)  # fmt: skip
_BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.M | re.S)
_INLINE = re.compile(r"`((?:[A-Z_]+=\S+ )*(?:python|torchrun|make|sbatch|pip|npm)\s[^`]+)`")
_HEADER = re.compile(r"^#.*?((?:[A-Z_]+=\S+ )*(?:python|torchrun|sbatch) .+)$", re.M)


@dataclass(frozen=True)
class Line:
    """A command line, and the file that prints it."""

    page: str
    text: str

    @property
    def words(self) -> list[str]:
        """Without what the shell sets for it, and without dots that stand for more of it."""
        words = [word for word in shlex.split(self.text, comments=True) if word != "..."]
        while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):
            del words[0]
        return words

    def called(self) -> tuple[list[str], int]:
        """The words of the program itself, such as ["train.py", "--resume", "FOLDER"] or ["-m",
        "training.publish", ...], and the number of processes that torchrun starts it with."""
        words = self.words
        if words[0] != "torchrun":
            return words[words[0] == "python" :], 1
        found = get_args_parser().parse_args(words[1:])
        nodes = found.nnodes.rpartition(":")[2]  # at most
        processes = int(nodes) * int(found.nproc_per_node)
        module = ["-m"] * found.module
        return [*module, found.training_script, *found.training_script_args], processes


def printed() -> list[Line]:
    """Every line of the pages' blocks without a language, the commands between their backticks,
    those of the configs' comments, and those that make the files of the tables."""
    found = [Line(_name(page), text) for page in PAGES for text in _of_page(page.read_text())]
    for path in HEADERS:
        found += [Line(_name(path), text.strip()) for text in _HEADER.findall(path.read_text())]
    for path in SETTINGS:
        values = yaml.safe_load(path.read_text())
        made = [*values["networks"].values(), *([values["ref"]] if "ref" in values else [])]
        found += [Line(_name(path), file["made_by"]) for file in made if "made_by" in file]
    return list(dict.fromkeys(found))


def _of_page(text: str) -> list[str]:
    lines = [
        line
        for language, block in _BLOCK.findall(text)
        if not language
        for line in re.sub(r"\\\n\s*", "", block).splitlines()
        if line.strip() and not line.startswith("#")
    ]
    inline = _INLINE.findall(_BLOCK.sub("", text))
    return lines + [" ".join(command.split()) for command in inline]


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def command_of(words: Sequence[str]) -> tuple[click.Command, list[str]]:
    """The click command of a script or of a module after -m, and its arguments."""
    module, rest = words[0].removesuffix(".py"), list(words[1:])
    if words[0] == "-m":
        module, *rest = rest
    else:
        assert words[0] in SCRIPTS, f"nobody says how to check {words[0]}"
    found = importlib.import_module(module).main
    if isinstance(found, click.Group) and rest != ["-h"]:
        found, rest = found.commands[rest[0]], rest[1:]
    assert isinstance(found, click.Command), f"{module} has no command line"
    return found, rest


def lay_out() -> None:
    """Make the working folder look like the project's, with what printed commands take as given:
    originals, photos, and a run in FOLDER that has not begun."""
    for name in ("checkpoints", "configs"):
        Path(name).symlink_to(ROOT / name)
    Path("FFHQ_FOLDER").mkdir()
    Path("FOLDER").mkdir()
    random = np.random.default_rng(0)
    for i in (*range(8), *range(60000, 60004)):
        pixels = random.integers(0, 256, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(f"FFHQ_FOLDER/{i:05}.png")
        Image.fromarray(pixels[:16, :16]).save(f"FOLDER/{i}.png")
    for name in ("photo.png", "damaged.png"):
        Image.fromarray(pixels).save(name)
    visible = np.full((64, 64), 255, np.uint8)
    visible[20:40, 20:40] = 0
    Image.fromarray(visible).save("mask.png")
    Path("FOLDER/config.yaml").write_text(RUN.dump())
