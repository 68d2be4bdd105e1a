"""Quality against the number of evaluations, of a trained network on held-out photos.

    python -m benchmarks.sampler_quality --net WEIGHTS.safetensors --name sampler-quality

Samplers that tell the network y, and zero-shot ones that use it as a denoiser of images alone, at
growing numbers of steps and from the same noise.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from torch import Tensor

from benchmarks.report import CONTEXT, name_option, report, save_picture
from commands.methods import Restorer, check_conditioning, check_objective, load_frozen
from datautils import ImageDataset
from datautils.photos import Photos
from degradation import FAMILIES, GaussianNoise, get_family
from metrics.evaluate import restorations
from metrics.pixel import consistency, psnr, to_uint8
from networks import Denoiser
from networks.weights import read_summary
from runtime.errors import one_sentence_errors
from runtime.progress import progress
from runtime.tables import table
from samplers import Sampler, make_sampler
from zero_shot import ZeroShot

STEPS = (4, 8, 16, 32, 64)
STOCHASTIC = "heun, stochastic"
SAMPLERS = ("euler", "heun", STOCHASTIC, "dpm", "deis", "ddrm", "ddnm", "diffpir", "pigdm")
MMSE = "mmse"
SHARES = (0.25, 0.5, 1, 2, 4)
PANELS = {"psnr": "PSNR (dB)", "detail": "detail, as a share of the photos'"}
_INK, _GRID = "#1b2a41", "#d8dee9"


def sampler_of(name: str, steps: int) -> Sampler:
    """That takes about `steps` evaluations.

    The stochastic one raises the level of each step as EDM does on ImageNet (Karras et al., 2022,
    Table 5: a churn of 40 in 256 steps).
    """
    if name == MMSE:
        return make_sampler(MMSE)
    if name not in ("heun", STOCHASTIC):
        return make_sampler(name, {"num_steps": str(steps)})
    options = {"num_steps": str(steps // 2)}
    if name == STOCHASTIC:
        churn = {"churn": str(40 / 256 * steps / 2), "churn_noise": "1.003"}
        options |= churn | {"churn_min": "0.05", "churn_max": "50"}
    return make_sampler("heun", options)


def samplers_of(names: Sequence[str]) -> dict[tuple[str, int], Sampler]:
    """By name and number of steps, the MMSE estimate first; two steps of Heun's are no sample."""
    wanted = [(MMSE, 1)]
    for name in names:
        wanted += [(name, n) for n in (STEPS[1:] if name in ("heun", STOCHASTIC) else STEPS)]
    return {key: sampler_of(*key) for key in wanted}


def value_rows(
    net: Denoiser, dataset: ImageDataset, families: Sequence[str],
    samplers: Mapping[tuple[str, float], Sampler], images: int, batch: int, setting: str,
) -> list[dict[str, Any]]:  # fmt: skip
    """A row for each image, family and sampler, of which the key has the name and the setting."""
    stream = restorations(
        dataset, {name: get_family(name) for name in families},
        {f"{name}/{value}": Restorer(net, s, "fp32") for (name, value), s in samplers.items()},
        noise=GaussianNoise(0.0), indices=range(images), batch=batch, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    rows = []
    total = images * len(families) * len(samplers)
    with progress(total, "restorations", "images") as bar:
        for restored in stream:
            x, truth, problem = to_uint8(restored.x), restored.truth, restored.problem
            values = {
                "psnr": psnr(x, truth), "edges": edges(x), "true_edges": edges(truth),
                "consistency": consistency(problem.degradation, restored.x, problem.y),
            }  # fmt: skip
            name, value = restored.method.split("/")
            for i, image in enumerate(restored.group.indices):  # others are there for padding alone
                rows.append({
                    "family": restored.group.degradation, "image": image, "sampler": name,
                    setting: float(value), "evaluations": restored.cost["evaluations"],
                    **{key: found[i].item() for key, found in values.items()},
                })  # fmt: skip
            bar.update(len(restored.group.indices))
    return rows


def means(rows: Sequence[Mapping[str, Any]], setting: str) -> list[dict[str, Any]]:
    """Over the images; detail: what the samples have of the originals' edges."""
    groups: dict[tuple, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["family"], row["sampler"], row[setting]), []).append(row)
    found = []
    for (family, sampler, value), own in groups.items():
        evaluations, quality = ([row[key] for row in own] for key in ("evaluations", "psnr"))
        found.append({
            "family": family, "sampler": sampler, setting: value,
            "evaluations": statistics.fmean(evaluations),
            "least": min(evaluations), "most": max(evaluations),
            "psnr": statistics.fmean(quality),
            "psnr_standard_error": statistics.stdev(quality) / math.sqrt(len(own)),
            "consistency": statistics.fmean(row["consistency"] for row in own),
            "detail": sum(row["edges"] for row in own) / sum(row["true_edges"] for row in own),
        })  # fmt: skip
    return found


