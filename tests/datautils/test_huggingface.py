"""Data sets of Hugging Face, with an index and as a stream."""

import io
import itertools
from functools import partial
from pathlib import Path

import pytest
import torch
from pictures import play, png
from PIL import Image
from runner import Runner
from torch import Tensor

import train
from datautils import DataError, get_dataset
from datautils.decode import to_tensor
from datautils.huggingface import HuggingFaceStream, _bytes_of
from datautils.loading import stream_batches
from training.data import training_batches
from training.log import read_log

BATCH, SEED = 4, 3
MAP, STREAM = "datautils.huggingface.HuggingFace", "datautils.huggingface.HuggingFaceStream"


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/saved, folder/splits and folder/parquet: 23 labelled pictures."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0.1  # not 5 seconds at the end of an epoch
    folder = tmp_path_factory.mktemp("hub")
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(num_classes=5),
                "text": datasets.Value("string")}  # fmt: skip
    rows = datasets.Dataset.from_dict(
        {"image": [{"bytes": png(i), "path": None} for i in range(23)],
         "label": [i % 3 for i in range(23)], "text": [str(i) for i in range(23)]},
        features=datasets.Features(features),
    )  # fmt: skip
    rows.save_to_disk(folder / "saved", num_shards=3)
    splits = {"train": rows.select(range(20)), "validation": rows.select(range(20, 23))}
    datasets.DatasetDict(splits).save_to_disk(folder / "splits")
    (folder / "parquet").mkdir()
    for k in range(4):
        rows.shard(4, k).to_parquet(folder / f"parquet/train-{k:05d}-of-00004.parquet")
    return folder


def check(items: list[tuple[Tensor, int]], numbers: range) -> None:
    assert len(items) == len(numbers)
    for (image, label), i in zip(items, numbers, strict=True):
        expected = to_tensor(Image.open(io.BytesIO(png(i))))
        assert torch.equal(image, expected) and label == i % 3


# ---- with an index -------------------------------------------------------------------------------


def test_saved_data_sets(hub: Path):
    data = get_dataset(MAP, "all", path=str(hub / "saved"))
    check([data[i] for i in range(len(data))], range(23))
    assert data.num_classes == 5 and data.image_shape == (3, 4, 4)
    assert data.description["count"] == 23  # type: ignore[attr-defined]
    train, heldout = (
        get_dataset(MAP, split, path=str(hub / "saved"), heldout=4)
        for split in ("train", "heldout")
    )
    check([train[i] for i in range(len(train))], range(19))
    check([heldout[i] for i in range(len(heldout))], range(19, 23))
    options = {"path": str(hub / "splits"), "heldout_split": "validation", "heldout": 2}
    train, heldout = (get_dataset(MAP, split, **options) for split in ("train", "heldout"))
    check([train[i] for i in range(len(train))], range(20))
    check([heldout[i] for i in range(len(heldout))], range(20, 22))
    with pytest.raises(IndexError):
        heldout[2]
    with pytest.raises(ValueError, match="heldout=23 must leave images in both splits"):
        get_dataset(MAP, "train", path=str(hub / "saved"), heldout=23)


def test_files_of_a_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = get_dataset(MAP, "all", path=str(hub / "parquet"), size=8)
    assert len(data) == 23 and data.image_shape == (3, 8, 8) and data.num_classes == 5


@pytest.mark.parametrize("name", [MAP, STREAM])
def test_faults_are_one_sentence(hub: Path, name: str):
    for options, message in [
        ({"path": "owner/name"}, "the split train of owner/name cannot be read"),
        ({"path": str(hub / "nowhere")}, "nowhere cannot be read"),
        ({"path": str(hub / "splits"), "train_split": "test"}, "the split test of .* cannot be re"),
        ({"path": str(hub / "saved"), "image_column": "photo"}, "no column photo; it has image, l"),
        ({"path": str(hub / "saved"), "label_column": "kind"}, "no column kind; it has image, l"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            get_dataset(name, "train", size=4, **options)
        assert "\n" not in str(error.value)


def test_labels(hub: Path):
    path = str(hub / "saved")
    assert get_dataset(MAP, "all", path=path, label_column="none").num_classes == 0
    with pytest.raises(DataError, match="the column label holds no pictures"):
        get_dataset(MAP, "all", path=path, image_column="label")
    with pytest.raises(DataError, match=r"the column text of .* holds (large_)?string"):
        get_dataset(MAP, "all", path=path, label_column="text")
    with pytest.raises(DataError, match=r"row 2 of .* has the label 2, but there are 2 classes"):
        get_dataset(MAP, "all", path=path, num_classes=2)


def test_negative_labels_are_none(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})
    rows = {"image": [{"bytes": png(0), "path": None}] * 2, "label": [-1, -7]}
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path)
    data = get_dataset(MAP, "all", path=str(tmp_path))
    assert data.num_classes == 0 and [data[i][1] for i in range(2)] == [-1, -1]


