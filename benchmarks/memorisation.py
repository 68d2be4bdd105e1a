"""Do samples copy training images? `python -m benchmarks.memorisation`.

Every sample of a network, drawn without a measurement, is compared with all training images, and
so is every held-out image. If samples are no nearer to the training set than held-out images are,
the ratio of the two median distances is about 1 or more. Distances are taken in pixels and in the
features of EfficientNet-Lite0.
"""

from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.report import CONTEXT, DOCS, ROOT, name_option, report
from datautils import ImageDataset, get_dataset
from degradation import Draws, Problem
from metrics.dataset import load_images
from metrics.features import load_detector
from metrics.images import write_grid
from metrics.pixel import to_uint8
from networks import load_weights
from runtime.options import key_values
from runtime.tables import table
from samplers import DPM

NET = ROOT / "checkpoints" / "emoji32-invfusion.safetensors"
DETECTOR = "efficientnet-lite0"
BATCH, SHOWN = 64, 12


@torch.no_grad()
def samples(net: Path, count: int) -> Tensor:
    """Images `[count, C, h, w]` in [-1, 1] that a network draws without a measurement."""
    denoiser = load_weights(net)
    shape = denoiser.config.image_shape
    parts = []
    for start in range(0, count, BATCH):
        seeds = list(range(start, min(start + BATCH, count)))
        problem = Problem.without_measurement(len(seeds), shape, torch.full((len(seeds),), -1))
        draws = Draws(seeds)
        parts.append(DPM()(denoiser, draws.normal(shape, "latent"), problem, draws))
    return torch.cat(parts).clamp(-1, 1)


@torch.no_grad()
def spaces(images: Tensor) -> dict[str, Tensor]:
    """The images as vectors `[n, d]`, of pixels and of features."""
    detector = load_detector(DETECTOR, torch.device("cpu"), tuple(images.shape[1:]))
    features = [detector(to_uint8(part)) for part in images.split(BATCH)]
    return {"pixels": images.flatten(1), "features": torch.cat(features).float()}


def compared(drawn: Tensor, heldout: Tensor, train: Tensor) -> tuple[list[dict], list[Tensor]]:
    """A row for each space, and the nearest training image of each sample in it."""
    vectors = [spaces(images) for images in (drawn, heldout, train)]
    rows, nearest = [], []
    for space in vectors[0]:
        ours, theirs, known = (found[space] for found in vectors)
        distances, index = torch.cdist(ours, known).min(1)
        reference = torch.cdist(theirs, known).min(1).values
        rows.append({
            "space": space,
            "samples": distances.median().item(),
            "heldout": reference.median().item(),
            "ratio": (distances.median() / reference.median()).item(),
            "closest": (distances.min() / reference.median()).item(),
            "closest_heldout": (reference.min() / reference.median()).item(),
        })  # fmt: skip
        nearest.append(train[index])
    return rows, nearest


@click.command(context_settings=CONTEXT)
@click.option("--net", type=click.Path(path_type=Path), default=NET)
@click.option("--data", default="Emoji", help="Data set that the network was trained on.")
@click.option("--data-opt", multiple=True, metavar="KEY=VALUE", default=("resolution=32",))
@click.option("--images", default=256, help="Samples, and held-out images.")
@name_option
def main(net: Path, data: str, data_opt: tuple[str, ...], images: int, name: str | None) -> None:
    """Compare samples with their nearest training images."""
    sets: list[ImageDataset] = [
        get_dataset(data, split, **key_values(data_opt, "--data-opt"))
        for split in ("heldout", "train")
    ]
    heldout, train = load_images(sets[0], images), load_images(sets[1], len(sets[1]))
    drawn = samples(net, images)
    rows, nearest = compared(drawn, heldout, train)
    record: dict[str, Any] = {"net": net.name, "images": len(drawn), "train": len(train)}
    headers = ["space", "samples", "held-out", "ratio", "closest sample", "closest held-out"]
    report(name, table(headers, [list(row.values()) for row in rows]), record | {"rows": rows})
    if name is not None:
        shown = [to_uint8(part[:SHOWN]) for part in (drawn, *nearest)]
        titles = ["sample", "nearest in pixels", "nearest in features"]
        write_grid(DOCS / f"{name}.png", list(zip(*shown, strict=True)), titles)


if __name__ == "__main__":
    main()
