"""Weights to hand out: `python -m training.publish RUN/weights.safetensors DEST.safetensors`.

Half precision halves the file. Weights below 6e-5 lose digits, which a network does not notice.
"""

from pathlib import Path

import click
import torch

from networks import Denoiser, load_weights, read_summary, save_weights
from runtime.cli import SETTINGS, Command
from runtime.errors import one_sentence_errors
from runtime.files import check_output

FILE = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command, context_settings=SETTINGS)
@click.argument("source", type=FILE)
@click.argument("dest", type=FILE)
def main(source: Path, dest: Path) -> None:
    """Write a weights file in half precision, to hand out. Commands read it as any other."""
    with one_sentence_errors():
        check_output(dest, "DEST", ".safetensors")
        denoiser, summary = load_weights(source), read_summary(source)
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"{source} holds an analytic prior, which needs float64")
        largest = max(tensor.abs().max().item() for tensor in denoiser.state_dict().values())
        if largest > torch.finfo(torch.float16).max:
            raise ValueError(
                f"{source} holds a weight of {largest:.3g}, too large for half precision"
            )
        if init := summary.get("init"):  # without the folder, which is of this machine
            summary["init"] = Path(init).name
        save_weights(dest, denoiser.half(), summary)
    click.echo(f"weights: {dest}, {dest.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
