"""Reference statistics, restored test sets, samples, folders of images: measured.

`python calculate_metrics.py ref | prior | gen | gen-uncond | calc ...`, or under `torchrun`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from commands.allocation import keep_memory
from commands.cli import COUNT
from runtime.errors import one_sentence_errors
from runtime.options import key_values

SHOW = {"help_option_names": ["-h", "--help"], "show_default": True}
FILE = click.Path(path_type=Path)
FOLDER = click.Path(file_okay=False, path_type=Path)
Decorator = Callable[[Callable], Callable]

# ---- options that several commands share


def together(*options: Decorator) -> Decorator:
    """One decorator of several, listed in their order."""

    def add(command: Callable) -> Callable:
        for option in reversed(options):
            command = option(command)
        return command

    return add


def data_options(split: str) -> Decorator:
    """The images: a class, its options, its split."""
    return together(
        click.option(
            "--data",
            default="datautils.photos.Photos",
            help="Data set class, such as datautils.ffhq.FFHQ64 or datautils.imagedir.ImageDir.",
        ),
        click.option(
            "--data-opt",
            multiple=True,
            metavar="KEY=VALUE",
            help="Option of the data set class, such as path=FILE; may be repeated.",
        ),
        click.option(
            "--split",
            type=click.Choice(["train", "heldout", "all"]),
            default=split,
            help="Images of the data set to take.",
        ),
    )


def detector_option(default: tuple[str, ...] = ()) -> Decorator:
    """Where features come from."""
    return click.option(
        "--detector",
        "detectors",
        multiple=True,
        default=default,
        metavar="NAME[=FILE]",
        help="Detector and its weights file: inception=FILE (fid), or for fd the TorchScript file "
        "of any; may be repeated. By default inception is downloaded, and fd takes "
        "efficientnet-lite0, which a package brings.",
    )


def reference_options(required: bool = False) -> Decorator:
    """What features are compared with."""
    return together(
        click.option(
            "--ref",
            type=FILE,
            required=required,
            help="Reference statistics for fid and fd: a .safetensors file of `ref`, or an "
            ".npz file of EDM.",
        ),
        detector_option(),
        any_count,
    )


any_count = click.option(
    "--any-count",
    is_flag=True,
    help="Accept a reference of another number of images; Fréchet distances depend on it.",
)
guidance = click.option(
    "--cfg",
    type=float,
    help="Classifier-free guidance: null + CFG·(class − null); the paper has 2 on ImageNet64. "
    "[default: none]",
)
precision = click.option(
    "--precision",
    type=click.Choice(["auto", "fp32", "bf16", "fp16"]),
    default="auto",
    help="Arithmetic of the network; auto: half precision where the device has it, else fp32.",
)
compiling = click.option(
    "--compile/--no-compile",
    "compiled",
    default=False,
    help="Compile the network: a minute or so for each structure of an operator, then faster.",
)
recomputing = click.option(
    "--recompute",
    is_flag=True,
    help="For samplers that differentiate the network: less memory, each of their steps slower.",
)
network = click.option(
    "--net", required=True, type=FILE, help="Trained weights, a .safetensors file."
)
batch = click.option(
    "--batch", type=click.IntRange(1), default=32, help="Images at once, on each process."
)
workers = click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    help="Processes that load images, for each process.",
)
save_images = click.option(
    "--save-images", is_flag=True, help="Also write every image, to OUTDIR/images."
)
seed = click.option("--seed", type=click.IntRange(0), default=0, help="Seed of everything random.")


@click.group(context_settings=SHOW)
def main() -> None:
    """Measure how good images are."""


# ---- ref


@main.command(context_settings=SHOW)
@data_options("heldout")
@click.option("--dest", required=True, type=FILE, help="File to write, .safetensors.")
@click.option("--images", type=COUNT, help="Images to take, such as 10000 or 8Ki.  [default: all]")
@detector_option(("inception",))
@batch
@workers
def ref(**options: Any) -> None:
    """Compute the statistics of a data set's features that restorations are compared with."""
    with one_sentence_errors():
        options["data_opt"] = key_values(options["data_opt"])

    from commands.ref import ReferenceStatistics  # importing torch takes seconds: not for --help

    ReferenceStatistics(**options).run()


# ---- prior


@main.command(context_settings=SHOW)
@data_options("train")
@click.option("--dest", required=True, type=FILE, help="File to write, .safetensors.")
@click.option(
    "--components", type=click.IntRange(1), default=1, help="Gaussians, more than one by EM."
)
@click.option("--images", type=COUNT, default=16_000, help="Images to take, at most.")
@workers
@seed
def prior(**options: Any) -> None:
    """Fit a Gaussian mixture to a data set: a denoiser for zero-shot samplers without training."""
    with one_sentence_errors():
        options["data_opt"] = key_values(options["data_opt"])

    from commands.prior import PriorFit

    PriorFit(**options).run()


# ---- gen


