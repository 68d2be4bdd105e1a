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
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from benchmarks.report import CONTEXT, ROOT, name_option, report
from commands.draw import draw
from commands.gen import evaluate
from commands.options import GenOptions, RefOptions
from commands.ref import write_reference
from metrics.download import sha256_of
from metrics.means import paired_difference
from metrics.records import read_rows
from runtime.launcher import place
from runtime.options import parse_count
from runtime.tables import table

NETS = tuple(
    ROOT / "checkpoints" / f"emoji32-{kind}.safetensors"
    for kind in ("invfusion", "invfusion-eps", "palette", "unconditional")
)
FAMILIES = ("MotionBlur", "MissingPatches", "MatrixDegradation", "Box")
STEPS = {"dpm": 20, "ddrm": 25, "ddnm": 50, "pigdm": 50, "dps": 100}
PAIRED = ("psnr", "ssim", "consistency")
SHOWN = ("psnr", "ssim", "cfd", "fd", "consistency", "evaluations")
OURS = ("InvFusion", "InvFusion + EPS")
DETECTOR = "efficientnet-lite0"


def values_in(folder: Path) -> dict[str, Any]:
    """What a finished evaluation has found."""
    return json.loads((folder / "metrics.json").read_text())["metrics"]["values"]


def draw_images(count: int, reference: Path, folder: Path) -> None:
    """Draw images with every network, without a measurement."""
    for net in NETS:
        outdir = folder / net.stem
        if not (outdir / "metrics.json").exists():
            draw(
                GenOptions(
                    nets=(net,),
                    outdir=outdir,
                    images=count,
                    metrics="fd",
                    ref=reference,
                    samplers=("dpm",),
                    sampler_opt={"num_steps": str(STEPS["dpm"])},
                )
            )


def drawn_distances(folder: Path) -> dict[str, float]:
    """The Fréchet distance of the drawn images, by network."""
    found = {}
    for net in NETS:
        (cell,) = values_in(folder / net.stem)["none"].values()
        found[net.stem] = cell["fd"]["mean"]
    return found


def restored(count: int, data: dict[str, Any], reference: Path, folder: Path) -> tuple[dict, dict]:
    """The cells of every family and method, and the values of every image."""
    options = GenOptions(
        nets=NETS,
        outdir=folder / "gen",
        degradations=FAMILIES,
        images=count,
        metrics="psnr,ssim,consistency,fd,cfd",
        ref=reference,
        samplers=("mmse", *STEPS),
        sampler_opt={f"{name}.num_steps": str(steps) for name, steps in STEPS.items()},
        # The Gaussian is fitted to the training emoji, which do not ship.
        baselines="pinv,fill,gaussian" if "path" in data["data_opt"] else "pinv,fill",
        pictures=8,
        **data,
    )
    if not (options.outdir / "metrics.json").exists():
        evaluate(options)
    if place().rank:
        return {}, {}
    by_image: dict[tuple[str, str, str], list[float]] = {}
    for row in read_rows(options.outdir / "per_image.csv", PAIRED):
        for metric in PAIRED:
            key = row["degradation"], row["method"], metric
            by_image.setdefault(key, []).append(row[metric])
    return values_in(options.outdir), by_image


def intervals(by_image: Mapping[tuple[str, str, str], list[float]]) -> list[dict[str, Any]]:
    """Each of ours less each other row: the mean difference and its 95 % interval."""
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


@click.command(context_settings=CONTEXT)
@click.option("--images", default="256", help="Held-out emoji to restore.")
@click.option(
    "--path",
    help="Folder with emoji64-train.zip and emoji64-heldout.zip; without it the 256 held-out emoji "
    "that ship, and no Gaussian.",
)
@click.option(
    "--outdir",
    type=click.Path(path_type=Path),
    default=Path("experiments/weights"),
    help="Results are kept here: the same command, with as many processes, goes on after an "
    "interruption.",
)
@name_option
def main(images: str, path: str | None, outdir: Path, name: str | None) -> None:
    """Restore held-out emoji with the weights that ship, and compare."""
    count, data_opt = parse_count(images), {"resolution": "32"} | ({"path": path} if path else {})
    data: dict[str, Any] = {"data": "Emoji", "data_opt": data_opt}
    files = {net.stem: sha256_of(net) for net in NETS}
    asked = json.dumps([files, FAMILIES, STEPS, count, path])
    outdir /= hashlib.sha256(asked.encode()).hexdigest()[:12]  # what else was measured stays apart
    reference = outdir / "ref.safetensors"
    if not reference.exists():
        write_reference(RefOptions(dest=reference, images=count, detectors=(DETECTOR,), **data))
    draw_images(count, reference, outdir / "drawn")
    values, by_image = restored(count, data, reference, outdir)
    if not values:
        return
    distances = drawn_distances(outdir / "drawn")
    rows = [
        [
            family,
            method,
            *(cell[m]["mean"] if isinstance(cell[m], dict) else cell[m] for m in SHOWN),
        ]
        for family, methods in values.items()
        for method, cell in methods.items()
    ]
    record = {"images": count, "steps": STEPS, "values": values, "drawn_fd": distances}
    record["sha256"] = files
    record["paired"] = intervals(by_image)
    text = table(["family", "method", *SHOWN], rows)
    text += "\n" + table(["drawn by", "fd"], [list(pair) for pair in distances.items()])
    report(name, text, record)


if __name__ == "__main__":
    main()
