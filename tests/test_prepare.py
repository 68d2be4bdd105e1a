"""Preparing a data set: what is written, that it does not depend on how, and that faults leave
nothing behind."""

import errno
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from datautils import DataError, originals, prepare
from datautils.archive import open_archive
from datautils.ffhq import FFHQ64
from datautils.imagedir import ImageDir
from datautils.originals import Source, archive_source, hub_source

ROOT = Path(__file__).resolve().parents[1]
LANCZOS = Image.Resampling.LANCZOS


def picture(seed: int = 0, width: int = 20, height: int = 16) -> Image.Image:
    values = np.random.default_rng(seed).integers(0, 256, (height, width, 3), np.uint8)
    return Image.fromarray(values)


def png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def make(folder: Path, names: list[str]) -> Path:
    for i, name in enumerate(names):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(picture(i)))
    return folder


def run(*options: Any) -> Result:
    return CliRunner().invoke(prepare.main, [str(option) for option in options])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "originals", ["n02/b.PNG", "n01/a.png", "n01/d/x.y.png"])


def test_squares_are_cut_and_resized(source: Path, tmp_path: Path):
    dest = tmp_path / "new/deep/out.zip"
    result = run("--source", source, "--dest", dest, "--size", 8, "--workers", 0)
    assert result.exit_code == 0, result.output
    assert f"{dest}: 3 images of 8x8 pixels, 2 classes" in result.output
    assert [path.name for path in dest.parent.iterdir()] == ["out.zip"]
    with zipfile.ZipFile(dest) as archive:
        names = ["n01/a.png", "n01/d/x.y.png", "n02/b.png", "dataset.json"]
        assert archive.namelist() == names
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        labels = json.loads(archive.read("dataset.json"))
        assert labels == {"labels": [[names[0], 0], [names[1], 0], [names[2], 1]]}
    data = ImageDir(dest)
    assert data.num_classes == 2 and data.image_shape == (3, 8, 8)
    expected = picture(1).crop((2, 0, 18, 16)).resize((8, 8), LANCZOS)
    assert (data[0][0].permute(1, 2, 0).numpy() == np.array(expected)).all()


def test_crop_format_labels_and_limit(source: Path, tmp_path: Path):
    dest = tmp_path / "out.zip"
    options = ["--size", 5, "--crop", 10, "--format", "webp", "--labels", "none", "--limit", 2]
    result = run("--source", source, "--dest", dest, "--workers", 0, *options)
    assert result.exit_code == 0, result.output
    assert "2 images of 5x5 pixels, no labels" in result.output
    data = ImageDir(dest)
    assert data.names == ["n01/a.webp", "n01/d/x.y.webp"] and data.num_classes == 0
    expected = picture(1).crop((5, 3, 15, 13)).resize((5, 5), LANCZOS)  # webp without loss
    assert (data[0][0].permute(1, 2, 0).numpy() == np.array(expected)).all()
    assert json.loads(open_archive(dest).read("dataset.json")) == {"labels": None}


def test_a_limit_does_not_change_the_labels(source: Path, tmp_path: Path):
    (source / "n00").mkdir()
    (source / "n02").rename(source / "n00/n02")
    labels = [["n00/n02/b.PNG", 7], ["n01/a.png", 1], ["n01/d/x.y.png", 0]]
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    prepare.prepare(archive_source(source, limit=2), tmp_path / "out.zip", size=4)
    data = ImageDir(tmp_path / "out.zip")
    assert [data[i][1] for i in range(2)] == [7, 1]


