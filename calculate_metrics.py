"""Reference statistics, restored test sets, samples, folders of images: measured.

`python calculate_metrics.py ref | prior | gen | calc ...`, or under `torchrun`.
"""

from copy import copy
from pathlib import Path

import click

from commands.options import CalcOptions, GenOptions, PriorOptions, RefOptions
from runtime.cli import SETTINGS, Group, takes


@click.group(cls=Group, context_settings=SETTINGS)
def main() -> None:
    """Measure how good images are."""


@main.command()
@takes(RefOptions)
def ref(options: RefOptions) -> None:
    """Compute the statistics of a data set's features that restorations are compared with."""
    from commands.ref import write_reference  # importing torch takes seconds: not for --help

    write_reference(options)


@main.command()
@takes(PriorOptions)
def prior(options: PriorOptions) -> None:
    """Fit a Gaussian mixture to a data set: a denoiser for zero-shot samplers without training."""
    from commands.prior import write_prior

    write_prior(options)


@main.command()
@takes(GenOptions)
def gen(options: GenOptions) -> None:
    """Restore a data set under each degradation and measure the result.

    Without a --degradation: draw images from a network alone, of chosen classes or any, and
    measure them.
    """
    from networks.cpu import tune

    tune()
    if options.degradations:
        from commands.gen import evaluate

        evaluate(options)
    else:
        from commands.draw import draw

        draw(options)


uncond = copy(gen)
uncond.help = uncond.short_help = "The old name of gen without --degradation."
main.add_command(uncond, "gen-uncond")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
def report(folder: Path) -> None:
    """Write report.html of what `gen` left in FOLDER once more."""
    from metrics.page import write_report

    print(f"written: {write_report(folder)}")


@main.command()
@takes(CalcOptions)
def calc(options: CalcOptions) -> None:
    """Measure a folder of images against another one, or against reference statistics."""
    from commands.calc import calculate

    calculate(options)


if __name__ == "__main__":
    main()
