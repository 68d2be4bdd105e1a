"""Quality against the number of evaluations, of a trained network on held-out photos.

    python -m benchmarks.solver_quality --net WEIGHTS.safetensors \\
        --name solver-quality

Samplers that tell the network y, and zero-shot ones that use it as a denoiser of images alone, at
growing numbers of steps and from the same noise. Prints a table, writes results/NAME.json and
docs/NAME.png.
"""

import io
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import matplotlib.pyplot as plt
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from benchmarks.report import name_option
from commands.cli import check_once
from commands.loading import load_frozen
from commands.methods import Restorer, check_conditioning, check_operators, check_samplers
from datautils.photos import Photos
from degradation import Family, GaussianNoise, get_family
from metrics.evaluate import Restored, restorations
from metrics.pixel import consistency, psnr, to_uint8
from networks import Denoiser
from networks.weights import read_summary
from runtime.environment import environment
from runtime.errors import one_sentence_errors
from runtime.files import plain, replacing
from runtime.tables import table
from samplers import Solver, make_solver
from zero_shot import ZeroShot

ROOT = Path(__file__).resolve().parents[1]
STEPS = (4, 8, 16, 32, 64)
STOCHASTIC = "heun, stochastic"
SAMPLERS = ("euler", "heun", STOCHASTIC, "dpm", "deis", "ddrm", "ddnm", "diffpir", "pigdm")
MMSE = "mmse"
SHARES = (0.25, 0.5, 1, 2, 4)
_INK, _GRID = "#1b2a41", "#d8dee9"


def steps_of(name: str) -> tuple[int, ...]:
    """Numbers of evaluations that are tried; two steps of Heun's method are none."""
    return STEPS[1:] if name in ("heun", STOCHASTIC) else STEPS


