"""Streams: the same images from every source, in an order that nothing but the seed decides."""

import functools
import http.server
import io
import itertools
import json
import os
import subprocess
import tarfile
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from test_shards import labelled, png, tar
from torch import Tensor

import train
from datautils import DataError, ImageStream, get_dataset, tarstream
from datautils.decode import to_tensor
from datautils.huggingface import cell_bytes
from datautils.imagedir import ImageDir
from datautils.streams import Record
from datautils.tarstream import TarStream
from runtime import distributed, stream
from training.data import training_batches
from training.log import read_log
from training.stream import Lane, lane_count

BATCH, SEED = 8, 3


class Numbers(ImageStream):
    """Shards of numbered images that count how often one is decoded, and which are broken."""

    num_classes = 10**6

    def __init__(self, *sizes: int, broken: tuple[int, ...] = ()):
        super().__init__("train", None, 2, None)
        self.path, self.shards, self.sizes, self.broken = "numbers", len(sizes), sizes, broken
        self.decoded: list[int] = []
        self.read = 0

    def records(self, shard: int, start: int = 0) -> Iterator[Record]:
        first = sum(self.sizes[:shard])
        for number in range(first + start, first + self.sizes[shard]):
            self.read += 1
            yield Record(b"", f"number {number}", number)

    def decode(self, record: Record) -> tuple[Tensor, int]:
        self.decoded.append(record.label)
        if record.label in self.broken:
            raise DataError(f"{record.where} is broken")
        return torch.full((3, 2, 2), record.label % 256, dtype=torch.uint8), record.label


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "BLOCK", 5)


def play(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)


def flat(batches: list[list[int]]) -> list[int]:
    return list(itertools.chain(*batches))


def labels(batches: Iterator[tuple[Tensor, Tensor]], steps: int) -> list[list[int]]:
    return [found.tolist() for _, found in itertools.islice(batches, steps)]


def global_order(
    monkeypatch: pytest.MonkeyPatch, world: int, steps: int, workers: int = 0, **options: Any
) -> tuple[list[list[int]], list[list[int]]]:
    """The batches of `steps` steps over all processes, and the position after them."""
    data = options.get("data", Numbers(9, 14, 11, 16))
    parts, position = [], []
    for rank in range(world):
        play(monkeypatch, rank, world)
        batches = training_batches(data, BATCH, SEED, options.get("step", 0), workers,
                                   position=options.get("position", ()))  # fmt: skip
        parts.append(labels(batches, steps))
        position += batches.position
    return [list(itertools.chain(*batch)) for batch in zip(*parts, strict=True)], position


# ---- the order -----------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_an_epoch_is_every_image_once(monkeypatch: pytest.MonkeyPatch, world: int):
    """Shards of one size end together: then an epoch is a number of steps."""
    data = Numbers(12, 12, 12, 12)
    for epoch in range(3):
        batches, _ = global_order(monkeypatch, world, 6 * (epoch + 1), data=data)
        epochs = list(itertools.chain(*batches))[48 * epoch :]
        assert sorted(epochs) == list(range(48))
        assert epochs != sorted(epochs)


def test_lanes_take_every_record_of_an_epoch_once():
    """Shards of different sizes: whichever lane a shard falls to reads all of it, and once."""
    data, lanes = Numbers(7, 1, 12, 5, 0, 9), 3
    seen: Counter[tuple[int, int]] = Counter()
    for number in range(lanes):
        lane = Lane(data, SEED, lanes, (number, 0))
        while True:
            (_, label), _ = lane.take(False)
            if lane.turn >= 2 * data.shards:
                break
            seen[lane.turn // data.shards, label] += 1
    assert set(seen) == {(epoch, i) for epoch in (0, 1) for i in range(34)}
    assert set(seen.values()) == {1}


@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (8, 0), (1, 2), (2, 2)])
def test_the_order_is_that_of_one_process(
    monkeypatch: pytest.MonkeyPatch, world: int, workers: int
):
    expected, _ = global_order(monkeypatch, 1, 12)
    found, _ = global_order(monkeypatch, world, 12, workers)
    assert found == expected


