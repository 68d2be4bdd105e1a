"""Every command that the project prints is one that it accepts."""

import importlib
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import click
import pytest
import yaml
from runner import Runner
from shell_lines import ROOT, Line, command_of, lay_out, printed

from commands.checks import chosen
from commands.methods import BASELINES, samplers_of
from commands.operators import families_of
from commands.train import check_batch
from datautils import DATASETS
from metrics.measure import METRICS
from runtime.cli import SETTINGS
from runtime.reader import arguments
from training.config import TrainConfig

BARE = ("degradation", "samplers", "benchmarks.operator_sheet", "benchmarks.zip_directory")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("place"))
        lay_out()
        yield


def check_python(words: Sequence[str], processes: int) -> None:
    if words[0] == "-m" and words[1] in BARE:
        assert len(words) == 2 and importlib.util.find_spec(words[1])
        return
    command, rest = command_of(words)
    if rest == ["-h"]:
        return
    if words[0] == "train.py":
        check_training(command, rest, processes)
    else:
        values = command.make_context(words[0], rest, **SETTINGS).params
        if words[0] != "-m":
            check_names(values)
    for word in rest:
        if word.startswith(("checkpoints/", "configs/")):
            assert (ROOT / word).is_file(), word


def check_training(command: click.Command, words: list[str], processes: int) -> None:
    result = Runner().invoke(command, [*words, "--dry-run"])
    assert result.exit_code == 0, result.output
    config = TrainConfig(**yaml.safe_load(result.stdout))
    check_batch(config, processes)
    for given in config.init, config.data.get("path"):
        if str(given).startswith("checkpoints/"):
            assert Path(given).is_file()
    arguments(DATASETS.find(config.data_class), config.data, "data set", fixed=("split",))


def check_names(values: dict) -> None:
    """Samplers, families, data sets and metrics of these options are known, and their options."""
    several = {"samplers": (), "degradations": (), "baselines": "", "metrics": "", "data": None}
    found = several | {k: v for k, v in values.items() if v is not None}
    options = {k: v for k, v in found.items() if k.endswith("_opt")}
    names = found["samplers"] or [n for n in [found.get("sampler")] if n]
    samplers_of(names, options.get("sampler_opt", {}), found.get("sampler_preset"))
    families = found["degradations"] or [n for n in [found.get("degradation")] if n]
    families_of(families, options.get("degradation_opt", {}))
    chosen("baseline", found["baselines"], BASELINES)
    chosen("metric", found["metrics"], METRICS)
    if found["data"]:
        given = options["data_opt"]
        arguments(DATASETS.find(found["data"]), given, found["data"], fixed=("split",))


def check_shell(line: Line) -> None:
    """Those that start no Python of the project."""
    program, *words = line.words
    if program == "make":
        target = re.compile(rf"^{words[0]}:", re.M)
        assert target.search((ROOT / "Makefile").read_text()), words[0]
    elif program == "sbatch":
        check_job(line, words)
    elif program in ("pip", "npm"):
        pins = [*ROOT.glob("requirements*.txt"), ROOT / "datautils" / "emoji.py"]
        known = set(re.findall(r"[@\w./-]+", " ".join(path.read_text() for path in pins))) | {
            "lpips"
        }
        packages = [word for word in words[1:] if not word.startswith("-")]
        assert packages and {package.partition("==")[0] for package in packages} <= known
    elif program == ".ci/run":
        assert os.access(ROOT / program, os.X_OK)
    else:
        pytest.fail(f"{line.page}: nobody says how to check '{line.text}'")


def check_job(line: Line, words: list[str]) -> None:
    """The run that a job starts has a batch for that many GPUs."""
    text = (ROOT / words[-1]).read_text()
    given = re.search(r"CONFIG=(\S+)", line.text) or re.search(r"CONFIG:-(\S+)}", text)
    nodes = re.search(r"--nodes=(\d+)", line.text) or re.search(r"--nodes=(\d+)", text)
    assert given and nodes
    check_batch(TrainConfig.load(ROOT / given[1], {}), 8 * int(nodes[1]))


@pytest.mark.parametrize("line", printed(), ids=lambda line: f"{line.page}: {line.text[:60]}")
def test_a_printed_command_is_accepted(line: Line, place: None) -> None:
    if line.words[0] not in ("python", "torchrun"):
        check_shell(line)
        return
    try:
        check_python(*line.called())
    except (click.UsageError, ValueError) as error:
        message = error.format_message() if isinstance(error, click.UsageError) else str(error)
        pytest.fail(f"{line.page}: '{line.text}' is refused: {message}")
