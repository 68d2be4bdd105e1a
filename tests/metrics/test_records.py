"""Per-image rows that pass by: order, merging of processes, means; stages in threads; pictures."""

import csv
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.evaluate import Group
from metrics.images import ImageWriter, image_name
from metrics.pipeline import Stage
from metrics.report import write_pictures
from metrics.results import PartialRecords, read_rows, summarised, write_merged

CPU = torch.device("cpu")
METRICS = ["psnr"]


def value(degradation: str, image: int, method: str) -> float:
    return image + {"blur": 20.1, "mask": 10.3}[degradation] + {"a": 0.0, "b": 1 / 3}[method]


def part(path: Path, images: range) -> Path:
    """The rows of one process, in two chunks for each degradation and a mixed order in each."""
    with PartialRecords(path, METRICS) as records:
        for degradation in ("mask", "blur"):
            for chunk, half in enumerate((images[:3], images[3:])):
                for image in reversed(half):
                    for m in "ab":
                        group = Group(degradation, None, [image], [0], chunk)
                        records.add(group, m, {"psnr": [value(degradation, image, m)]})
    return path


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_processes_are_merged_in_the_order_of_one(tmp_path, processes):
    parts = [part(tmp_path / f"{r}.csv", range(r, 10, processes)) for r in range(processes)]
    write_merged(tmp_path / "per_image.csv", parts, ["mask", "blur"], METRICS)
    rows = list(read_rows(tmp_path / "per_image.csv", METRICS))
    assert [(r["degradation"], r["image"], r["method"]) for r in rows] == [
        (d, i, m) for d in ("mask", "blur") for i in range(10) for m in "ab"
    ]
    for r in rows:  # to the last bit
        assert r["psnr"] == value(r["degradation"], r["image"], r["method"])


def test_summaries_do_not_depend_on_the_processes(tmp_path):
    results = []
    for processes in (1, 3):
        parts = [part(tmp_path / f"{r}.csv", range(r, 10, processes)) for r in range(processes)]
        values = write_merged(tmp_path / "per_image.csv", parts, ["mask", "blur"], METRICS)
        results.append((summarised(values), (tmp_path / "per_image.csv").read_text()))
    assert results[0] == results[1]
    table = results[0][0]
    assert {d: list(methods) for d, methods in table.items()} == {
        "mask": ["a", "b"], "blur": ["a", "b"],
    }  # fmt: skip
    values = np.array([value("blur", i, "b") for i in range(10)])
    cell = table["blur"]["b"]["psnr"]
    assert cell["mean"] == pytest.approx(values.mean(), rel=1e-14)
    assert cell["standard_error"] == pytest.approx(values.std(ddof=1) / 10**0.5, rel=1e-12)


def test_rows_are_written_chunk_by_chunk(tmp_path):
    path = tmp_path / "0.csv"
    with PartialRecords(path, METRICS) as records:
        records.add(Group("mask", None, [1], [0], 0), "a", {"psnr": [2.0]})
        assert not records._file.tell() > 60  # only the header
        records.add(Group("mask", None, [2], [0], 1), "a", {"psnr": [3.0]})
        assert len(records._rows) == 1
    with path.open() as file:
        assert [r["image"] for r in csv.DictReader(file)] == ["1", "2"]


# ---- tables and pictures -------------------------------------------------------------------------


def test_pictures_stand_in_rows_of_images(tmp_path):
    picture = torch.randint(0, 256, (3, 16, 16), dtype=torch.uint8)
    cell = {"original": picture, "a": picture, "b": picture}
    pictures = {("mask", 0): cell | {"measurement": picture}, ("blur", 0): cell}
    write_pictures(tmp_path / "grid.png", pictures, ["blur", "mask"])
    with Image.open(tmp_path / "grid.png") as found:
        assert found.width > 4 * 128 and found.height > 2 * 128  # four columns, two rows


@pytest.mark.parametrize(
    ("images", "families", "rows"), [(3, 5, [12, 3]), (5, 3, [10, 5]), (14, 1, [12, 2])]
)
def test_many_rows_become_pages(tmp_path, images, families, rows):
    picture = torch.zeros(3, 64, 64, dtype=torch.uint8)
    names = [f"family-{i}" for i in range(families)]
    pictures = {(name, i): {"original": picture} for name in names for i in range(images)}
    paths = write_pictures(tmp_path / "grid.png", pictures, names)
    assert [path.name for path in paths] == ["grid.png", "grid-2.png"]
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path, count in zip(paths, rows, strict=True):
        with Image.open(path) as page:
            assert count * 128 < page.height < count * 136 + 60


def test_images_are_written_whole_and_named_by_their_index(tmp_path):
    images = torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8)
    with ImageWriter(tmp_path) as writer:
        for i, image in enumerate(images):
            writer.put(image_name(998 + i, "MotionBlur", "InvFusion sample (heun)"), image)
    folder = tmp_path / "MotionBlur" / "InvFusion-sample-heun"
    assert sorted(p.name for p in folder.iterdir()) == ["00000", "00001"]
    for i, image in enumerate(images):
        path = folder / f"{(998 + i) // 1000:05d}" / f"{998 + i:08d}.png"
        assert np.array_equal(np.asarray(Image.open(path)), image.permute(1, 2, 0).numpy())
    assert writer.seconds > 0
    assert image_name(3, "H†y") == "pinv/00000/00000003.png"


def test_a_writer_that_cannot_write_says_so(tmp_path):
    (tmp_path / "taken").write_text("")

    def write() -> None:
        with ImageWriter(tmp_path / "taken") as writer:
            for i in range(200):
                writer.put(image_name(i), torch.zeros(3, 4, 4, dtype=torch.uint8))

    with pytest.raises(OSError):
        write()


# ---- stages --------------------------------------------------------------------------------------


def test_a_stage_does_everything_in_order_beside_its_caller():
    seen, threads = [], set()

    def work(item: int) -> None:
        threads.add(threading.get_ident())
        time.sleep(0.002)
        seen.append(item)

    with Stage(work, CPU) as stage:
        for i in range(20):
            stage.put(i)
    assert seen == list(range(20))
    assert len(threads) == 1 and threading.get_ident() not in threads
    assert stage.seconds >= 0.04


def test_a_stage_keeps_few_items_waiting():
    gate, taken = threading.Event(), []
    with Stage(lambda item: gate.wait(), CPU, depth=2) as stage:

        def put() -> None:
            for i in range(10):
                stage.put(i)
                taken.append(i)

        caller = threading.Thread(target=put)
        caller.start()
        time.sleep(0.2)
        assert len(taken) <= 3  # one in work, two waiting
        gate.set()
        caller.join()
    assert len(taken) == 10


def test_a_stage_passes_its_failure_on():
    def work(item: int) -> None:
        raise KeyError(item)

    def fill() -> None:
        with Stage(work, CPU) as stage:
            for i in range(100):
                stage.put(i)
                time.sleep(0.001)

    with pytest.raises(KeyError, match="0"):
        fill()


def test_a_stage_whose_thread_cannot_begin_raises(monkeypatch):
    def fail(self) -> None:
        raise MemoryError("no stream")

    monkeypatch.setattr(Stage, "_begin", fail)
    with pytest.raises(MemoryError, match="no stream"), Stage(print, CPU) as stage:
        stage.put(0)


def test_a_stage_drops_what_waits_when_its_caller_fails():
    seen = []

    def fill() -> None:
        with Stage(seen.append, CPU, depth=50) as stage:
            stage.put(0)
            time.sleep(0.05)
            raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        fill()
    assert seen == [0]