def test_the_result_does_not_depend_on_the_workers(tmp_path: Path):
    source = make(tmp_path / "originals", [f"{i % 7}/{i:02d}.png" for i in range(40)])
    for workers in (0, 1, 2):
        prepare.prepare(
            archive_source(source), tmp_path / f"{workers}.zip", size=8, workers=workers
        )
    one, *others = ((tmp_path / f"{workers}.zip").read_bytes() for workers in (0, 1, 2))
    assert all(other == one for other in others)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_original_is_named_and_nothing_is_left(source: Path, tmp_path: Path, workers: int):
    (source / "n02/b.PNG").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    dest = tmp_path / "new/deep/out.zip"
    options = ["--source", source, "--dest", dest, "--size", 8, "--workers", workers]
    result = run(*options)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {source}/n02/b.PNG is no picture")
    assert sorted(tmp_path.rglob("*")) == before
    result = run(*options, "--skip-broken")
    assert result.exit_code == 0
    assert f"left out: {source}/n02/b.PNG is no picture" in result.stderr
    assert "2 images of 8x8 pixels, 1 classes; 1 broken ones left out" in result.output
    assert ImageDir(dest).names == ["n01/a.png", "n01/d/x.y.png"]


def test_when_every_original_is_broken(tmp_path: Path):
    (tmp_path / "originals").mkdir()
    (tmp_path / "originals/a.png").write_bytes(b"")
    before = sorted(tmp_path.rglob("*"))
    options = ["--source", tmp_path / "originals", "--dest", tmp_path / "x.zip", "--size", 8]
    result = run(*options, "--workers", 0, "--skip-broken")
    assert result.exit_code == 2 and "error: none of the originals" in result.stderr
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "TMP/nowhere"], "error: TMP/nowhere is not there"),
        (["--source", "TMP/originals", "--crop", "17"], "is of 20x16 pixels, too small for a crop"),
        (["--source", "TMP/originals", "--labels", "json"], "error: TMP/originals/dataset.json"),
        (["--source", "TMP/originals", "--hub", "a/b"], "error: give one of --source and --hub"),
        ([], "error: give one of --source and --hub"),
        (["--hub", "a/b", "--labels", "json"], "error: labels=json is for folders and zip files"),
        (
            ["--source", "TMP/originals", "--dest", "TMP/originals"],
            "TMP/originals is already there",
        ),
        (
            ["--source", "TMP/originals", "--dest", "TMP/originals/n01/a.png/x.zip"],
            "x.zip cannot be written: TMP/originals/n01/a.png is no folder",
        ),
        (["--source", "TMP/originals", "--dest", "TMP/x.tar"], "would be read as a shard"),
        (["--source", "TMP/originals", "--size", "1000000"], "size must be at most 9459 pixels"),
        (["--source", "TMP/originals", "--label-column", "x"], "--label-column goes with --hub"),
    ],
)
def test_bad_input_is_one_sentence(source: Path, tmp_path: Path, options: list[str], message: str):
    before = sorted(tmp_path.rglob("*"))
    result = run(
        "--dest", tmp_path / "out.zip", "--size", 8, "--workers", 0,
        *(option.replace("TMP", str(tmp_path)) for option in options),
    )  # fmt: skip
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert message.replace("TMP", str(tmp_path)) in last
    assert sorted(tmp_path.rglob("*")) == before


