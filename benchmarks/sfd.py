"""Does the SqueezeNet Fréchet distance (SFD) see what it should? `python -m benchmarks.sfd -h`.

2,000 training faces (every n-th) against as many held-out ones, the same blurred, and photos of
other things. Prints a table, writes benchmarks/results/sfd.json.
"""

import json
from collections.abc import Callable
from pathlib import Path

import click
import torch
from PIL import Image, ImageFilter
from tqdm import tqdm

from datautils.decode import to_tensor
from datautils.imagedir import ImageDir
from metrics.features import Detector, load_detector
from metrics.frechet import frechet_distance
from metrics.results import environment, replacing, table
from metrics.statistics import FeatureStatistics

RESULTS = Path(__file__).parent / "results" / "sfd.json"
SIDE = 224  # pixels, where the blurs are applied: the detector's own size
_BATCH = 50
Picture = Callable[[Image.Image], Image.Image]


def statistics(
    images: ImageDir, count: int, detector: Detector, change: Picture, title: str
) -> FeatureStatistics:
    """Of `count` images spread evenly over the data set, each changed at 224×224."""
    found = FeatureStatistics()
    indices = [i * len(images) // count for i in range(count)]
    for start in tqdm(range(0, count, _BATCH), title):
        batch = []
        for index in indices[start : start + _BATCH]:
            pixels = images[index][0].permute(1, 2, 0).numpy()
            large = Image.fromarray(pixels).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
            batch.append(to_tensor(change(large)))
        found.update(detector(torch.stack(batch)))
    return found


def blurred(radius: int) -> Picture:
    """By a Gaussian of this standard deviation, pixels."""
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(radius))


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--train", required=True, help="Folder or zip file of training faces.")
@click.option("--heldout", required=True, help="Folder or zip file of held-out faces.")
@click.option("--other", required=True, help="Folder or zip file of photos of other things.")
@click.option("--detector", required=True, help="squeezenet=FILE")
@click.option("--count", default=2000, help="Images of each.")
def main(train: str, heldout: str, other: str, detector: str, count: int) -> None:
    """Distances from statistics of training faces."""
    network = load_detector(detector, "cuda" if torch.cuda.is_available() else "cpu")
    paths = {"train": train, "heldout": heldout, "other": other}
    sets = {name: ImageDir(path, labels="none", size=64) for name, path in paths.items()}
    cases: dict[str, tuple[str, Picture]] = {
        "training faces": ("train", lambda picture: picture),
        "held-out faces": ("heldout", lambda picture: picture),
        **{f"held-out faces, blur {r} px": ("heldout", blurred(r)) for r in (2, 5, 10)},
        "other photos": ("other", lambda picture: picture),
    }
    found = {
        title: statistics(sets[name], count, network, change, title)
        for title, (name, change) in cases.items()
    }
    reference = found.pop("training faces")
    rows = {
        title: frechet_distance(s.mean, s.covariance, reference.mean, reference.covariance)
        for title, s in found.items()
    }
    print(table(["images", "SFD"], [[title, value] for title, value in rows.items()]))
    with replacing(RESULTS) as path:
        record = {"count": count, "sfd": rows, "environment": environment()}
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
