"""Command lines called in the process: what is accepted, and what is refused and leaves nothing."""

from pathlib import Path

import click
from click.testing import Result
from runner import Runner

import train
from training.config import TrainConfig

TRAIN = [
    "--preset=tiny", "--data=datautils.photos.Photos", "--data-opt=resolution=16",
    "--degradation=MotionBlur", "--batch=4", "--duration=8", "--precision=fp32", "--workers=0",
    "--sheet-every=0", "--outdir=run",
]  # fmt: skip
GEN = [
    "gen", "--data=datautils.photos.Photos", "--data-opt=resolution=16", "--data-opt=size=4",
    "--degradation=MotionBlur", "--sampler=mmse", "--outdir=restored",
]  # fmt: skip


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(command: click.Command, arguments: list[str]) -> str:
    """The sentence with which a command refuses its arguments, leaving everything as it was."""
    before = contents(Path())
    result = Runner().invoke(command, arguments)
    assert result.exit_code == 2, (result.exception, result.stderr[-300:])
    assert result.stdout == ""
    assert contents(Path()) == before
    lines = result.stderr.splitlines()
    if lines[0].startswith("Usage:"):
        assert lines[-1].startswith("Error: ")
        return lines[-1]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def success(command: click.Command, arguments: list[str]) -> Result:
    result = Runner().invoke(command, arguments)
    assert result.exit_code == 0, (result.exception, result.stderr[-300:])
    return result


def assert_names(sentence: str, words: str) -> None:
    """Every word, separated by spaces, stands in the sentence."""
    missing = [word for word in words.split() if word not in sentence]
    assert not missing, f"{missing} not in: {sentence}"


# ---- settings ------------------------------------------------------------------------------------


def dry_run(*arguments: str) -> TrainConfig:
    """The settings that a dry run prints, read back."""
    Path("resolved.yaml").write_text(success(train.main, [*arguments, "--dry-run"]).stdout)
    return TrainConfig.load(Path("resolved.yaml"), {})
