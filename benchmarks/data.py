"""Images a second that a worker loads from each source: `python -m benchmarks.data`.

Crops of the built-in photos are written once in every form into a temporary folder, and read in the
order of training: by this process alone, and by as many workers as there are processors. Files lie
in the system's cache, so this is the cost of finding, decoding and collating, not of a disk. Prints
a table, writes benchmarks/results/data.json.
"""

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from tqdm import tqdm

from datautils import ImageDataset, get_dataset
from datautils.huggingface import HuggingFaceStream
from datautils.loading import cores
from datautils.photos import Photos
from datautils.prepare import folder_originals, prepare
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table
from training.data import training_batches

CASES = ((64, "PNG", 3000), (256, "PNG", 600), (256, "JPEG", 600))  # side, format, images
BATCH = 32
SECONDS = 4.0
RESULTS = Path(__file__).parent / "results" / "data.json"


def write_images(folder: Path, side: int, kind: str, count: int) -> None:
    """Crops of the photos as files, a hundred in a folder."""
    photos = Photos(side, "train", size=count)
    for i in range(count):
        path = folder / f"{i // 100:03d}" / f"{i:06d}.{kind.lower()}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(photos[i][0].permute(1, 2, 0).numpy()).save(path, kind, quality=90)


def sources(folder: Path, side: int, kind: str, count: int) -> Iterator[tuple[str, ImageDataset]]:
    """The same images from each source; those that need a package which is missing are left out."""
    write_images(folder / "files", side, kind, count)
    directory = "datautils.imagedir.ImageDir"
    yield "folder", get_dataset(directory, "train", path=folder / "files")
    if kind == "PNG":  # of JPEG files `prepare` would make PNG
        originals = folder_originals(folder / "files")
        prepare(originals, folder / "images.zip", size=side, workers=cores())
        yield "zip", get_dataset(directory, "train", path=folder / "images.zip")
    else:
        shutil.make_archive(str(folder / "images"), "zip", folder / "files")
        yield "zip, deflated", get_dataset(directory, "train", path=folder / "images.zip")
    if find_spec("datasets"):
        write_rows(folder)
        path = str(folder / "rows")
        yield "Hugging Face", get_dataset("datautils.huggingface.HuggingFace", "train", path=path)
        name = "datautils.huggingface.HuggingFaceStream"
        yield "Hugging Face, streamed", get_dataset(name, "train", path=path, size=side)


def write_rows(folder: Path) -> None:
    """The files as a data set of the package `datasets`, in four parts."""
    import datasets

    datasets.disable_progress_bars()
    files = sorted((folder / "files").rglob("*.*"))
    cells = [{"bytes": path.read_bytes(), "path": None} for path in files]
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": cells}, features=features)
    rows.save_to_disk(folder / "rows", num_shards=4)


def speed(dataset: ImageDataset, workers: int) -> float:
    """Images a second, once the first batches are there."""
    batches = training_batches(dataset, BATCH, 0, 0, workers)
    for _ in itertools.islice(batches, 4 * max(1, workers)):
        pass
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        count += len(next(batches)[0])
    return count / (time.perf_counter() - start)


def measure(report: Callable[[str], None]) -> list[dict[str, Any]]:
    """A row for each source and kind of image."""
    rows = []
    for side, kind, count in CASES:
        with tempfile.TemporaryDirectory() as name:
            every = [("built-in photos", Photos(side, "train"))] if kind == "PNG" else []
            for source, dataset in itertools.chain(every, sources(Path(name), side, kind, count)):
                report(f"{source} {side} {kind}")
                row = {
                    "source": source,
                    "side": side,
                    "format": "-" if isinstance(dataset, Photos) else kind,
                    "random_access": not isinstance(dataset, HuggingFaceStream),
                    "one_process": speed(dataset, 0),
                    "workers": cores(),
                    "all_workers": speed(dataset, cores()),
                }
                rows.append(row)
    return rows


def main() -> None:
    """Measure every source, print and keep the result."""
    torch.set_num_threads(1)
    with tqdm(total=14, unit=" sources", leave=False) as bar:

        def report(text: str) -> None:
            bar.set_postfix_str(text)
            bar.update()

        rows = measure(report)
    headers = ["source", "side", "format", "images/s, one process", f"images/s, {cores()} workers"]
    keys = ("source", "side", "format", "one_process", "all_workers")
    print(table(headers, [[row[key] for key in keys] for row in rows]))
    with replacing(RESULTS) as path:
        record = {"batch": BATCH, "runs": rows, "environment": environment()}
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
