"""What severity-adaptive sampling saves: `python -m benchmarks.adaptive --name adaptive`.

The InvFusion weights of checkpoints/ restore held-out emoji one by one, by `dpm` with fewer and
fewer steps, and by `adaptive` with smaller and smaller `spread`, from the same noise. Each image
counts its own evaluations.
"""

from collections.abc import Sequence
from typing import Any

import click
import matplotlib.pyplot as plt
import torch

from benchmarks.report import CONTEXT, ROOT, name_option, report, save_picture
from benchmarks.sampler_quality import means, quality_table, value_rows
from commands.methods import load_frozen
from datautils.emoji import Emoji
from networks import Denoiser
from samplers import DPM, Adaptive, Sampler

NET = ROOT / "checkpoints" / "emoji32-invfusion.safetensors"
FAMILIES = ("MotionBlur", "MissingPatches", "MatrixDegradation", "Box")
STEPS = (6, 8, 12, 16, 20)
SPREADS = (3.0, 30.0, 100.0, 300.0, 1000.0)
PANELS = {"psnr": "PSNR (dB)", "detail": "detail, as a share of the originals'"}


def samplers() -> dict[tuple[str, float], Sampler]:
    """By name, and number of steps or spread."""
    fewer = {("dpm", n): DPM(num_steps=n) for n in STEPS}
    return fewer | {("adaptive", c): Adaptive(num_steps=STEPS[-1], spread=c) for c in SPREADS}


def figure_of(curves: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Any:
    """PSNR and detail against evaluations, and the evaluations of each image by default."""
    figure, axes = plt.subplots(
        3, len(FAMILIES), figsize=(13, 8.4), sharey="row", sharex="row", squeeze=False
    )
    for column, family in zip(axes.T, FAMILIES, strict=True):
        column[0].set_title(family, fontsize=10, loc="left")
        for method, colour in (("dpm", "#8d99ae"), ("adaptive", "#d1495b")):
            own = [c for c in curves if (c["family"], c["sampler"]) == (family, method)]
            for axis, key in zip(column, PANELS, strict=False):
                x, y = [c["evaluations"] for c in own], [c[key] for c in own]
                axis.plot(x, y, "o-", color=colour, label=method, lw=1.6, ms=4)
        column[1].set_xlabel("evaluations, mean over the images")
        usual = [r for r in rows if (r["family"], r["setting"]) == (family, Adaptive().spread)]
        x, y = [r["evaluations"] for r in usual], [r["psnr"] for r in usual]
        column[2].plot(x, y, "o", color="#d1495b", ms=4, alpha=0.6)
        column[2].set_xlabel("evaluations of an image by default")
        for axis in column:
            axis.grid(alpha=0.25)
    for axis, label in zip(axes[:, 0], (*PANELS.values(), "PSNR of an image (dB)"), strict=True):
        axis.set_ylabel(label)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


@click.command(context_settings=CONTEXT)
@click.option("--images", type=click.IntRange(2), default=32, help="Held-out emoji.")
@name_option
def main(images: int, name: str | None) -> None:
    """Compare dpm and adaptive at equal numbers of evaluations."""
    net = load_frozen(NET, torch.device("cpu"), "fp32")
    assert isinstance(net, Denoiser)
    rows = value_rows(net, Emoji(32, "heldout"), FAMILIES, samplers(), images, 1, "setting")
    curves = means(rows, "setting")
    record = {"images": images, "curves": curves, "rows": rows}
    report(name, quality_table(curves, "setting"), record)
    if name is not None:
        save_picture(name, figure_of(curves, rows))


if __name__ == "__main__":
    main()
