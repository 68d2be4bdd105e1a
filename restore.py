"""Restore a photo: `python restore.py --image photo.png --degradation MotionBlur --out FOLDER`."""

import dataclasses
from pathlib import Path
from typing import Any

import click

from commands.allocation import keep_memory
from runtime.errors import one_sentence_errors
from runtime.options import key_values

SHIPPED = Path(__file__).parent / "checkpoints" / "photos64-invfusion.safetensors"
FILE = click.Path(path_type=Path)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option(
    "--net",
    type=FILE,
    help="Trained weights, a .safetensors file.  [default: the photos' in checkpoints/]",
)
@click.option(
    "--image",
    required=True,
    type=FILE,
    help="The photo: a clean one, which is degraded first, or with --measured a degraded one.",
)
@click.option(
    "--measured", is_flag=True, help="The photo is what a camera measured, by --mask or --kernel."
)
@click.option(
    "--degradation",
    help="Family that the operator is drawn from, such as MotionBlur; `python -m degradation` "
    "lists all.",
)
@click.option(
    "--degradation-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the family, such as strides=4; may be repeated.",
)
@click.option(
    "--mask",
    type=FILE,
    help="Picture of the photo's size: white pixels are visible, the others are ignored.",
)
@click.option(
    "--kernel",
    type=FILE,
    help="Blur: a picture, scaled to sum 1, or a .npy array; its centre is at (h // 2, w // 2).",
)
@click.option(
    "--stride",
    type=click.IntRange(1),
    help="With --kernel: the image has this many times the width and height of its measurement.  "
    "[default: 1]",
)
@click.option(
    "--noise-level",
    type=click.FloatRange(0),
    help="Standard deviation of the noise on y; images are in [-1, 1].  [default: 0]",
)
@click.option(
    "--poisson-peak",
    type=click.FloatRange(0, min_open=True),
    help="Photon noise instead: expected photons of a white measurement, masks and blur only.",
)
@click.option("--samples", type=click.IntRange(0), default=4, help="Restorations to draw.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="New folder for the pictures, sheet.png and restore.json.",
)
@click.option(
    "--fit",
    type=click.Choice(["tile", "resize"]),
    default="tile",
    help="A photo larger than the network's images: in overlapping tiles, or made smaller.",
)
@click.option("--sampler", help="Solver, one of docs/solvers.md.  [default: dpm with num_steps=8]")
@click.option(
    "--sampler-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the solver; may be repeated.",
)
@click.option("--class", "class_label", type=click.IntRange(0), help="Class of what is shown.")
@click.option("--cfg", type=float, help="Scale of the guidance towards --class; 1 is none.")
@click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Arithmetic of the network; auto: half precision where the device has it, else fp32.",
)
@click.option(
    "--recompute",
    is_flag=True,
    help="For solvers that differentiate the network: less memory, each of their steps slower.",
)
@click.option("--batch", type=click.IntRange(1), default=32, help="Tiles restored at once.")
@click.option(
    "--seed", type=click.IntRange(0), default=0, help="Seed of operator, noise and samples."
)
def main(degradation_opt: tuple[str, ...], sampler_opt: tuple[str, ...], **options: Any) -> None:
    """Restore a photo: samples, the MMSE estimate, and how much the samples differ.

    Without --measured the photo is degraded by --degradation, --mask or --kernel, and compared
    with what is restored.
    """
    with one_sentence_errors():
        sampler_options = key_values(sampler_opt)
        if options["sampler"] is None:
            options["sampler"] = "dpm"
            sampler_options = {"num_steps": "8"} | sampler_options
        options["net"] = options["net"] or _shipped()
        options["degradation_opt"] = key_values(degradation_opt)

    keep_memory()
    from commands.photo import Request  # importing torch takes seconds: not for --help
    from commands.restore import Restoration

    asked = {field.name: options.pop(field.name) for field in dataclasses.fields(Request)}
    Restoration(Request(**asked), sampler_opt=sampler_options, **options).run()


def _shipped() -> Path:
    """The weights that come with the project. Raises ValueError if they are missing."""
    if not SHIPPED.is_file():
        raise ValueError(
            f"{SHIPPED} is missing: get it back by `git checkout -- checkpoints`, or name other "
            "weights by --net"
        )
    return SHIPPED


if __name__ == "__main__":
    main()
