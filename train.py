"""Train a denoiser: `python train.py --config configs/demo.yaml`, or under `torchrun`.

Exit codes: 0 the run is over, 2 an error of the user, 75 SIGTERM or Ctrl-C came and a
checkpoint was written: `--resume` goes on.
"""

import os
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from runtime.cli import SETTINGS, Command, option, with_options
from runtime.errors import one_sentence_errors
from training.config import TrainConfig


@dataclass(frozen=True)
class RunOptions:
    """Options of `train.py` besides the settings of a run."""

    config: Path | None = option("YAML file of settings; the options below override it.", None)
    source: str | None = option(
        "Data set, such as FFHQ64, or module.Class of your own; or a folder or zip file of your "
        "own pictures, which are cropped and resized to the network, and a twentieth of them, at "
        "most 512, is held out. Without --config, settings are those of "
        "configs/photos64-invfusion.yaml for pictures, else of the data set's file in configs/.",
        None,
        name="--data",
    )
    name: Path | None = option(
        "The run is kept in experiments/NAME.", None, shown="the preset's name"
    )
    outdir: Path | None = option("Folder of the run, instead of experiments/NAME.", None)
    resume: Path | None = option("Continue the run in this folder with its own settings.", None)
    keep_going: bool = option(
        "Go on with the run if its folder holds one already, else start it: for jobs that are "
        "started again by the same command, such as torchrun --max-restarts does it.",
        False,
    )
    accept_changes: bool = option(
        "Go on with the run though its data, or the settings in its config.yaml, are no longer "
        "those that it was begun with.",
        False,
    )
    dry_run: bool = option("Print the resolved settings and stop.", False)
    fp32: bool = option("The same as --precision fp32.", False)


@click.command(cls=Command, context_settings=SETTINGS)
@with_options(RunOptions)
@with_options(TrainConfig, overriding=True)
def main(**values: Any) -> None:
    """Train a denoiser; progress is shown as a bar and kept in the run's folder.

    Exit code 75: SIGTERM or Ctrl-C came, a checkpoint is written, and --resume goes on.
    """
    options = RunOptions(**{f.name: values.pop(f.name) for f in fields(RunOptions)})
    with one_sentence_errors():
        overrides = {k: v for k, v in values.items() if v not in (None, {})}
        config, folder, resume = _resolved(options, overrides)
        if options.dry_run:
            from commands.train import check_names

            check_names(config)
            print(config.dump(), end="")
            return

    from networks.cpu import tune

    tune()
    from commands.train import run  # importing torch takes seconds: not for --help

    run(config, folder, resume=resume, command=sys.argv, accept_changes=options.accept_changes)


def _resolved(options: RunOptions, overrides: dict[str, Any]) -> tuple[TrainConfig, Path, bool]:
    """The settings, the run's folder, and whether it goes on. Raises ValueError."""
    if options.fp32 and overrides.setdefault("precision", "fp32") != "fp32":
        raise ValueError(f"--fp32 contradicts --precision {overrides['precision']}")
    begins = (options.config, options.name, options.outdir, options.source)
    if options.resume and any(begins):
        raise ValueError(
            "--resume goes on in the run's own folder: leave out --config, --name, --outdir and "
            "--data"
        )
    pictures = _pictures(options, overrides)
    restarted = os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0"
    if restarted and not (options.resume or options.keep_going):
        raise ValueError(
            "torchrun --max-restarts starts the same command again: add --keep-going, so that "
            "it goes on with the run"
        )
    data = overrides.pop("data", {})
    source = options.config
    if options.resume:
        source = options.resume / "config.yaml"
        if not source.exists():
            raise ValueError(
                f"{options.resume} holds no run: --resume takes the folder of one, such as "
                "experiments/NAME, which has a config.yaml"
            )
    elif source is None:
        source = _published(overrides, pictures)
    config = TrainConfig.load(source, overrides)
    folder = options.resume or options.outdir or Path("experiments", options.name or config.preset)
    before = folder / "config.yaml"
    resume = bool(options.resume or (options.keep_going and before.exists()))
    named = source or resume or "data_class" in overrides or "preset" in overrides
    if not (named or options.dry_run):  # the defaults are the paper's: days on several GPUs
        raise ValueError(
            "say what to train: --data FOLDER for own pictures, --config configs/demo.yaml for a "
            "try of a minute, or --data FFHQ64 for a network of the paper"
        )
    if pictures or data:
        from commands.train import with_data_options, with_pictures  # importing torch takes seconds

        config = with_pictures(config, pictures) if pictures else with_data_options(config, data)
    if resume and not options.accept_changes:
        config.check_resumes(TrainConfig.load(before, {}))
    return config, folder, resume


def _pictures(options: RunOptions, overrides: dict[str, Any]) -> Path | None:
    """The path of --data; a class goes to the overrides. Raises ValueError for a path with
    options of a data set."""
    if options.source is None:
        return None
    from datautils import is_path  # importing torch takes seconds

    if not is_path(options.source):
        overrides["data_class"] = options.source
        return None
    if "data" in overrides:
        raise ValueError(f"--data {options.source} is a path: --data-opt goes with a data set")
    return Path(options.source)


def _published(overrides: dict[str, Any], pictures: Path | None) -> Path | None:
    """The settings file that is used if none is named: for own pictures that of the photos, for a
    data set class the one of its name."""
    name = str(overrides.get("data_class", "")).rpartition(".")[2]
    name = "photos64-invfusion" if pictures else name
    path = Path(__file__).parent / "configs" / f"{name}.yaml"
    if not path.is_file():
        return None
    click.echo(f"settings of configs/{name}.yaml, overridden by the options", err=True)
    return path


if __name__ == "__main__":
    main()
