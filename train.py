"""Train a denoiser: `python train.py --config configs/demo.yaml`, or under `torchrun`.

Exit codes: 0 the run is over, 2 a mistake told in one sentence, 75 SIGTERM or Ctrl-C came and a
checkpoint was written: `--resume` goes on.
"""

import os
import sys
from pathlib import Path
from typing import Any

import click

from commands.allocation import keep_memory
from commands.cli import COUNT, Count
from runtime.errors import one_sentence_errors
from runtime.options import key_values
from training.config import PRECISIONS, TrainConfig

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    help="YAML file of settings; the options below override it.",
)
@click.option("--name", help="The run is kept in experiments/NAME.  [default: the preset's name]")
@click.option("--outdir", type=FOLDER, help="Folder of the run, instead of experiments/NAME.")
@click.option(
    "--resume", type=FOLDER, help="Continue the run in this folder with its own settings."
)
@click.option(
    "--keep-going",
    is_flag=True,
    help="Go on with the run where its folder holds one already, else start it: for jobs that are "
    "started again by the same command, such as torchrun --max-restarts does it.",
)
@click.option("--dry-run", is_flag=True, help="Print the resolved settings and stop.")
@click.option("--preset", help="Network preset, such as FFHQ64.")
@click.option("--init", metavar="FILE", help="Start from these weights: fine-tuning.")
@click.option("--data-class", help="Data set class, such as datautils.photos.Photos.")
@click.option(
    "--data-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the data set class; may be repeated.",
)
@click.option(
    "--skip-broken",
    is_flag=True,
    default=None,
    help="Replace broken images by the next sound one and count them, instead of ending the run.",
)
@click.option(
    "--set",
    "settings",
    multiple=True,
    metavar="KEY=VALUE",
    help="Any other setting of the configuration, such as cooldown=0.2; may be repeated.",
)
@click.option(
    "--degradation",
    help="Family to train on, such as degradation.RandomDegradation; none: unconditional.",
)
@click.option(
    "--degradation-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the family, such as members=MotionBlur,Box; may be repeated.",
)
@click.option(
    "--blind-train",
    "blind",
    is_flag=True,
    default=None,
    help="Leave the operator out of the network (Palette).",
)
@click.option(
    "--noise-level", type=float, help="Standard deviation of the noise on y; images are in [-1, 1]."
)
@click.option(
    "--poisson-peak",
    type=float,
    help="Photon noise instead: expected photons of a white measurement, masks and blur only.",
)
@click.option(
    "--mse-train",
    is_flag=True,
    default=None,
    help="Train the one-step MMSE estimate alone (input 100·ε, plain mean-squared error).",
)
@click.option(
    "--augment",
    type=float,
    help="Probability of each non-leaking augmentation, from 0 to 1; the paper has 0.12 on FFHQ.",
)
@click.option(
    "--ref-path",
    type=click.Path(path_type=str),
    help="Reference statistics of the held-out images (calculate_metrics.py ref): Fréchet "
    "distances of restorations are logged while training.",
)
@click.option(
    "--detector",
    "detectors",
    multiple=True,
    metavar="NAME=FILE",
    help="Weights of a detector of --ref-path, such as inception=FILE; may be repeated.",
)
@click.option("-b", "--batch", type=COUNT, help="Images in a step, over all processes.")
@click.option("--batch-gpu", type=COUNT, help="Images that a process handles at once.")
@click.option("--duration", type=COUNT, help="Images to train on.")
@click.option("--max-minutes", type=float, help="Wall-clock budget in minutes.")
@click.option("--seed", type=int, help="Seed of everything random.")
@click.option("--lr", type=float, help="Learning rate after the ramp.")
@click.option("--ramp", type=Count(0), help="Images over which the learning rate rises from zero.")
@click.option(
    "--decay",
    type=COUNT,
    help="Steps after which the learning rate falls as an inverse square root.",
)
@click.option("--P_mean", "P_mean", type=float, help="Mean of ln σ.")
@click.option("--P_std", "P_std", type=float, help="Standard deviation of ln σ.")
@click.option(
    "--mmse-share", type=float, help="Share of the samples trained at σ = 100, from 0 to 1."
)
@click.option(
    "--label-drop",
    "label_dropout",
    type=float,
    help="Share of the samples whose class is hidden, from 0 to 1.",
)
@click.option(
    "--precision",
    type=click.Choice(PRECISIONS),
    help="Arithmetic of the network; auto: half precision where the device has it, else fp32.  "
    "[default: auto]",
)
@click.option("--fp32", is_flag=True, help="The same as --precision fp32.")
@click.option(
    "--clip", type=float, help="Largest norm of the gradients; longer ones are scaled down."
)
@click.option(
    "--compile/--no-compile",
    default=None,
    help="Compile the network: a minute or more for each structure of the operators, then faster.",
)
@click.option(
    "--fsdp",
    is_flag=True,
    default=None,
    help="Share the model out to the processes of torchrun, for networks beyond one GPU.",
)
@click.option("--tensorboard", is_flag=True, default=None, help="Log to TensorBoard too.")
@click.option("--wandb", metavar="PROJECT", help="Log to Weights & Biases too.")
@click.option("--workers", type=int, help="Processes that load data, for each training process.")
def main(
    config_file: Path | None,
    name: str | None,
    outdir: Path | None,
    resume: Path | None,
    keep_going: bool,
    dry_run: bool,
    data_opt: tuple[str, ...],
    settings: tuple[str, ...],
    degradation_opt: tuple[str, ...],
    detectors: tuple[str, ...],
    fp32: bool,
    **options: Any,
) -> None:
    """Train a denoiser; progress is shown as a bar and kept in the run's folder.

    Exit code 75: SIGTERM or Ctrl-C came, a checkpoint is written, and --resume goes on.
    """
    with one_sentence_errors():
        overrides: dict[str, Any] = dict(key_values(settings))
        overrides |= {key: value for key, value in options.items() if value is not None}
        if degradation_opt:
            overrides["degradation_opt"] = key_values(degradation_opt)
        if detectors:
            overrides["detectors"] = key_values(detectors)
        if fp32 and overrides.setdefault("precision", "fp32") != "fp32":
            raise ValueError(f"--fp32 contradicts --precision {overrides['precision']}")
        if resume and (config_file or name or outdir):
            raise ValueError(
                "--resume goes on in the run's own folder: leave out --config, --name and --outdir"
            )
        if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0" and not (resume or keep_going):
            raise ValueError(
                "torchrun --max-restarts starts the same command again: add --keep-going, so that "
                "it goes on with the run"
            )
        source = resume / "config.yaml" if resume else config_file or _published(overrides)
        config = TrainConfig.load(source, overrides)
        if data_opt:
            from commands.train import with_data_options  # importing torch takes seconds

            config = with_data_options(config, key_values(data_opt))
        folder = resume or outdir or Path("experiments") / (name or config.preset)
        before = folder / "config.yaml"
        if resume is None and keep_going and before.exists():
            resume = folder
        if resume:
            config.check_resumes(TrainConfig.load(before, {}))
        if dry_run:
            from commands.train import check_names

            check_names(config)
            click.echo(config.dump(), nl=False)
            return

    keep_memory()
    from commands.train import run  # importing torch takes seconds: not for --help

    run(config, folder, resume=resume is not None, command=sys.argv)


def _published(overrides: dict[str, Any]) -> Path | None:
    """The settings kept for a data set class where nothing else says which: those of the paper."""
    if "data_class" not in overrides:
        return None
    name = str(overrides["data_class"]).rpartition(".")[2]
    path = Path(__file__).parent / "configs" / f"{name}.yaml"
    if not path.is_file():
        return None
    click.echo(f"settings of configs/{name}.yaml, overridden by the options", err=True)
    return path


if __name__ == "__main__":
    main()
