"""The weights that ship, compared on held-out emoji: `python -m benchmarks.weights`.

With `torchrun --standalone --nproc_per_node=N -m benchmarks.weights`, N processes share the work.

InvFusion, Palette and zero-shot samplers on the unconditional network restore the same images. The
table has each metric for each family; the JSON also has 95 % intervals of the difference between
InvFusion, with and without EPS, and every other row, paired by image: MMSE estimates with each
other, samples with the rest. A second table has the Fréchet distance of images that each network
draws without a measurement.
"""

import hashlib
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import click

from benchmarks.report import ROOT, benchmark
from commands.draw import draw
from commands.gen import evaluate
from commands.options import GenOptions, RefOptions
from commands.ref import write_reference
from metrics.means import paired_difference
from metrics.report import metrics_rows
from metrics.results import read_rows
from runtime.files import sha256_of
from runtime.launcher import place
from runtime.reader import parse_count, texts
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
OURS = ("InvFusion", "InvFusion + EPS")
DETECTOR = "efficientnet-lite0"


def values_in(folder: Path) -> dict[str, Any]:
    """What a finished evaluation has found."""
    return json.loads((folder / "metrics.json").read_text())["metrics"]["values"]


def draw_images(count: int, reference: Path, folder: Path) -> None:
    """Draw images with every network, without a measurement."""
    for net in NETS:
        options = GenOptions(
            nets=(net,), outdir=folder / net.stem, images=count, metrics="fd", ref=reference,
            samplers=("dpm",), sampler_opt=texts(SAMPLERS["dpm"]),
        )  # fmt: skip
        if not (options.outdir / "metrics.json").exists():
            draw(options)


def restore(count: int, data: dict[str, Any], reference: Path, folder: Path) -> None:
    """Restore the images under every family with every network and sampler."""
    # The Gaussian is fitted to the training emoji, which do not ship.
    baselines = "pinv,fill,gaussian" if "path" in data["data_opt"] else "pinv,fill"
    options = GenOptions(
        nets=NETS, outdir=folder, degradations=FAMILIES, images=count, metrics=",".join(METRICS),
        ref=reference, samplers=("mmse", *SAMPLERS), baselines=baselines, pictures=8,
        sampler_opt=texts({f"{s}.{k}": v for s, own in SAMPLERS.items() for k, v in own.items()}),
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
        for way in OURS:
            ours = f"{way} MMSE" if method.endswith("MMSE") else f"{way} sample (dpm)"
            if method == ours:
                break  # the pairs of two of ours are there once
            found = paired_difference(by_image[family, ours, metric], values)
            rows.append({
                "family": family, "metric": metric, "ours": ours, "other": method,
                "difference": found.mean, "low": found.low, "high": found.high,
            })  # fmt: skip
    return rows


@benchmark()
@click.option("--images", default="256", help="Held-out emoji to restore.")
@click.option(
    "--path",
    help="Folder with emoji64-train.zip and emoji64-heldout.zip; without it the 256 held-out emoji "
    "that ship, and no Gaussian.",
)
@click.option(
    "--outdir", type=click.Path(path_type=Path), default=Path("experiments/weights"),
    help="Results are kept here: the same command, with as many processes, goes on after an "
    "interruption.",
)  # fmt: skip
def main(images: str, path: str | None, outdir: Path) -> Any:
    """Restore held-out emoji with the weights that ship, and compare."""
    count, data_opt = parse_count(images), {"resolution": "32"} | ({"path": path} if path else {})
    data = {"data": "Emoji", "data_opt": data_opt}
    files = {net.stem: sha256_of(net) for net in NETS}
    asked = json.dumps([files, FAMILIES, SAMPLERS, count, path])
    outdir /= hashlib.sha256(asked.encode()).hexdigest()[:12]  # what else was measured stays apart
    reference, drawn, gen = outdir / "ref.safetensors", outdir / "drawn", outdir / "gen"
    if not reference.exists():
        write_reference(RefOptions(dest=reference, images=count, detectors=(DETECTOR,), **data))
    draw_images(count, reference, drawn)
    restore(count, data, reference, gen)
    if place().rank:
        return None
    values, distances = values_in(gen), {}
    for net in NETS:
        (cell,) = values_in(drawn / net.stem)["none"].values()
        distances[net.stem] = cell["fd"]["mean"]  # Fréchet, of the drawn images
    text = table(*metrics_rows(values, METRICS))
    text += "\n" + table(["drawn by", "fd"], [list(pair) for pair in distances.items()])
    return text, {
        "images": count, "samplers": SAMPLERS, "values": values, "drawn_fd": distances,
        "sha256": files, "paired": intervals(gen),
    }  # fmt: skip


if __name__ == "__main__":
    main()