@pytest.mark.parametrize("step", [1, 2, 5, 6, 7, 11, 19, 40])
@pytest.mark.parametrize(("before", "after"), [(1, 1), (2, 4), (4, 2)])
def test_a_stream_goes_on_exactly(
    monkeypatch: pytest.MonkeyPatch, step: int, before: int, after: int
):
    """With the position or, by passing over what was seen, without; by other processes too."""
    expected, _ = global_order(monkeypatch, 1, step + 6)
    _, position = global_order(monkeypatch, before, step)
    data = Numbers(9, 14, 11, 16)
    found, _ = global_order(monkeypatch, after, 6, step=step, position=position, data=data)
    assert found == expected[step:]
    at_once = data.read
    data = Numbers(9, 14, 11, 16)
    found, _ = global_order(monkeypatch, after, 6, step=step, data=data)
    assert found == expected[step:]
    assert len(data.decoded) == 6 * BATCH  # what is passed over is not decoded
    assert step < 19 or data.read > at_once


def test_a_stream_goes_on_with_workers(monkeypatch: pytest.MonkeyPatch):
    expected, position = global_order(monkeypatch, 1, 9, 2)
    play(monkeypatch, 0, 1)
    batches = training_batches(Numbers(9, 14, 11, 16), BATCH, SEED, 9, 2, position=position)
    longer, _ = global_order(monkeypatch, 1, 12)
    assert expected + labels(batches, 3) == longer


def test_other_seeds_have_other_orders(monkeypatch: pytest.MonkeyPatch):
    play(monkeypatch, 0, 1)
    one, two = (labels(training_batches(Numbers(40), BATCH, s, 0, 0), 5) for s in (1, 2))
    assert one != two and sorted(flat(one)) == sorted(flat(two)) == list(range(40))


def test_a_position_of_other_data_is_refused(monkeypatch: pytest.MonkeyPatch):
    _, position = global_order(monkeypatch, 1, 2)
    with pytest.raises(ValueError, match="was the data changed"):
        training_batches(Numbers(9, 9), BATCH, SEED, 2, 0, position=position)


@pytest.mark.parametrize(
    ("shards", "batch", "lanes"), [(1, 512, 1), (7, 512, 4), (1000, 512, 32), (40, 6, 6), (3, 7, 1)]
)
def test_lanes_share_a_batch_equally(shards: int, batch: int, lanes: int):
    assert lane_count(shards, batch) == lanes


def test_a_stream_without_images(monkeypatch: pytest.MonkeyPatch):
    play(monkeypatch, 0, 1)
    with pytest.raises(DataError, match="shards in a row of numbers hold no image"):
        next(training_batches(Numbers(0, 0), BATCH, SEED, 0, 0))


# ---- broken images -------------------------------------------------------------------------------


@pytest.mark.parametrize("world", [1, 2])
def test_a_broken_record_ends_the_run_or_is_replaced(monkeypatch: pytest.MonkeyPatch, world: int):
    broken = (3, 4, 22)
    expected, _ = global_order(monkeypatch, 1, 12)
    skipped, replaced, faults = 0, [], set()
    for rank in range(world):
        play(monkeypatch, rank, world)
        batches = training_batches(
            Numbers(9, 14, 11, 16, broken=broken), BATCH, SEED, 0, 0, skip_broken=True
        )
        replaced.append(labels(batches, 12))
        skipped += batches.skipped
        faults |= set(batches.faults)
        with pytest.raises(DataError, match="is broken"):
            labels(training_batches(Numbers(9, broken=(*range(9),)), BATCH, SEED, 0, 0), 12)
    found = [list(itertools.chain(*batch)) for batch in zip(*replaced, strict=True)]
    pairs = list(zip(flat(expected), flat(found), strict=True))
    assert all((a == b) == (a not in broken) and b not in broken for a, b in pairs)
    assert skipped == sum(a in broken for a, _ in pairs) > 0
    assert faults == {f"number {i} is broken" for i in broken}


