"""Options given twice, empty ones, and values out of range: refused by name in every command."""

from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import calculate_metrics
import restore
import train
from datautils import prepare
from training import curves, posthoc

COMMANDS = {
    "train": (train.main, []),
    "restore": (restore.main, ["--image=photo.png", "--outdir=out"]),
    "gen": (calculate_metrics.main, ["gen", "--net=net.safetensors", "--outdir=out"]),
    "gen-uncond": (calculate_metrics.main, ["gen-uncond", "--net=net", "--outdir=out"]),
    "ref": (calculate_metrics.main, ["ref", "--dest=ref.safetensors"]),
    "prior": (calculate_metrics.main, ["prior", "--dest=prior.safetensors"]),
    "calc": (calculate_metrics.main, ["calc", "--images=a", "--ref=b"]),
    "prepare": (prepare.main, ["--source=a", "--dest=b.zip", "--size=8"]),
    "curves": (curves.main, ["run"]),
    "posthoc": (posthoc.main, ["run", "--sigma-rel=0.1", "--dest=a.safetensors"]),
}


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def refusal(name: str, *arguments: str) -> str:
    """The sentence with which a command refuses its arguments before it writes anything."""
    command, needed = COMMANDS[name]
    result = CliRunner().invoke(command, [*needed, *arguments])
    assert result.exit_code == 2, (result.exception, result.output[-300:])
    assert not list(Path().iterdir())
    return result.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    ("name", "arguments", "option"),
    [
        ("train", ["--lr=1e-3", "--lr=1e-4"], "--lr"),
        ("train", ["--compile", "--no-compile"], "--compile"),
        ("train", ["-b", "4", "--batch", "8"], "--batch"),
        ("train", ["--dry-run", "--dry-run"], "--dry-run"),
        ("train", ["--data-opt=size=1", "--data-opt=size=2"], "--data-opt size"),
        ("train", ["--detector=fd=a", "--detector=fd=b"], "--detector fd"),
        ("restore", ["--image=other.png"], "--image"),
        ("restore", ["--sampler-opt=eta=1", "--sampler-opt=eta=0"], "--sampler-opt eta"),
        ("gen", ["--outdir=other"], "--outdir"),
        ("gen-uncond", ["--seed=1", "--seed=1"], "--seed"),
        ("gen", ["--degradation-opt=a=1", "--degradation-opt=a=2"], "--degradation-opt a"),
        (
            "gen",
            ["--degradation=Box", "--degradation-opt=a=1", "--degradation-opt=Box.a=2"],
            "--degradation-opt Box.a",
        ),
        ("ref", ["--batch=4", "--batch=8"], "--batch"),
        ("ref", ["--detector=inception", "--detector=inception"], "--detector inception"),
        ("prior", ["--split=all", "--split=all"], "--split"),
        ("calc", ["--size=8", "--size=8"], "--size"),
        ("prepare", ["--size=16"], "--size"),
        ("curves", ["--dest=a.png", "--dest=b.png"], "--dest"),
        ("posthoc", ["--sigma-rel=0.2"], "--sigma-rel"),
    ],
)
def test_options_given_twice_are_refused(name: str, arguments: list[str], option: str) -> None:
    assert f"{option} is given twice" in refusal(name, *arguments)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_refuses_an_option_given_twice(name: str) -> None:
    command, needed = COMMANDS[name]
    inner = command.commands[needed[0]] if isinstance(command, click.Group) else command
    single = [p for p in inner.params if isinstance(p, click.Option) and not p.multiple]
    for option in single:
        words = [option.opts[-1]] if option.is_flag else [option.opts[-1], "1"]
        result = CliRunner().invoke(command, [*needed, *words, *words])
        assert f"{option.opts[-1]} is given twice" in result.stderr


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("train", ["--degradation="]),
        ("train", ["--wandb="]),
        ("train", ["--outdir="]),
        ("train", ["--name="]),
        ("restore", ["--mask="]),
        ("gen", ["--degradation="]),
        ("gen", ["--net="]),
        ("calc", ["--outdir="]),
    ],
)
def test_empty_texts_are_refused(name: str, arguments: list[str]) -> None:
    assert arguments[0].strip("-=") in refusal(name, *arguments)


def test_outdir_is_never_the_working_folder_by_an_empty_text() -> None:
    words = ["gen", "--net=net.safetensors", "--outdir="]
    result = CliRunner().invoke(calculate_metrics.main, words)
    assert result.exit_code == 2 and "must be a path, not empty" in result.stderr


@pytest.mark.parametrize(
    ("name", "argument", "accepted"),
    [
        ("restore", "--noise-level=1e39", "range of images"),
        ("restore", "--poisson-peak=1e39", "at most 1e+09"),
        ("restore", "--cfg=inf", "must be a number"),
        ("restore", "--stride=2^99", "beyond 2^63"),
        ("gen", "--images=2^64", "beyond 2^63"),
        ("gen", f"--images={'9' * 400}", "is no count"),
        ("gen", "--workers=1000000000", "at most 1024"),
        ("calc", "--size=1Gi", "at most 65536"),
        ("prepare", "--crop=2147483648", "65536"),
        ("train", "--ema-sigma-rel=1e-200", "from 0.0001"),
        ("train", "--duration=1e400", "a whole number"),
    ],
)
def test_numbers_out_of_range_are_refused(name: str, argument: str, accepted: str) -> None:
    more = ["--mask=m.png"] if name == "restore" else []
    assert accepted in refusal(name, argument, *more)
