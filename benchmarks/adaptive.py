"""What severity-adaptive sampling saves: `python -m benchmarks.adaptive --name adaptive`.

The InvFusion weights of checkpoints/ restore held-out emoji one by one, by `dpm` with fewer and
fewer steps, and by `adaptive` with smaller and smaller `spread`, from the same noise. Each image
counts its own evaluations.
"""

import statistics
from collections.abc import Sequence
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from tqdm import tqdm

from benchmarks.report import CONTEXT, ROOT, name_option, report, save_picture
from benchmarks.sampler_quality import values_of
from commands.methods import Restorer, load_frozen
from datautils.emoji import Emoji
from degradation import GaussianNoise, get_family
from metrics.evaluate import restorations
from networks import Denoiser
from runtime.tables import table
from samplers import DPM, Adaptive

NET = ROOT / "checkpoints" / "emoji32-invfusion.safetensors"
FAMILIES = ("MotionBlur", "MissingPatches", "MatrixDegradation", "Box")
STEPS = (6, 8, 12, 16, 20)
SPREADS = (3.0, 30.0, 100.0, 300.0, 1000.0)
PANELS = {"psnr": "PSNR (dB)", "detail": "detail, as a share of the originals'"}


def image_rows(net: Denoiser, images: int) -> list[dict[str, Any]]:
    """A row for each family, image, method and setting."""
    methods = {("dpm", n): Restorer(net, DPM(num_steps=n), "fp32") for n in STEPS}
    methods |= {
        ("adaptive", c): Restorer(net, Adaptive(num_steps=STEPS[-1], spread=c), "fp32")
        for c in SPREADS
    }
    stream = restorations(
        Emoji(32, "heldout"), {name: get_family(name) for name in FAMILIES},
        {f"{method}/{value}": restorer for (method, value), restorer in methods.items()},
        noise=GaussianNoise(0.0), indices=range(images), batch=1, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    rows = []
    for restored in tqdm(stream, total=images * len(FAMILIES) * len(methods)):
        method, value = restored.method.split("/")
        values = {key: found[0] for key, found in values_of(restored).items()}
        rows.append({
            "family": restored.group.degradation, "image": restored.group.indices[0],
            "method": method, "setting": float(value),
            "evaluations": restored.cost["evaluations"], **values,
        })  # fmt: skip
    return rows


def means(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Over the images: evaluations, PSNR, and what the samples have of the originals' edges."""
    found = []
    for key in dict.fromkeys((r["family"], r["method"], r["setting"]) for r in rows):
        own = [r for r in rows if (r["family"], r["method"], r["setting"]) == key]
        found.append({
            "family": key[0], "method": key[1], "setting": key[2],
            "evaluations": statistics.fmean(r["evaluations"] for r in own),
            "least": min(r["evaluations"] for r in own),
            "most": max(r["evaluations"] for r in own),
            "psnr": statistics.fmean(r["psnr"] for r in own),
            "detail": sum(r["edges"] for r in own) / sum(r["true_edges"] for r in own),
        })  # fmt: skip
    return found


def figure_of(curves: Sequence[dict[str, Any]], rows: Sequence[dict[str, Any]]) -> Any:
    """PSNR and detail against evaluations, and the evaluations of each image by default."""
    figure, axes = plt.subplots(
        3, len(FAMILIES), figsize=(13, 8.4), sharey="row", sharex="row", squeeze=False
    )
    for column, family in zip(axes.T, FAMILIES, strict=True):
        column[0].set_title(family, fontsize=10, loc="left")
        for method, colour in (("dpm", "#8d99ae"), ("adaptive", "#d1495b")):
            own = [c for c in curves if (c["family"], c["method"]) == (family, method)]
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
    rows = image_rows(net, images)
    curves = means(rows)
    headers = ["family", "method", "steps or spread", "NFE", "least", "most", "PSNR", "detail"]
    cells = [
        [c["family"], c["method"], f"{c['setting']:g}", f"{c['evaluations']:.1f}",
         f"{c['least']:g}", f"{c['most']:g}", f"{c['psnr']:.2f}", f"{c['detail']:.2f}"]
        for c in curves
    ]  # fmt: skip
    report(name, table(headers, cells), {"images": images, "curves": curves, "rows": rows})
    if name is not None:
        save_picture(name, figure_of(curves, rows))


if __name__ == "__main__":
    main()