def test_a_block_of_broken_records_ends_the_run(monkeypatch: pytest.MonkeyPatch):
    play(monkeypatch, 0, 1)
    data = Numbers(9, broken=tuple(range(9)))
    with pytest.raises(DataError, match="5 images in a row are broken, the first: number"):
        labels(training_batches(data, BATCH, SEED, 0, 0, skip_broken=True), 3)


# ---- tar files over a wire -----------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards with 24 labelled pictures in all."""
    for k in range(3):
        tar(tmp_path / f"data/{k:02d}.tar", labelled(8 * k, 8))
    return tmp_path / "data"


class Server(http.server.SimpleHTTPRequestHandler):
    """Serves a folder; the answers to the first `failures` requests break off half-way."""

    failures = 0

    def log_message(self, *_: object) -> None:
        pass

    def copyfile(self, source: Any, outputfile: Any) -> None:
        data = source.read()
        if Server.failures:
            Server.failures -= 1
            data = data[: len(data) // 2]
        outputfile.write(data)


@pytest.fixture
def address(folder: Path) -> Iterator[str]:
    """URL of the folder."""
    handler = functools.partial(Server, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_way_to_the_shards_gives_the_same_images(folder: Path, address: str):
    expected = ImageDir(folder)
    subprocess.run(["gzip", "-k", *folder.glob("*.tar")], check=True)
    names = "{00..02}.tar"
    for path in (
        *(folder, folder / names, f"{address}/{names}"),
        *(f"pipe:cat '{folder}'/{names}", f"{address}/{names}.gz"),
    ):
        data = get_dataset("datautils.tarstream.TarStream", "train", path=str(path), num_classes=3)
        assert data.shards == 3 and data.image_shape == (3, 4, 4)
        items = [data.decode(record) for k in range(3) for record in data.records(k)]
        assert len(items) == 24
        for i, (image, label) in enumerate(items):
            assert torch.equal(image, expected[i][0]) and label == expected[i][1]
        assert [r.label for r in data.records(1, 5)] == [expected[i][1] for i in range(13, 16)]


def test_a_run_on_tar_files_over_a_wire(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
):
    play(monkeypatch, 0, 1)
    data = TarStream(f"{address}/{{00..02}}.tar")
    batches = training_batches(data, 6, SEED, 0, 2)
    images = torch.cat([images for images, _ in itertools.islice(batches, 4)])
    expected = ImageDir(folder)
    whole = sorted(bytes(expected[i][0].numpy()) for i in range(24))
    assert sorted(map(bytes, images.numpy())) == whole


def test_labels_are_left_out_unless_their_number_is_given(folder: Path, tmp_path: Path):
    data = TarStream(str(folder))
    assert data.num_classes == 0 and data.decode(next(data.records(0)))[1] == -1
    data = TarStream(str(folder), num_classes=2)
    with pytest.raises(DataError, match=r"002\.png in .*00\.tar has the label 2, but there are 2"):
        [data.decode(record) for record in data.records(0)]
    data = TarStream(str(tar(tmp_path / "a.tar", {"a.png": png(0)})), num_classes=2)
    with pytest.raises(DataError, match=r"a\.png in .*a\.tar has no label"):
        data.decode(next(data.records(0)))


def test_pictures_of_one_sample_are_not_gathered_without_labels(tmp_path: Path):
    path = tar(tmp_path / "a.tar", {f"frame.{i}.png": png(i) for i in range(20)})
    path.write_bytes(path.read_bytes()[:6000])  # the later ones are missing
    first = next(TarStream(str(path)).records(0))
    assert first.data == png(0)
    with pytest.raises(DataError, match="cut off"):
        next(TarStream(str(path), num_classes=2).records(0))


def test_heldout_images_are_kept_in_memory(folder: Path):
    options = {"heldout_path": str(folder / "{01..02}.tar"), "num_classes": 3}
    data = TarStream("pipe:none", "heldout", heldout=10, **options)  # type: ignore[arg-type]
    expected = ImageDir(folder)
    assert len(data) == 10 and data.image_shape == (3, 4, 4)
    for i in range(10):
        assert torch.equal(data[i][0], expected[8 + i][0]) and data[i][1] == expected[8 + i][1]
    with pytest.raises(ValueError, match="heldout=N must say"):
        TarStream(str(folder), "heldout", **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="heldout_path must name"):
        TarStream(str(folder), "heldout", heldout=3)
    for use in (len, lambda stream: stream[0]):
        with pytest.raises(DataError, match="neither a length nor an index"):
            use(TarStream(str(folder)))


def test_a_connection_that_breaks_off_is_taken_up_again(
    folder: Path, address: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tarstream, "_PAUSE", 0)
    data = TarStream(f"{address}/00.tar", num_classes=3)
    expected = [data.decode(record) for record in data.records(0)]
    monkeypatch.setattr(Server, "failures", 3)
    again = [data.decode(record) for record in data.records(0)]
    assert Server.failures == 0
    assert all(torch.equal(a[0], b[0]) for a, b in zip(expected, again, strict=True))
    monkeypatch.setattr(Server, "failures", 9)
    with pytest.raises(DataError, match=rf"{address}/00\.tar") as error:
        list(data.records(0))
    assert "\n" not in str(error.value)


def test_what_cannot_be_read_is_told(folder: Path, address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tarstream, "_PAUSE", 0)
    (folder / "01.tar").write_bytes((folder / "01.tar").read_bytes()[:3000])
    for path, message in {
        f"{address}/05.tar": r"05\.tar cannot be read: 404",
        "http://127.0.0.1:1/a.tar": r"127\.0\.0\.1:1/a\.tar cannot be read: .*refused",
        "http://[bad/a.tar": r"\[bad/a\.tar is no URL",
        "pipe:exit 3": "pipe:exit 3 failed with exit code 3",
        f"pipe:cat {folder}/00.tar; exit 3": "failed with exit code 3",
        f"{folder}/01.tar": r"01\.tar is no tar file, or damaged or cut off",
        f"pipe:cat {folder}/01.tar": r"01\.tar is no tar file, or damaged or cut off",
    }.items():
        with pytest.raises(DataError, match=message) as error:
            list(TarStream(path).records(0))
        assert "\n" not in str(error.value)
    (folder / "empty").mkdir()
    for path, message in {
        "nowhere": "nowhere is not there: it should be a tar shard",
        "s3://bucket/{0..9}.tar": r"s3://bucket/\{0..9\}\.tar is no URL .* pipe:COMMAND",
        str(folder / "empty"): "empty is a folder without tar shards",
    }.items():
        with pytest.raises(DataError, match=message):
            TarStream(path)


def test_a_pipe_left_early_ends_its_command(folder: Path):
    data = TarStream(f"pipe:cat {folder}/00.tar; exec sleep 60")
    reader = data.records(0)
    next(reader)
    reader.close()  # type: ignore[attr-defined]
    listed = subprocess.run(
        ["ps", "-o", "args=", "--ppid", str(os.getpid())], capture_output=True, text=True
    )
    assert "sleep 60" not in listed.stdout


def test_a_damaged_header_within_a_stream(folder: Path):
    path = folder / "00.tar"
    with tarfile.open(path) as archive:
        start = archive.getmembers()[6].offset
    data = bytearray(path.read_bytes())
    data[start + 100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"00\.tar.*a header is broken"):
        list(TarStream(str(path)).records(0))


# ---- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """folder/saved, folder/splits and folder/parquet: 23 labelled pictures."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
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


MAP, STREAM = "datautils.huggingface.HuggingFace", "datautils.huggingface.HuggingFaceStream"


def check(items: list[tuple[Tensor, int]], numbers: range) -> None:
    from PIL import Image

    assert len(items) == len(numbers)
    for (image, label), i in zip(items, numbers, strict=True):
        expected = to_tensor(Image.open(io.BytesIO(png(i))))
        assert torch.equal(image, expected) and label == i % 3


def test_saved_data_sets(hub: Path):
    data = get_dataset(MAP, "all", path=str(hub / "saved"))
    check([data[i] for i in range(len(data))], range(23))
    assert data.num_classes == 5 and data.image_shape == (3, 4, 4)
    train, heldout = (
        get_dataset(MAP, split, path=str(hub / "saved"), heldout=4)
        for split in ("train", "heldout")
    )
    check([train[i] for i in range(len(train))], range(19))
    check([heldout[i] for i in range(len(heldout))], range(19, 23))
    options = {"path": str(hub / "splits"), "heldout_split": "validation"}
    train, heldout = (get_dataset(MAP, split, **options) for split in ("train", "heldout"))
    check([train[i] for i in range(len(train))], range(20))
    check([heldout[i] for i in range(len(heldout))], range(20, 23))
    with pytest.raises(IndexError):
        heldout[3]


def test_files_of_a_hub(hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    data = get_dataset(MAP, "all", path=str(hub / "parquet"), size=8)
    assert len(data) == 23 and data.image_shape == (3, 8, 8) and data.num_classes == 5


@pytest.mark.parametrize(("folder", "shards"), [("saved", 3), ("parquet", 4)])
def test_streams_of_hugging_face(
    hub: Path, folder: str, shards: int, monkeypatch: pytest.MonkeyPatch
):
    data = get_dataset(STREAM, "train", path=str(hub / folder))
    assert data.shards == shards and data.num_classes == 5
    check([data.decode(r) for k in range(shards) for r in data.records(k)], range(23))
    records = list(data.records(1))
    assert [r.data for r in data.records(1, 4)] == [r.data for r in records[4:]]
    assert [r.where for r in data.records(1, 4)] == [r.where for r in records[4:]]
    play(monkeypatch, 0, 1)
    batches = training_batches(data, 4, SEED, 0, 2)  # in workers of torch, each sees all shards
    found = torch.cat([images for images, _ in itertools.islice(batches, 5)])
    batches = training_batches(data, 4, SEED, 0, 0)
    assert torch.equal(found, torch.cat([images for images, _ in itertools.islice(batches, 5)]))


def test_heldout_rows_of_a_stream(hub: Path):
    options = {"path": str(hub / "splits"), "heldout_split": "validation"}
    data = get_dataset(STREAM, "heldout", heldout=2, **options)
    check([data[i] for i in range(len(data))], range(20, 22))
    with pytest.raises(ValueError, match="heldout_split must name"):
        get_dataset(STREAM, "heldout", path=str(hub / "splits"), heldout=2)


@pytest.mark.parametrize("name", [MAP, STREAM])
def test_faults_of_hugging_face_are_one_sentence(hub: Path, name: str):
    for options, message in [
        ({"path": "owner/name"}, "the split train of owner/name cannot be read"),
        ({"path": str(hub / "nowhere")}, "nowhere cannot be read"),
        ({"path": str(hub / "splits"), "train_split": "test"}, "no split test; it has train, vali"),
        ({"path": str(hub / "saved"), "image_column": "photo"}, "no column photo; it has image, l"),
        ({"path": str(hub / "saved"), "label_column": "kind"}, "no column kind; it has image, l"),
    ]:
        with pytest.raises(DataError, match=message) as error:
            get_dataset(name, "train", **options)
        assert "\n" not in str(error.value)


def test_a_stream_of_other_things_than_pictures(hub: Path):
    data = get_dataset(STREAM, "train", path=str(hub / "saved"), image_column="text")
    with pytest.raises(DataError, match="0 cannot be read: No such file"):
        data.decode(next(data.records(0)))
    data = get_dataset(STREAM, "train", path=str(hub / "saved"), image_column="label")
    with pytest.raises(DataError, match=r"shard 0 of the split train of .* cannot be read"):
        next(data.records(0))


def test_labels_of_hugging_face(hub: Path):
    path = str(hub / "saved")
    assert get_dataset(MAP, "all", path=path, label_column="none").num_classes == 0
    with pytest.raises(DataError, match="the column label holds no pictures"):
        get_dataset(MAP, "all", path=path, image_column="label")
    with pytest.raises(DataError, match=r"the column text of .* holds (large_)?string"):
        get_dataset(MAP, "all", path=path, label_column="text")
    with pytest.raises(DataError, match=r"row 2 of .* has the label 2, but there are 2 classes"):
        get_dataset(MAP, "all", path=path, num_classes=2)
    data = get_dataset(STREAM, "all", path=path, label_column="text", num_classes=5)
    with pytest.raises(DataError, match=r"row 0 of shard 0 .* has no label"):
        data.decode(next(data.records(0)))


def test_labels_of_hugging_face_that_nobody_means(tmp_path: Path):
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("int64")})

    def saved(name: str, *labels: int) -> str:
        rows = {"image": [{"bytes": png(0), "path": None}] * len(labels), "label": labels}
        datasets.Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / name)
        return str(tmp_path / name)

    path = saved("large", 3, 2**40)
    with pytest.raises(DataError, match=r"column label of .* has the label 1099511627776, which"):
        get_dataset(MAP, "all", path=path)
    with pytest.raises(
        DataError, match=r"row 1 of .* has the label 1099511627776, but there are 5"
    ):
        get_dataset(MAP, "all", path=path, num_classes=5)
    none = get_dataset(MAP, "all", path=saved("none", -1, -7))
    assert none.num_classes == 0 and [none[i][1] for i in range(2)] == [-1, -1]


