"""Measure restorations: `python calculate_metrics.py gen --net FILE ...`, or under `torchrun`."""

from pathlib import Path
from typing import Any

import click

from commands.cli import key_values, one_sentence_errors, options_of

SHOW = {"help_option_names": ["-h", "--help"], "show_default": True}


@click.group(context_settings=SHOW)
def main() -> None:
    """Measure how good restorations are."""


@main.command(context_settings=SHOW)
@click.option(
    "--net",
    required=True,
    type=click.Path(path_type=Path),
    help="Trained weights, a .safetensors file.",
)
@click.option(
    "--data",
    default="datautils.photos.Photos",
    help="Data set class; its held-out split is restored.",
)
@click.option(
    "--data-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the data set class; may be repeated.",
)
@click.option(
    "--degradation",
    "degradations",
    required=True,
    multiple=True,
    help="Family of operators, such as degradation.MotionBlur; may be repeated.",
)
@click.option(
    "--outdir",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for metrics.json, per_image.csv and grid.png.",
)
@click.option(
    "--images", type=click.IntRange(1), help="Images to restore.  [default: the whole split]"
)
@click.option(
    "--batch", type=click.IntRange(1), default=32, help="Images at once, on each process."
)
@click.option("--metrics", default="psnr,ssim,consistency", help="Comma-separated metrics.")
@click.option(
    "--sampler",
    "samplers",
    multiple=True,
    default=("heun", "mmse"),
    help="Solver; may be repeated.",
)
@click.option(
    "--sampler-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the solver, or NAME.KEY=VALUE where several are run; may be repeated.",
)
@click.option(
    "--baselines",
    default="pinv",
    help="Comma-separated restorations without a network: pinv, fill, smooth, gaussian.",
)
@click.option(
    "--noise-level",
    type=click.FloatRange(0),
    default=0.0,
    help="Standard deviation of the noise on y; images are in [-1, 1].",
)
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16", "fp16"]),
    default="fp32",
    help="Arithmetic of the network.",
)
@click.option(
    "--pictures", type=click.IntRange(0), default=3, help="Images of each degradation in grid.png."
)
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of operators, noise and samples."
)
def gen(**options: Any) -> None:
    """Restore a data set's held-out images under each degradation and measure the result."""
    with one_sentence_errors():
        options["data_opt"] = options_of(options["data_opt"])
        options["sampler_opt"] = key_values(options["sampler_opt"])

    from commands.gen import Generation  # importing torch takes seconds: not for --help

    Generation(**options).run()


if __name__ == "__main__":
    main()
