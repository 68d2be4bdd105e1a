"""Averages of the weights made after training: `python -m training.posthoc RUN --sigma-rel 0.1`.

EDM2, section 3.2: a run leaves snapshots of power-function averages of a few widths; sums of them
come close to the average of any other width, at any time up to the last snapshot.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import click
import torch
from torch import Tensor

from networks import Denoiser, load_weights, read_summary, save_weights
from runtime.cli import SETTINGS, Command
from runtime.errors import one_sentence_errors
from runtime.files import check_output
from runtime.records import record
from training.schedule import coefficients, power_exponent


def reconstruct(
    folder: Path, sigma_rel: float, images: int | None = None
) -> tuple[Denoiser, dict[str, Any]]:
    """The denoiser averaged with relative width sigma_rel after `images` (default: the newest
    snapshot), and the summary of its training; from the snapshots in `folder/snapshots`.

    Raises ValueError without snapshots, if none is that early, and for widths out of range.
    """
    exponent = power_exponent(sigma_rel)
    snapshots = _snapshots(folder)
    counts = [snapshot.images for snapshot in snapshots.values()]
    time = max(counts) if images is None else images
    if not min(counts) <= time <= max(counts):
        span = f"{min(counts)} to {max(counts)}"
        raise ValueError(f"images={time} must lie between the snapshots, {span}")
    snapshots = {path: s for path, s in snapshots.items() if s.images <= time}
    times = [snapshot.images for snapshot in snapshots.values()]
    exponents = [power_exponent(snapshot.sigma_rel) for snapshot in snapshots.values()]
    sums: dict[str, Tensor] = {}
    factors = coefficients(times, exponents, time, exponent)
    for path, factor in zip(snapshots, factors, strict=True):
        denoiser = cast(Denoiser, load_weights(path))  # no prior has the summary of a snapshot
        for name, p in denoiser.named_parameters():
            part = factor * p.detach().double()
            sums[name] = sums[name] + part if name in sums else part
    with torch.no_grad():  # into the newest snapshot, whose buffers stay
        for name, p in denoiser.named_parameters():
            p.copy_(sums[name])
    return denoiser, read_summary(path) | {"sigma_rel": sigma_rel, "images": time}


@dataclass
class _Snapshot:
    """What the summary of a snapshot says of it."""

    images: int
    sigma_rel: float


def _snapshots(folder: Path) -> dict[Path, _Snapshot]:
    """Path and record of each snapshot, oldest first."""
    paths = sorted((folder / "snapshots").glob("*.safetensors"))
    if not paths:
        raise ValueError(
            f"{folder} holds no snapshots: train with --ema-sigma-rel 0.05,0.1 to keep some"
        )
    what = "{} is no snapshot of a run, remove it: its summary"
    return {
        path: record(_Snapshot, read_summary(path), what.format(path), others=True)
        for path in paths
    }


@click.command(cls=Command, context_settings=SETTINGS | {"show_default": True})
@click.argument("run", type=click.Path(file_okay=False, path_type=Path))
@click.option(
    "--sigma-rel", type=float, required=True,
    help="Width of the average relative to the length of training, such as 0.1.",
)  # fmt: skip
@click.option("--images", type=int, help="Images after which.  [default: the newest snapshot]")
@click.option("--dest", type=click.Path(path_type=Path), required=True, help="File to write.")
def main(run: Path, sigma_rel: float, images: int | None, dest: Path) -> None:
    """Make an average of any width from the snapshots of a run, as a weights file for --net."""
    with one_sentence_errors():
        check_output(dest, "--dest", ".safetensors")
        save_weights(dest, *reconstruct(run, sigma_rel, images))
    click.echo(f"weights: {dest}")


if __name__ == "__main__":
    main()