def test_rows_that_name_files_elsewhere():
    fsspec = pytest.importorskip("fsspec")
    with fsspec.open("memory://hub/a.png", "wb") as file:
        file.write(png(3))
    found, gone = ({"bytes": None, "path": f"memory://hub/{name}.png"} for name in "ab")
    assert cell_bytes(found, "row 0") == png(3)
    for cell in (gone, {"path": "nothing://a.png"}):
        with pytest.raises(DataError, match=r"^row 1 cannot be read: ") as error:
            cell_bytes(cell, "row 1")
        assert "\n" not in str(error.value)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    for name in (MAP, STREAM):
        with pytest.raises(DataError, match="needs the package datasets"):
            get_dataset(name, "all", path="owner/name")


# ---- a run ---------------------------------------------------------------------------------------


def train_on(folder: Path, path: str, *options: object, stop_at: int = 0) -> list[dict]:
    """The log of a run, which goes on after a first part where `stop_at` images say so."""
    run = [
        "--preset=tiny", "--data-class=datautils.tarstream.TarStream", f"--data-opt=path={path}",
        "--data-opt=size=16", "--batch=4", "--ramp=8", "--fp32", "--set=log_every=4",
        "--workers=0", f"--outdir={folder}", *map(str, options),
    ]  # fmt: skip
    first = [*run, f"--duration={stop_at or 40}", "--set=checkpoint_every=4"]
    again = ["--resume", str(folder), "--duration=40"]
    for arguments in (first, again) if stop_at else (first,):
        result = CliRunner().invoke(train.main, arguments)
        assert result.exit_code == 0, (result.exception, result.output[-500:])
    return [line for line in read_log(folder) if "loss" in line]