def test_a_name_that_is_not_utf8_is_told(tmp_path: Path):
    source = make(tmp_path / "originals", ["a.png"])
    try:
        (source / "a.png").rename(source / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    result = run("--source", source, "--dest", tmp_path / "x.zip", "--size", 8, "--workers", 0)
    assert result.exit_code == 2 and not (tmp_path / "x.zip").exists()
    assert r"\udcff.png' has a name that is not UTF-8: rename it" in result.stderr


def test_a_full_disk_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(prepare.ZipWriter, "add", full)
    before = sorted(tmp_path.rglob("*"))
    result = run("--source", source, "--dest", tmp_path / "x.zip", "--size", 8, "--workers", 0)
    assert result.exit_code == 2 and sorted(tmp_path.rglob("*")) == before
    assert result.stderr.endswith("x.zip cannot be written: No space left on device\n")


def test_files_that_would_become_one(tmp_path: Path):
    source = make(tmp_path / "originals", ["a/b.png", "a/b-1.png", "a/b.bmp"])
    with pytest.raises(
        DataError, match=r"a/b\.png differs from another file in the extension only"
    ):
        archive_source(source)


def test_numbers_of_ffhq_survive(tmp_path: Path):
    source = make(tmp_path / "originals", ["59000/59999.png", "60000/60000.png"])
    prepare.prepare(archive_source(source), tmp_path / "out.zip", size=64)
    assert FFHQ64(tmp_path / "out.zip", "heldout").names == ["60000/60000.png"]


def test_what_was_written_is_checked(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    dest = tmp_path / "out.zip"
    done = prepare.prepare(archive_source(source), dest, size=8)
    with pytest.raises(DataError, match=r"n01/a\.png in .*out\.zip is not of 9x9 pixels"):
        prepare.verify(dest, done, 9)
    with pytest.raises(DataError, match="does not hold the 4 images"):
        prepare.verify(dest, done._replace(names=[*done.names, "n03/x.png"]), 8)
    done.labels[1] = 1
    with pytest.raises(DataError, match="are not those written"):
        prepare.verify(dest, done, 8)
    monkeypatch.setattr(prepare, "convert", lambda *args, **options: png(picture()))
    with pytest.raises(DataError, match="is not of 8x8 pixels"):
        prepare.prepare(archive_source(source), tmp_path / "other.zip", size=8)
    assert sorted(tmp_path.iterdir()) == [source, dest]


def test_an_interrupt_leaves_nothing(source: Path, tmp_path: Path):
    def interrupted() -> Iterator:
        yield next(iter(archive_source(source).originals))
        raise KeyboardInterrupt

    for workers in (0, 2):
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(
                Source(interrupted(), None, False), tmp_path / "x/out.zip", size=8, workers=workers
            )
    assert list(tmp_path.iterdir()) == [source]


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path):
    source = make(tmp_path / "originals", [f"{i:03d}.png" for i in range(600)])
    command = [sys.executable, "-m", "datautils.prepare", "--source", source, "--size", "300"]
    command += ["--dest", tmp_path / "x.zip", "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        assert process.stderr
        shown = b""
        while b"images" not in shown:  # the bar: workers are there
            more = process.stderr.read(20)
            assert more, shown
            shown += more
        process.kill()
        process.communicate(timeout=60)  # to the end: until the last that could write has ended
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.zip").exists()


def test_a_killed_worker_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "convert", die)
    with pytest.raises(DataError, match="a worker process was killed"):
        prepare.prepare(archive_source(source), tmp_path / "out.zip", size=8, workers=1)
    assert list(tmp_path.iterdir()) == [source]


def die(*args: Any, **options: Any) -> bytes:
    import os

    os._exit(1)


def test_few_originals_are_in_memory_at_a_time(source: Path, tmp_path: Path):
    read = written = most = 0
    first = next(iter(archive_source(source).originals))

    def originals() -> Iterator:
        nonlocal read
        for i in range(300):
            read += 1
            yield first._replace(stem=f"{i:03d}")

    results = prepare._in_order(None, lambda data, where: data, originals(), 16)
    for _ in results:
        written += 1
        most = max(most, read - written)
    assert written == 300 and most < 16


# ---- the hub, played by a module of our own ------------------------------------------------------


class Rows(list):
    column_names = property(lambda self: list(self[0]) if self else None)

    def cast_column(self, column: str, kind: Any) -> "Rows":
        assert kind == "Image(decode=False)"
        return self

    def select_columns(self, names: list[str]) -> "Rows":
        return Rows({name: row[name] for name in names} for row in self)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., None]:
    """`hub(rows)`: every data set streams these rows; an exception is raised instead."""

    def play(rows: Any) -> None:
        def load_dataset(name: str, config: None, split: str, streaming: bool) -> Rows:
            assert (name, config, split, streaming) == ("owner/name", None, "train", True)
            if isinstance(rows, Exception):
                raise rows
            return Rows(rows)

        fake = SimpleNamespace(
            load_dataset=load_dataset, Image=lambda decode: f"Image(decode={decode})"
        )
        monkeypatch.setitem(sys.modules, "datasets", fake)

    return play