def test_rows_that_name_files_elsewhere():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://hub/a.png", "wb") as file:
        file.write(png(3))
    found, gone = ({"bytes": None, "path": f"memory://hub/{name}.png"} for name in "ab")
    assert _bytes_of(found, "row 0") == png(3)
    for cell in (gone, {"path": "nothing://a.png"}):
        with pytest.raises(DataError, match=r"^row 1 cannot be read: ") as error:
            _bytes_of(cell, "row 1")
        assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    with pytest.raises(DataError, match="needs the package datasets"):
        get_dataset(MAP, "all", path="owner/name")


# ---- as a stream ---------------------------------------------------------------------------------


def stream(path: Path, split: str = "train", **options: object) -> HuggingFaceStream:
    data = get_dataset(STREAM, split, path=str(path), **{"size": 4} | options)
    assert isinstance(data, HuggingFaceStream)
    return data


def numbers(images: Tensor) -> list[int]:
    """Which of the pictures each one is."""
    known = {to_tensor(Image.open(io.BytesIO(png(i)))).numpy().tobytes(): i for i in range(23)}
    return [known[image.numpy().tobytes()] for image in images]


@pytest.mark.parametrize(("folder", "workers"), [("saved", 0), ("parquet", 0), ("parquet", 2)])
def test_an_epoch_is_every_row_once(hub: Path, folder: str, workers: int):
    data = stream(hub / folder)
    assert data.num_classes == 5 and data.image_shape == (3, 4, 4)
    reads = partial(data.reads, SEED, 0, 1)
    batches = list(itertools.islice(stream_batches(reads, 1, workers), 46))
    found = numbers(torch.cat([images for images, _ in batches]))
    assert [label for _, labels in batches for label in labels] == [i % 3 for i in found]
    if workers:  # each has two of the four shards, and begins its next epoch by itself
        assert all(1 <= found.count(i) <= 3 for i in range(23))
    else:
        assert sorted(found[:23]) == sorted(found[23:]) == list(range(23))
        assert found[:23] != found[23:]


@pytest.mark.parametrize("folder", ["saved", "parquet"])  # of one shard and of four
def test_processes_share_the_rows(hub: Path, folder: str):
    data = stream(hub / folder)
    assert data.workers(1) == (4 if folder == "parquet" else 1)
    shares = [stream_batches(partial(data.reads, SEED, rank, 2), 11, 0) for rank in range(2)]
    found = [numbers(next(batches)[0]) for batches in shares]
    assert not set(found[0]) & set(found[1]) and len({*found[0], *found[1]}) == 22


def test_a_resumed_run_begins_the_stream_again(hub: Path, monkeypatch: pytest.MonkeyPatch):
    play(monkeypatch, 0, 1)
    data = stream(hub / "saved")

    def first(step: int) -> list[int]:
        return numbers(next(training_batches(data, BATCH, SEED, step, 0))[0])

    assert first(0) == first(0) and first(3) == first(3)
    assert first(0) != first(3)


def test_heldout_rows_of_a_stream_have_an_index(hub: Path):
    data = stream(hub / "splits", "heldout", heldout_split="validation", heldout=2)
    check([data[i] for i in range(len(data))], range(20, 22))
    assert len(stream(hub / "splits", "heldout", heldout_split="validation")) == 3
    with pytest.raises(ValueError, match="heldout_split must name"):
        stream(hub / "splits", "heldout", heldout=2)
    for use in (len, lambda data: data[0]):
        with pytest.raises(DataError, match="is a stream: only held-out images have an index"):
            use(stream(hub / "splits"))
    with pytest.raises(ValueError, match="a stream needs size=N or crop=N"):
        stream(hub / "splits", size=None)


def test_broken_rows_of_a_stream(hub: Path):
    data = stream(hub / "saved", num_classes=2)
    with pytest.raises(DataError, match=r"in the split train of .* has the label 2, not an integ"):
        next(stream_batches(partial(data.reads, SEED, 0, 1), 23, 0))
    batches = stream_batches(partial(data.reads, SEED, 0, 1), 16, 0, skip_broken=True)
    images, labels = next(batches)  # of 23 rows 7 have the label 2
    assert len(images) == 16 and set(labels.tolist()) == {0, 1}
    assert 0 < batches.skipped <= len(batches.faults) <= 7
    data = stream(hub / "saved", image_column="text")
    with pytest.raises(DataError, match=r"100 images in a row are broken, the first: .* cannot"):
        next(stream_batches(partial(data.reads, SEED, 0, 1), 1, 0, skip_broken=True))


def test_a_run_on_a_stream(hub: Path, tmp_path: Path):
    def run(*options: object) -> None:
        result = Runner().invoke(train.main, list(map(str, options)))
        assert result.exit_code == 0, (result.exception, result.output[-500:])

    run(
        "--preset=tiny", f"--data={STREAM}", f"--data-opt=path={hub / 'saved'}",
        "--data-opt=size=16", "--batch=4", "--ramp=8", "--fp32", "--log-every=4", "--workers=0",
        f"--outdir={tmp_path}", "--duration=8",
    )  # fmt: skip
    run("--resume", tmp_path, "--duration=16")
    losses = [line for line in read_log(tmp_path) if "loss" in line]
    assert [line["images"] for line in losses] == [4, 8, 12, 16]