def solver_of(name: str, steps: int) -> Solver:
    """That takes about `steps` evaluations.

    The stochastic one raises the level of each step as EDM does on ImageNet (Karras et al., 2022,
    Table 5: a churn of 40 in 256 steps).
    """
    if name == MMSE:
        return make_solver(MMSE)
    if name not in ("heun", STOCHASTIC):
        return make_solver(name, {"num_steps": str(steps)})
    options = {"num_steps": str(steps // 2)}
    if name == STOCHASTIC:
        churn = {"churn": str(40 / 256 * steps / 2), "churn_noise": "1.003"}
        options |= churn | {"churn_min": "0.05", "churn_max": "50"}
    return make_solver("heun", options)


class Tally:
    """Sums over the images that one method restored."""

    def __init__(self) -> None:
        self.psnr: list[float] = []
        self.consistency: list[float] = []
        self.edges = self.true_edges = 0.0

    def add(self, restored: Restored) -> None:
        """A batch; its last images may be there for padding alone."""
        count = len(restored.group.indices)
        x, truth, problem = to_uint8(restored.x), restored.truth, restored.problem
        self.psnr += psnr(x, truth)[:count].tolist()
        misfit = consistency(problem.degradation, restored.x, problem.y)
        self.consistency += misfit[:count].tolist()
        self.edges += edges(x[:count])
        self.true_edges += edges(truth[:count])

    def values(self) -> dict[str, float]:
        """Means over the images; detail: what the samples have of the photos' edges."""
        count = len(self.psnr)
        error = torch.tensor(self.psnr).std() / math.sqrt(count)
        return {
            "psnr": sum(self.psnr) / count, "psnr_standard_error": float(error),
            "consistency": sum(self.consistency) / count, "detail": self.edges / self.true_edges,
        }  # fmt: skip


def edges(x: Tensor) -> float:
    """Sum of absolute differences of neighbouring pixels."""
    x = x.double()
    return float(x.diff(dim=-1).abs().sum() + x.diff(dim=-2).abs().sum())


def rows(
    net: Denoiser, families: Mapping[str, Family], names: Sequence[str], images: int
) -> list[dict[str, Any]]:
    """A row for each family, sampler and number of steps."""
    photos = Photos(net.config.image_shape[-1], "heldout", size=images)
    wanted = [(MMSE, 1), *((name, steps) for name in names for steps in steps_of(name))]
    methods = {
        f"{name}/{steps}": Restorer(net, solver_of(name, steps), torch.float32)
        for name, steps in wanted
    }
    tallies: dict[tuple[str, str], Tally] = {}
    stream = restorations(
        photos, families, methods,
        noise=GaussianNoise(0.0), indices=range(images), batch=32, seed=0,
        device=torch.device("cpu"),
    )  # fmt: skip
    for restored in tqdm(stream):
        key = restored.group.degradation, restored.method
        tallies.setdefault(key, Tally()).add(restored)
    return [
        {
            "family": family, "sampler": name, "num_steps": steps,
            "evaluations": methods[f"{name}/{steps}"].cost["evaluations"],
            **tallies[family, f"{name}/{steps}"].values(),
        }
        for family in families for name, steps in wanted
    ]  # fmt: skip


def quality_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """All values of one family and another."""
    headers = ["family", "sampler", "NFE", "PSNR (dB)", "detail", "consistency"]
    cells = [
        [row["family"], row["sampler"], row["evaluations"], f"{row['psnr']:.2f}",
         f"{row['detail']:.2f}", f"{row['consistency']:.1e}"]
        for row in rows
    ]  # fmt: skip
    return table(headers, cells)


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """PSNR and detail against evaluations, a column for each family."""
    families = list(dict.fromkeys(row["family"] for row in rows))
    names = [name for name in dict.fromkeys(row["sampler"] for row in rows) if name != MMSE]
    panels = {"psnr": "PSNR (dB)", "detail": "detail, as a share of the photos'"}
    figure, axes = plt.subplots(
        len(panels), len(families), figsize=(4.8 * len(families) + 1.6, 3.2 * len(panels)),
        sharex=True, sharey="row", squeeze=False,
    )  # fmt: skip
    colours = plt.get_cmap("tab10")
    for column, family in zip(axes.T, families, strict=True):
        column[0].set_title(family, fontsize=10, loc="left", color=_INK)
        own = [row for row in rows if row["family"] == family]
        for axis, (key, label) in zip(column, panels.items(), strict=True):
            for i, name in enumerate(names):
                points = [row for row in own if row["sampler"] == name]
                style = "--" if zero_shot(name) else "-"
                x, y = ([row[of] for row in points] for of in ("evaluations", key))
                axis.plot(x, y, style, marker="o", ms=3.5, lw=1.6, label=name, color=colours(i))
            (one,) = (row for row in own if row["sampler"] == MMSE)
            axis.axhline(one[key], color=_INK, lw=1, ls=":", label="mmse")
            axis.set(
                xscale="log",
                xticks=STEPS,
                xticklabels=STEPS,
                ylabel=label if family == families[0] else "",
            )
            axis.minorticks_off()
            axis.grid(True, color=_GRID, lw=0.6)
            axis.spines[["top", "right"]].set_visible(False)
        column[1].axhline(1, color=_INK, lw=0.6)
        column[1].set(yscale="log", yticks=SHARES, yticklabels=SHARES)
        column[1].minorticks_off()
        column[-1].set_xlabel("evaluations of the denoiser")
    place = {"loc": "upper left", "bbox_to_anchor": (1, 1)}
    axes[0, -1].legend(
        title="dashed: zero-shot", title_fontsize=8, fontsize=8, frameon=False, **place
    )
    figure.tight_layout()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    plt.close(figure)
    with replacing(path) as temporary:
        Image.open(buffer).convert("RGB").quantize(256).save(temporary, "PNG", optimize=True)


def zero_shot(name: str) -> bool:
    """Whether a sampler uses the network without telling it y."""
    return isinstance(solver_of(name, 4), ZeroShot)


def load_trained(net: Path, names: Sequence[str]) -> Denoiser:
    """A network that all samplers can use. Raises ValueError for others, and for a prior."""
    denoiser = load_frozen(net, torch.device("cpu"), torch.float32)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"{net} holds an analytic prior: benchmarks.posterior is for it")
    check_conditioning(net, denoiser, {MMSE: solver_of(MMSE, 1)}, "the photos")
    check_samplers(net, names)
    return denoiser


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--net", type=click.Path(path_type=Path), required=True, help="A weights file.")
@click.option("--family", "families", multiple=True, default=["MotionBlur", "MissingPatches"])
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
        check_once("--sampler", names)
        denoiser = load_trained(net, names)
        drawn = {family: get_family(family) for family in families}
        for family in drawn.values():
            family.check(denoiser.config.image_shape)
        solvers = {sampler: solver_of(sampler, STEPS[1]) for sampler in names}
        check_operators(solvers, drawn, denoiser.config.image_shape)
    found = rows(denoiser, drawn, names, images)
    print(quality_table(found))
    if name is None:
        return
    record = {"images": images, "network": read_summary(net), "rows": found,
              "threads": torch.get_num_threads(), "environment": environment()}  # fmt: skip
    with replacing(ROOT / "benchmarks" / "results" / f"{name}.json") as path:
        path.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")
    draw(ROOT / "docs" / f"{name}.png", found)


if __name__ == "__main__":
    main()