@main.command(context_settings=SHOW)
@click.option(
    "--net",
    "nets",
    required=True,
    multiple=True,
    type=FILE,
    help="Trained weights, a .safetensors file; may be repeated. Zero-shot samplers run on the "
    "unconditional ones, the others on the rest.",
)
@data_options("heldout")
@click.option(
    "--degradation",
    "degradations",
    required=True,
    multiple=True,
    help="Family of operators, such as MotionBlur, or module.Class of your own; may be repeated. "
    "`python -m degradation` lists all.",
)
@click.option(
    "--degradation-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the family, such as strides=2,4, or NAME.KEY=VALUE where several are measured; "
    "may be repeated.",
)
@click.option(
    "--outdir",
    required=True,
    type=FOLDER,
    help="Folder for metrics.json, per_image.csv and grid.png (grid-2.png ... of many families).",
)
@click.option(
    "--images",
    type=COUNT,
    help="Images to restore, such as 1000 or 1Ki.  [default: the whole split]",
)
@batch
@click.option(
    "--metrics",
    default="psnr,ssim,consistency",
    help="Comma-separated: psnr (dB), ssim, consistency; fid, fd; cfid, cfd, the same "
    "of restorations projected onto y.",
)
@reference_options()
@click.option(
    "--sampler",
    "samplers",
    multiple=True,
    default=("heun", "mmse"),
    help="Solver, one of docs/solvers.md; may be repeated.",
)
@click.option(
    "--sampler-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the solver, or NAME.KEY=VALUE where several are run; may be repeated.",
)
@guidance
@click.option(
    "--baselines",
    default="pinv",
    help="Comma-separated restorations without a network: pinv, fill, gaussian.",
)
@click.option(
    "--noise-level",
    type=click.FloatRange(0),
    default=0.0,
    help="Standard deviation of the noise on y; images are in [-1, 1].",
)
@click.option(
    "--poisson-peak",
    type=click.FloatRange(0, min_open=True),
    help="Photon noise instead: expected photons of a white measurement, masks and blur only.  "
    "[default: none]",
)
@precision
@compiling
@recomputing
@click.option(
    "--pictures", type=click.IntRange(0), default=3, help="Images of each degradation in grid.png."
)
@save_images
@workers
@seed
def gen(**options: Any) -> None:
    """Restore a data set under each degradation and measure the result."""
    with one_sentence_errors():
        options["data_opt"] = key_values(options["data_opt"])
        options["degradation_opt"] = key_values(options["degradation_opt"])
        options["sampler_opt"] = key_values(options["sampler_opt"])

    keep_memory()
    from commands.gen import Generation

    Generation(**options).run()


# ---- gen-uncond


@main.command("gen-uncond", context_settings=SHOW)
@network
@click.option("--outdir", required=True, type=FOLDER, help="Folder for metrics.json and grid.png.")
@click.option("--images", type=COUNT, default=50_000, help="Images to draw, such as 50000 or 64Ki.")
@batch
@click.option(
    "--class",
    "classes",
    type=click.IntRange(0),
    multiple=True,
    help="Class to draw; may be repeated, they take turns.  [default: any, uniformly]",
)
@click.option("--metrics", default="", show_default="none", help="Comma-separated: fid, fd.")
@reference_options()
@click.option("--sampler", default="heun", help="Solver, one of docs/solvers.md.")
@click.option(
    "--sampler-opt",
    multiple=True,
    metavar="KEY=VALUE",
    help="Option of the solver; may be repeated.",
)
@guidance
@precision
@compiling
@recomputing
@click.option("--pictures", type=click.IntRange(0), default=64, help="Images in grid.png.")
@save_images
@seed
def gen_uncond(**options: Any) -> None:
    """Draw images without any measurement, of chosen classes or any, and measure them."""
    with one_sentence_errors():
        options["sampler_opt"] = key_values(options["sampler_opt"])

    keep_memory()
    from commands.gen_uncond import Unconditional

    Unconditional(**options).run()


# ---- calc


@main.command(context_settings=SHOW)
@click.option("--images", required=True, type=FILE, help="Folder or zip file of images to measure.")
@click.option(
    "--ref",
    required=True,
    type=FILE,
    help="Folder or zip file of images, or reference statistics (.safetensors, .npz).",
)
@click.option(
    "--metrics",
    default="fid",
    help="Comma-separated: fid, fd; with two folders of images of the same names also psnr "
    "(dB) and ssim.",
)
@detector_option()
@any_count
@click.option(
    "--size", type=click.IntRange(1), help="Crop and resize all images to this side, in pixels."
)
@click.option("--outdir", type=FOLDER, help="Folder for metrics.json.  [default: only print]")
@batch
@workers
def calc(**options: Any) -> None:
    """Measure a folder of images against another one, or against reference statistics."""
    from commands.calc import Calculation

    Calculation(**options).run()


if __name__ == "__main__":
    main()
