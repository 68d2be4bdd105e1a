"""What severity-adaptive sampling saves: `python -m benchmarks.adaptive --name adaptive`.

The InvFusion weights of checkpoints/ restore held-out emoji one by one, by `dpm` with fewer and
fewer steps, and by `adaptive` with smaller and smaller `spread`, from the same noise. Each image
counts its own evaluations.
"""

from collections.abc import Sequence
from typing import Any

import click
import torch

from benchmarks.pictures import draw_curves, family_axes
from benchmarks.report import benchmark, save_picture
from benchmarks.sampler_quality import means, quality_table, value_rows
from benchmarks.weights import FAMILIES, NETS
from commands.methods import load_frozen
from datautils.emoji import Emoji
from samplers import DPM, Adaptive, Sampler

STEPS = (6, 8, 12, 16, 20)
SPREADS = (3.0, 30.0, 100.0, 300.0, 1000.0)
PANELS = {
    "psnr": "PSNR (dB)", "detail": "detail, as a share of the originals'",
    "image": "PSNR of an image (dB)",
}  # fmt: skip


def figure_of(curves: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Any:
    """PSNR and detail against evaluations, and the evaluations of each image by default."""
    figure, axes = family_axes(FAMILIES, PANELS.values(), (13, 8.4))
    for column, family in zip(axes.T, FAMILIES, strict=True):
        own = [c for c in curves if c["family"] == family]
        for axis, key in zip(column[:2], PANELS, strict=False):
            draw_curves(axis, {
                name: [(c["evaluations"], c[key]) for c in own if c["sampler"] == name]
                for name in ("dpm", "adaptive")
            })  # fmt: skip
        usual = [r for r in rows if (r["family"], r["setting"]) == (family, Adaptive().spread)]
        x, y = [r["evaluations"] for r in usual], [r["psnr"] for r in usual]
        column[2].plot(x, y, "o", color="tab:orange", ms=4, alpha=0.6)
        column[2].grid(alpha=0.25)
        column[1].set_xlabel("evaluations, mean over the images")
        column[2].set_xlabel("evaluations of an image by default")
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.tight_layout()
    return figure


@benchmark()
@click.option("--images", type=click.IntRange(2), default=32, help="Held-out emoji.")
def main(images: int) -> Any:
    """Compare dpm and adaptive at equal numbers of evaluations."""
    net, emoji = load_frozen(NETS[0], torch.device("cpu"), "fp32"), Emoji(32, "heldout")
    samplers: dict[tuple[str, float], Sampler] = {("dpm", n): DPM(num_steps=n) for n in STEPS}
    samplers |= {("adaptive", c): Adaptive(num_steps=STEPS[-1], spread=c) for c in SPREADS}
    rows = value_rows(net, emoji, FAMILIES, samplers, images, 1, "setting")
    curves = means(rows, "setting")
    record = {"images": images, "curves": curves, "rows": rows}
    text = quality_table(curves, "setting")
    return text, record, lambda name: save_picture(name, figure_of(curves, rows))


if __name__ == "__main__":
    main()
