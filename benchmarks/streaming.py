"""Memory and time of an evaluation against its number of images: `python -m benchmarks.streaming`.

Each number of images is evaluated in a process of its own: images of noise are restored by H†y
under in-painting, measured, and their features (a small random network's) summed up. Prints a
table, writes benchmarks/results/streaming.json.
"""

import json
import multiprocessing
import resource
import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from degradation import GaussianNoise, MissingPatches
from metrics.evaluate import restorations
from metrics.features import Detector
from metrics.measure import Measure
from metrics.pipeline import Stage
from metrics.records import COLUMNS, PartialRecords, Summary, merged
from metrics.results import write_per_image
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table

COUNTS = (1_000, 10_000, 100_000)
SIDE = 16
METRICS = ["psnr", "ssim", "consistency", "fd", "cfd"]
RESULTS = Path(__file__).parent / "results" / "streaming.json"


class Noise:
    """`size` images that follow from their index and need no memory."""

    num_classes = 0
    image_shape = (3, SIDE, SIDE)

    def __init__(self, size: int):
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        generator = torch.Generator().manual_seed(index)
        return torch.randint(0, 256, self.image_shape, dtype=torch.uint8, generator=generator), -1


def detector() -> Detector:
    """128 features of a random convolution."""
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 128, 8, stride=8).requires_grad_(False)
    return Detector(
        "random", "", 128, lambda x: convolution(x.float()).mean((2, 3)), torch.device("cpu")
    )


def evaluate(count: int) -> dict[str, float]:
    """Seconds and peak memory (MiB) of an evaluation, and that of the process before it."""
    torch.set_num_threads(1)
    features = detector()
    before, start = peak(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        part, per_image = Path(folder) / "0.csv", METRICS[:3]
        with PartialRecords(part, per_image) as records:
            measure = Measure(
                records, METRICS, {"fd": features, "cfd": features}, torch.device("cpu"), 3
            )
            with Stage(measure, torch.device("cpu")) as stage:
                for restored in restorations(
                    Noise(count),
                    {"MissingPatches": MissingPatches()},
                    {"H†y": lambda problem, noise, draws: problem.pinv()},
                    noise=GaussianNoise(),
                    indices=range(count),
                    batch=64,
                    seed=0,
                    device=torch.device("cpu"),
                ):
                    stage.put(restored)
        summary = Summary(per_image)
        rows = summary.over(merged([part], ["MissingPatches"], per_image))
        write_per_image(folder, rows, [*COLUMNS, *per_image])
    return {
        "images": count,
        "seconds": time.perf_counter() - start,
        "mib_before": before,
        "mib_peak": peak(),
    }


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Evaluate each count in a fresh process."""
    context = multiprocessing.get_context("spawn")
    runs = []
    for count in COUNTS:
        with context.Pool(1) as pool:
            runs.append(pool.apply(evaluate, (count,)))
    rows = [
        [f"{r['images']:,}", r["seconds"], 1000 * r["seconds"] / r["images"], r["mib_before"],
         r["mib_peak"]]
        for r in runs
    ]  # fmt: skip
    print(table(["images", "s", "ms an image", "MiB before", "MiB at most"], rows))
    with replacing(RESULTS) as path:
        record = {"side": SIDE, "runs": runs, "environment": environment()}
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
