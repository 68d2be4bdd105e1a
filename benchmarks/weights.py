"""Trained networks, compared on held-out images: `python -m benchmarks.weights`.

By default it compares the networks of emoji that ship, on held-out emoji. With `torchrun
--standalone --nproc_per_node=N -m benchmarks.weights`, N processes share the work.

InvFusion, Palette and, if a network is unconditional, zero-shot samplers restore the same images.
The table has each metric for each family; the JSON also has 95 % intervals of the difference
between InvFusion (MMSE and sample, with and without EPS) and every other row, paired by image. A
second table has the Fréchet distance of images that each network draws without a measurement.
"""

import hashlib
import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from benchmarks.report import ROOT, benchmark
from commands.draw import draw
from commands.gen import evaluate
from commands.options import GenOptions, RefOptions
from commands.ref import write_reference
from metrics.dataset import LIMIT
from metrics.means import paired_difference
from metrics.report import metrics_rows
from metrics.results import read_rows
from networks import load_weights
from networks.presets import conditioning_of
from runtime.files import sha256_of
from runtime.launcher import place
from runtime.reader import key_values, parse_count, texts
from runtime.tables import table

NETS = tuple(
    ROOT / "checkpoints" / f"emoji32-{kind}.safetensors"
    for kind in ("invfusion", "invfusion-eps", "palette", "unconditional")
)
FAMILIES = ("MotionBlur", "MissingPatches", "MatrixDegradation", "Box")
SAMPLERS = {  # with their options
    "dpm": {"num_steps": 20, "eta": 1}, "ddrm": {"num_steps": 25}, "ddnm": {"num_steps": 50},
    "pigdm": {"num_steps": 50}, "dps": {"num_steps": 100},
}  # fmt: skip
PAIRED = ("psnr", "ssim", "consistency")
METRICS = ("psnr", "ssim", "consistency", "fd", "cfd")
OURS = tuple(
    f"{way} {kind}" for kind in ("MMSE", "sample (dpm)") for way in ("InvFusion", "InvFusion + EPS")
)
DETECTOR = "efficientnet-lite0"


def record_of(folder: Path) -> dict[str, Any]:
    """The record of a finished evaluation."""
    return json.loads((folder / "metrics.json").read_text())


def samplers_for(nets: tuple[Path, ...]) -> dict[str, dict[str, int]]:
    """The samplers with their options: zero-shot ones if a network is unconditional."""
    kinds = {conditioning_of(load_weights(net).config) for net in nets}
    return SAMPLERS if "unconditional" in kinds else {"dpm": SAMPLERS["dpm"]}


def baselines_for(net: Path, data_opt: dict[str, str]) -> str:
    """The restorations without a network. A Gaussian is fitted to the images of training, and those
    of emoji do not ship; its covariance has the square of an image's values."""
    values = math.prod(load_weights(net).config.image_shape)
    return "pinv,fill,gaussian" if "path" in data_opt and values <= LIMIT else "pinv,fill"


def draw_images(nets: tuple[Path, ...], count: int, reference: Path, folder: Path) -> None:
    """Draw images with every network, without a measurement."""
    for net in nets:
        options = GenOptions(
            nets=(net,), outdir=folder / net.stem, images=count, metrics="fd", ref=reference,
            samplers=("dpm",), sampler_opt=texts(SAMPLERS["dpm"]),
        )  # fmt: skip
        if not (options.outdir / "metrics.json").exists():
            draw(options)


def restore(
    nets: tuple[Path, ...], samplers: dict[str, dict[str, int]], count: int, data: dict[str, Any],
    reference: Path, folder: Path,
) -> None:  # fmt: skip
    """Restore the images under every family with every network and sampler."""
    baselines = baselines_for(nets[0], data["data_opt"])
    options = GenOptions(
        nets=nets, outdir=folder, degradations=FAMILIES, images=count, metrics=",".join(METRICS),
        ref=reference, samplers=("mmse", *samplers), baselines=baselines, pictures=8,
        sampler_opt=texts({f"{s}.{k}": v for s, own in samplers.items() for k, v in own.items()}),
        **data,
    )  # fmt: skip
    if not (folder / "metrics.json").exists():
        evaluate(options)


def intervals(folder: Path) -> list[dict[str, Any]]:
    """Each of ours less each other row: the mean difference and its 95 % interval."""
    by_image = defaultdict(list)
    for row in read_rows(folder / "per_image.csv", PAIRED):
        for metric in PAIRED:
            by_image[row["degradation"], row["method"], metric].append(row[metric])
    rows = []
    for (family, method, metric), values in by_image.items():
        for ours in OURS:
            if method == ours:
                break  # the pairs of two of ours are there once
            if (family, ours, metric) not in by_image:
                continue
            found = paired_difference(by_image[family, ours, metric], values)
            rows.append({
                "family": family, "metric": metric, "ours": ours, "other": method,
                "difference": found.mean, "low": found.low, "high": found.high,
            })  # fmt: skip
    return rows


@benchmark()
@click.option(
    "--net", "nets", multiple=True, default=NETS, show_default=False,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Trained weights; may be repeated. By default the emoji networks that ship.",
)  # fmt: skip
@click.option("--images", default="256", help="Held-out images to restore.")
@click.option("--data", default="Emoji", help="Data set, as `calculate_metrics.py gen` takes it.")
@click.option(
    "--data-opt", multiple=True, metavar="KEY=VALUE",
    help="Option of the data set; may be repeated. Emoji without path=FOLDER are the 256 that "
    "ship. Without a path there is no Gaussian.",
)  # fmt: skip
@click.option(
    "--outdir", type=click.Path(path_type=Path), default=Path("experiments/weights"),
    help="Results are kept here: the same command, with as many processes, goes on after an "
    "interruption.",
)  # fmt: skip
def main(
    nets: tuple[Path, ...], images: str, data: str, data_opt: tuple[str, ...], outdir: Path
) -> Any:
    """Restore held-out images with trained networks, and compare."""
    count = parse_count(images)
    source = {"data": data, "data_opt": key_values(data_opt, "--data-opt")}
    files = {net.stem: sha256_of(net) for net in nets}
    if len(files) < len(nets):
        raise click.UsageError("two --net have the same name: rename one, results go by names")
    asked = json.dumps([files, FAMILIES, SAMPLERS, count, source])
    outdir /= hashlib.sha256(asked.encode()).hexdigest()[:12]  # what else was measured stays apart
    reference, drawn, gen = outdir / "ref.safetensors", outdir / "drawn", outdir / "gen"
    if not reference.exists():
        write_reference(RefOptions(dest=reference, images=count, detectors=(DETECTOR,), **source))
    draw_images(nets, count, reference, drawn)
    samplers = samplers_for(nets)
    restore(nets, samplers, count, source, reference, gen)
    if place().rank:
        return None
    measured, distances = record_of(gen), {}
    values = measured["metrics"]["values"]
    for net in nets:
        (cell,) = record_of(drawn / net.stem)["metrics"]["values"]["none"].values()
        distances[net.stem] = cell["fd"]["mean"]  # Fréchet, of the drawn images
    text = table(*metrics_rows(values, METRICS))
    text += "\n" + table(["drawn by", "fd"], [list(pair) for pair in distances.items()])
    return text, {
        "images": count, "samplers": samplers, "values": values, "drawn_fd": distances,
        "sha256": files, "precision": measured["settings"]["precision"], "paired": intervals(gen),
    }  # fmt: skip


if __name__ == "__main__":
    main()
