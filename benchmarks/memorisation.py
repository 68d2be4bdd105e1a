"""Do samples copy training images? `python -m benchmarks.memorisation`.

Every sample of a network, drawn without a measurement, is compared with all training images, and
so is every held-out image. If samples are no nearer to the training set than held-out images are,
the ratio of the two median distances is about 1 or more. Distances are taken in pixels and in the
features of EfficientNet-Lite0.
"""

from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.report import DOCS, benchmark
from benchmarks.weights import DETECTOR, NETS
from datautils import get_dataset
from degradation import Draws, Problem
from metrics.dataset import load_images
from metrics.detectors import load_detector
from metrics.images import write_grid
from metrics.pixel import to_uint8
from networks import load_weights
from runtime.reader import key_values
from runtime.tables import table
from samplers import DPM

BATCH, SHOWN = 64, 11


@torch.no_grad()
def samples(net: Path, count: int) -> Tensor:
    """Images `[count, C, h, w]` in [-1, 1] that a network draws without a measurement."""
    denoiser = load_weights(net)
    shape, parts = denoiser.config.image_shape, []
    for seeds in torch.arange(count).split(BATCH):
        problem = Problem.without_measurement(len(seeds), shape, torch.full_like(seeds, -1))
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
        typical = reference.median()
        rows.append({
            "space": space, "samples": distances.median().item(), "heldout": typical.item(),
            "ratio": (distances.median() / typical).item(),
            "closest": (distances.min() / typical).item(),
            "closest_heldout": (reference.min() / typical).item(),
        })  # fmt: skip
        nearest.append(train[index])
    return rows, nearest


@benchmark()
@click.option("--net", type=click.Path(path_type=Path), default=NETS[0])
@click.option("--data", default="Emoji", help="Data set that the network was trained on.")
@click.option(
    "--data-opt", multiple=True, metavar="KEY=VALUE", default=("resolution=32", "path=data")
)
@click.option("--images", default=256, help="Samples, and held-out images.")
def main(net: Path, data: str, data_opt: tuple[str, ...], images: int) -> Any:
    """Compare samples with their nearest training images."""
    options = key_values(data_opt, "--data-opt")
    known = get_dataset(data, "train", **options)
    heldout = load_images(get_dataset(data, "heldout", **options), images)
    train, drawn = load_images(known, len(known)), samples(net, images)
    rows, nearest = compared(drawn, heldout, train)
    record = {"net": net.name, "images": len(drawn), "train": len(train), "rows": rows}
    headers = ["space", "samples", "held-out", "ratio", "closest sample", "closest held-out"]
    shown = [to_uint8(part[:SHOWN]) for part in (drawn, *nearest)]
    titles = ["sample", "nearest in pixels", "nearest in features"]
    grid = partial(write_grid, rows=list(zip(*shown, strict=True)), columns=titles)
    text = table(headers, [list(row.values()) for row in rows])
    return text, record, lambda name: grid(DOCS / f"{name}.png")


if __name__ == "__main__":
    main()