def edges(x: Tensor) -> Tensor:
    """Sum of absolute differences of neighbouring pixels: `[B, C, h, w]` to `[B]`."""
    x = x.double()
    across, down = (x.diff(dim=dim).abs().sum((1, 2, 3)) for dim in (-1, -2))
    return across + down


def quality_table(rows: Sequence[Mapping[str, Any]], setting: str) -> str:
    """All values, one family after the other."""
    headers = ["family", "sampler", setting, "NFE", "PSNR (dB)", "detail", "consistency"]
    cells = [
        [row["family"], row["sampler"], row[setting], row["evaluations"], f"{row['psnr']:.2f}",
         f"{row['detail']:.2f}", f"{row['consistency']:.1e}"]
        for row in rows
    ]  # fmt: skip
    return table(headers, cells)


def figure_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """PSNR and detail against evaluations, a column for each family."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    figure, axes = plt.subplots(
        len(PANELS), len(families), figsize=(4.8 * len(families) + 1.6, 3.2 * len(PANELS)),
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    for column, family in zip(axes.T, families, strict=True):
        own = [row for row in rows if row["family"] == family]
        column[0].set_title(family, fontsize=10, loc="left", color=_INK)
        for axis, key in zip(column, PANELS, strict=True):
            draw_curves(axis, own, key)
        column[1].axhline(1, color=_INK, lw=0.6)
        column[1].set(yscale="log", yticks=SHARES, yticklabels=SHARES)
        column[1].minorticks_off()
        column[-1].set_xlabel("evaluations of the denoiser")
    for axis, label in zip(axes[:, 0], PANELS.values(), strict=True):
        axis.set_ylabel(label)
    axes[0, -1].legend(
        title="dashed: zero-shot", title_fontsize=8, fontsize=8, frameon=False,
        loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    figure.tight_layout()
    return figure


def draw_curves(axis: Any, rows: Sequence[Mapping[str, Any]], key: str) -> None:
    """One value of one family, a curve for each sampler, a line for the MMSE estimate."""
    names = list(dict.fromkeys(row["sampler"] for row in rows if row["sampler"] != MMSE))
    for i, name in enumerate(names):
        points = [(row["evaluations"], row[key]) for row in rows if row["sampler"] == name]
        style = {"ls": "--" if zero_shot(name) else "-", "color": plt.get_cmap("tab10")(i)}
        axis.plot(*zip(*points, strict=True), marker="o", ms=3.5, lw=1.6, label=name, **style)
    (one,) = (row[key] for row in rows if row["sampler"] == MMSE)
    axis.axhline(one, color=_INK, lw=1, ls=":", label="mmse")
    axis.set(xscale="log", xticks=STEPS, xticklabels=STEPS)
    axis.minorticks_off()
    axis.grid(True, color=_GRID, lw=0.6)
    axis.spines[["top", "right"]].set_visible(False)


def zero_shot(name: str) -> bool:
    """Whether a sampler uses the network without telling it y."""
    return isinstance(sampler_of(name, 4), ZeroShot)


@click.command(context_settings=CONTEXT)
@click.option("--net", type=click.Path(path_type=Path), required=True, help="A weights file.")
@click.option(
    "--family",
    "families",
    type=click.Choice(list(FAMILIES)),
    multiple=True,
    default=["MotionBlur", "MissingPatches"],
)
@click.option("--images", type=click.IntRange(2), default=32, help="Held-out crops of each family.")
@click.option(
    "--sampler", "names", type=click.Choice(SAMPLERS), multiple=True, default=SAMPLERS,
    show_default=False, help="Only these; may be repeated.",
)  # fmt: skip
@name_option
def main(
    net: Path, families: Sequence[str], images: int, names: Sequence[str], name: str | None
) -> None:
    """Quality of a network's samples against the number of evaluations."""
    with one_sentence_errors():
        denoiser = load_frozen(net, torch.device("cpu"), "fp32")
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"{net} holds an analytic prior: benchmarks.posterior is for it")
        check_conditioning(net, denoiser, MMSE, sampler_of(MMSE, 1), "the photos")
        for name in names:
            check_objective(net, denoiser, name, make_sampler(name))
    photos = Photos(denoiser.config.image_shape[-1], "heldout", size=images)
    samplers = samplers_of(names)
    rows = means(
        value_rows(denoiser, photos, families, samplers, images, 32, "num_steps"), "num_steps"
    )
    record = {"images": images, "network": read_summary(net), "rows": rows}
    report(name, quality_table(rows, "num_steps"), record)
    if name is not None:
        save_picture(name, figure_of(rows))


if __name__ == "__main__":
    main()