def test_the_hub_is_streamed(hub: Callable, tmp_path: Path):
    (tmp_path / "local.png").write_bytes(png(picture(1)))
    local = {"bytes": None, "path": str(tmp_path / "local.png")}
    hub([{"image": {"bytes": png(picture(0))}, "label": 3}, {"image": local, "label": 0}])
    dest = tmp_path / "out.zip"
    result = run("--hub", "owner/name", "--dest", dest, "--size", 8, "--workers", 0)
    assert result.exit_code == 0, result.output
    data = ImageDir(dest)
    assert data.names == ["00000/00000000.png", "00000/00000001.png"]
    assert [data[i][1] for i in range(2)] == [3, 0]
    expected = picture(1).crop((2, 0, 18, 16)).resize((8, 8), LANCZOS)
    assert (data[1][0].permute(1, 2, 0).numpy() == np.array(expected)).all()


def test_columns_of_the_hub(hub: Callable):
    hub([{"photo": {"bytes": b"x"}, "class": 1}, {"photo": None, "class": -1}])
    source = hub_source("owner/name", image_column="photo")
    assert not source.labelled  # there is no column "label"
    first, second = source.originals
    assert first.read() == b"x" and first.label == -1
    with pytest.raises(DataError, match="row 1 of owner/name holds no picture"):
        second.read()
    source = hub_source("owner/name", image_column="photo", label_column="class", limit=1)
    assert source.labelled and [original.label for original in source.originals] == [1]
    with pytest.raises(DataError, match="the label of row 1 of owner/name is -1"):
        list(hub_source("owner/name", image_column="photo", label_column="class").originals)
    with pytest.raises(DataError, match="no column kind; it has photo, class"):
        hub_source("owner/name", image_column="photo", label_column="kind")
    with pytest.raises(DataError, match="no column image; it has photo, class"):
        hub_source("owner/name")
    assert not hub_source("owner/name", image_column="photo", labels="none").labelled


def test_a_hub_without_a_first_row(hub: Callable, monkeypatch: pytest.MonkeyPatch):
    hub([])
    with pytest.raises(DataError, match=r"^the split train of owner/name is empty$"):
        hub_source("owner/name")

    def unread(rows: Rows) -> Iterator:
        raise ConnectionError("reset\nsecond line")

    monkeypatch.setattr(Rows, "__iter__", unread)
    with pytest.raises(DataError, match=r"^the first row of .*owner/name cannot be read: reset$"):
        hub_source("owner/name")


def test_rows_of_the_hub_that_end_early(hub: Callable):
    def broken() -> Iterator[dict]:
        yield {"image": {"bytes": b"x"}}
        raise ConnectionError("reset\nsecond line")

    with pytest.raises(DataError, match=r"^row 1 of the split train of a/b cannot be read: reset$"):
        list(originals._first_rows(broken(), "train of a/b", None))
    with pytest.raises(DataError, match=r"^the split train of a/b is empty$"):
        list(originals._first_rows([], "train of a/b", None))


def test_the_hub_out_of_reach(hub: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    hub(ConnectionError("Couldn't reach the Hub"))
    options = ["--hub", "owner/name", "--dest", tmp_path / "new/out.zip", "--size", 8]
    result = run(*options)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: the split train of owner/name cannot be read")
    assert "is there a network?" in result.stderr
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = run(*options)
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert "pip install datasets" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_real_photos(shared: Callable[[str], Path], tmp_path: Path):
    source = shared("data/photos256.zip")
    dest = tmp_path / "out.zip"
    result = run("--source", source, "--dest", dest, "--size", 64, "--workers", 2)
    assert result.exit_code == 0, result.output
    data, originals = ImageDir(dest), ImageDir(source)
    assert len(data) == len(originals) == 43 and data.names == originals.names
    with Image.open(io.BytesIO(open_archive(source).read(data.names[7]))) as image:
        expected = np.array(image.convert("RGB").resize((64, 64), LANCZOS))
    assert (data[7][0].permute(1, 2, 0).numpy() == expected).all()
