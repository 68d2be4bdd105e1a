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
import torch
from torch import Tensor

from benchmarks.pictures import draw_curves, family_axes
from benchmarks.report import benchmark, save_picture
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
HEUN = ("heun", STOCHASTIC)  # two evaluations a step
SAMPLERS = ("euler", *HEUN, "dpm", "deis", "ddrm", "ddnm", "diffpir", "pigdm")
MMSE = "mmse"
SHARES = (0.25, 0.5, 1, 2, 4)
PANELS = {"psnr": "PSNR (dB)", "detail": "detail, as a share of the photos'"}


def sampler_of(name: str, steps: int) -> Sampler:
    """That takes about `steps` evaluations.

    The stochastic one raises the level of each step as EDM does on ImageNet (Karras et al., 2022,
    Table 5: a churn of 40 in 256 steps).
    """
    if name == MMSE:
        return make_sampler(MMSE)
    options = {"num_steps": steps // 2 if name in HEUN else steps}
    if name == STOCHASTIC:
        options |= {"churn": 40 / 256 * steps / 2, "churn_noise": 1.003}
        options |= {"churn_min": 0.05, "churn_max": 50.0}
    return make_sampler("heun" if name in HEUN else name, options)


def samplers_of(names: Sequence[str]) -> dict[tuple[str, int], Sampler]:
    """By name and number of steps, the MMSE estimate first; two steps of Heun's are no sample."""
    wanted = [(name, n) for name in names for n in (STEPS[1:] if name in HEUN else STEPS)]
    return {key: sampler_of(*key) for key in [(MMSE, 1), *wanted]}


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
    with progress(images * len(families) * len(samplers), "restorations", "images") as bar:
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
        columns = {key: [row[key] for row in own] for key in own[0]}
        found.append({
            "family": family, "sampler": sampler, setting: value,
            "evaluations": statistics.fmean(columns["evaluations"]),
            "least": min(columns["evaluations"]), "most": max(columns["evaluations"]),
            "psnr": statistics.fmean(columns["psnr"]),
            "psnr_standard_error": statistics.stdev(columns["psnr"]) / math.sqrt(len(own)),
            "consistency": statistics.fmean(columns["consistency"]),
            "detail": sum(columns["edges"]) / sum(columns["true_edges"]),
        })  # fmt: skip
    return found


def edges(x: Tensor) -> Tensor:
    """Sum of absolute differences of neighbouring pixels: `[B, C, h, w]` to `[B]`."""
    return sum(x.double().diff(dim=dim).abs().sum((1, 2, 3)) for dim in (-1, -2))


def quality_table(rows: Sequence[Mapping[str, Any]], setting: str) -> str:
    """All values, one family after the other."""
    keys = ["family", "sampler", setting, "evaluations", "psnr", "detail", "consistency"]
    headers = ["family", "sampler", setting, "NFE", "PSNR (dB)", "detail", "consistency"]
    return table(headers, [[row[key] for key in keys] for row in rows])


def figure_of(rows: Sequence[Mapping[str, Any]]) -> Any:
    """PSNR and detail against evaluations, a column for each family; a level for the MMSE
    estimate."""
    families, samplers = (dict.fromkeys(row[key] for row in rows) for key in ("family", "sampler"))
    dashed = [name for name in samplers if zero_shot(name)]
    figure, axes = family_axes(families, PANELS.values(), (4.8 * len(families) + 1.6, 6.4))
    for column, family in zip(axes.T, families, strict=True):
        own = [row for row in rows if row["family"] == family]
        for axis, key in zip(column, PANELS, strict=True):
            curves = {name: [] for name in samplers}
            for row in own:
                curves[row["sampler"]].append((row["evaluations"], row[key]))
            ((_, mmse),) = curves.pop(MMSE)
            draw_curves(axis, curves, dashed)
            axis.axhline(mmse, color="black", lw=1, ls=":", label="mmse")
            axis.set(xscale="log", xticks=STEPS, xticklabels=STEPS)
            axis.minorticks_off()
        column[1].axhline(1, color="black", lw=0.6)
        column[1].set(yscale="log", yticks=SHARES, yticklabels=SHARES)
        column[1].minorticks_off()
        column[1].set_xlabel("evaluations of the denoiser")
    axes[0, -1].legend(
        title="dashed: zero-shot", title_fontsize=8, fontsize=8, frameon=False,
        loc="upper left", bbox_to_anchor=(1, 1),
    )  # fmt: skip
    figure.tight_layout()
    return figure


def zero_shot(name: str) -> bool:
    """Whether a sampler uses the network without telling it y."""
    return isinstance(sampler_of(name, 4), ZeroShot)


@benchmark()
@click.option("--net", type=click.Path(path_type=Path), required=True, help="A weights file.")
@click.option(
    "--family", "families", type=click.Choice(list(FAMILIES)), multiple=True,
    default=["MotionBlur", "MissingPatches"],
)  # fmt: skip
@click.option("--images", type=click.IntRange(2), default=32, help="Held-out crops of each family.")
@click.option(
    "--sampler", "names", type=click.Choice(SAMPLERS), multiple=True, default=SAMPLERS,
    show_default=False, help="Only these; may be repeated.",
)  # fmt: skip
def main(net: Path, families: Sequence[str], images: int, names: Sequence[str]) -> Any:
    """Quality of a network's samples against the number of evaluations."""
    samplers, setting = samplers_of(names), "num_steps"
    with one_sentence_errors():
        denoiser = load_frozen(net, torch.device("cpu"), "fp32")
        if not isinstance(denoiser, Denoiser):
            raise ValueError(f"{net} holds an analytic prior: benchmarks.posterior is for it")
        check_conditioning(net, denoiser, MMSE, samplers[MMSE, 1], "the photos")
        for name in names:
            check_objective(net, denoiser, name, sampler_of(name, 4))
    photos = Photos(denoiser.config.image_shape[-1], "heldout", size=images)
    rows = means(value_rows(denoiser, photos, families, samplers, images, 32, setting), setting)
    record = {"images": images, "network": read_summary(net), "rows": rows}
    text = quality_table(rows, setting)
    return text, record, lambda name: save_picture(name, figure_of(rows))


if __name__ == "__main__":
    main()