def test_a_run_on_a_stream_goes_on_where_it_stopped(folder: Path, tmp_path: Path):
    whole = train_on(tmp_path / "whole", str(folder))
    parts = train_on(tmp_path / "parts", str(folder), stop_at=16)
    assert [line["images"] for line in parts] == list(range(4, 44, 4))
    for one, other in zip(whole, parts, strict=True):
        assert one["loss"] == other["loss"] and one["broken"] == 0
    positions = [
        json.loads((path / "state.json").read_text())["progress"]["position"]
        for name in ("whole", "parts")
        for path in sorted((tmp_path / name / "checkpoints").iterdir())[-1:]
    ]
    assert positions[0] == positions[1] and len(positions[0]) == 2  # lanes, of 3 shards


def test_a_run_counts_what_it_skips(folder: Path, tmp_path: Path):
    files = labelled(0, 8) | {"003.png": png(3)[:80]}
    tar(folder / "00.tar", files)
    log = train_on(tmp_path / "run", str(folder / "00.tar"), "--skip-broken", stop_at=16)
    assert log[1]["broken"] == 1 and log[-1]["broken"] == 5  # five epochs of 8
    with pytest.raises(AssertionError, match=r"00\.tar is a damaged picture"):
        train_on(tmp_path / "other", str(folder / "00.tar"))
