"""Preparing a data set: what is written, that it does not depend on how, and that faults leave
nothing behind."""

import errno
import io
import json
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result
from PIL import Image
from runner import Runner

from datautils import DataError, prepare
from datautils.ffhq import FFHQ64
from datautils.imagedir import ImageDir
from datautils.prepare import Originals, folder_originals

ROOT = Path(__file__).resolve().parents[2]
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
    return Runner().invoke(prepare.main, [str(option) for option in options])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "originals", ["n02/b.PNG", "n01/a.png", "n01/d/x.y.png"])


def test_squares_are_cut_and_resized(source: Path, tmp_path: Path):
    dest = tmp_path / "new/deep/out.zip"
    result = run("--source", source, "--dest", dest, "--size", 8, "--workers", 0)
    assert result.exit_code == 0, result.output
    assert f"{dest}: 3 images, 2 classes" in result.output
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
    assert "2 images, no classes" in result.output
    data = ImageDir(dest)
    assert data.names == ["n01/a.webp", "n01/d/x.y.webp"] and data.num_classes == 0
    expected = picture(1).crop((5, 3, 15, 13)).resize((5, 5), LANCZOS)  # webp without loss
    assert (data[0][0].permute(1, 2, 0).numpy() == np.array(expected)).all()
    with zipfile.ZipFile(dest) as archive:
        assert json.loads(archive.read("dataset.json")) == {"labels": None}


def test_a_limit_does_not_change_the_labels(source: Path, tmp_path: Path):
    (source / "n00").mkdir()
    (source / "n02").rename(source / "n00/n02")
    labels = [["n00/n02/b.PNG", 7], ["n01/a.png", 1], ["n01/d/x.y.png", 0]]
    (source / "dataset.json").write_text(json.dumps({"labels": labels}))
    dest = tmp_path / "out.zip"
    result = run("--source", source, "--dest", dest, "--size", 4, "--workers", 0, "--limit", 2)
    assert result.exit_code == 0, result.output
    data = ImageDir(tmp_path / "out.zip")
    assert [data[i][1] for i in range(2)] == [7, 1]


def test_the_result_does_not_depend_on_the_workers(tmp_path: Path):
    source = make(tmp_path / "originals", [f"{i % 7}/{i:02d}.png" for i in range(40)])
    for workers in (0, 1, 2):
        prepare.prepare(
            folder_originals(source), tmp_path / f"{workers}.zip", size=8, workers=workers
        )
    one, *others = ((tmp_path / f"{workers}.zip").read_bytes() for workers in (0, 1, 2))
    assert all(other == one for other in others)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_broken_original_is_named_and_nothing_is_left(source: Path, tmp_path: Path, workers: int):
    (source / "n02/b.PNG").write_bytes(b"no picture")
    before = sorted(tmp_path.rglob("*"))
    dest = tmp_path / "out.zip"
    options = ["--source", source, "--dest", dest, "--size", 8, "--workers", workers]
    result = run(*options)
    assert result.exit_code == 2
    last = result.stderr.splitlines()[-1]
    assert last.startswith(f"error: {source}/n02/b.PNG is no picture")
    assert sorted(tmp_path.rglob("*")) == before
    result = run(*options, "--skip-broken")
    assert result.exit_code == 0
    assert f"left out: {source}/n02/b.PNG is no picture" in result.stderr
    assert "2 images, 1 classes; 1 broken ones left out" in result.output
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
        (
            ["--source", "TMP/originals", "--labels", "json"],
            "error: TMP/originals holds no data",
        ),
        (["--source", "TMP/originals", "--hub", "a/b"], "error: give one of --source and --hub"),
        ([], "error: give one of --source and --hub"),
        (
            ["--source", "TMP/originals", "--dest", "TMP/originals"],
            "TMP/originals is there already",
        ),
        (
            ["--source", "TMP/originals", "--dest", "TMP/originals/n01/a.png/x.zip"],
            "a.png is no folder that can be written",
        ),
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


def test_a_full_disk_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(zipfile.ZipFile, "writestr", full)
    before = sorted(tmp_path.rglob("*"))
    result = run("--source", source, "--dest", tmp_path / "x.zip", "--size", 8, "--workers", 0)
    assert result.exit_code == 2 and sorted(tmp_path.rglob("*")) == before
    assert result.stderr.endswith("x.zip cannot be written: No space left on device\n")


@pytest.mark.parametrize("workers", [0, 1])
def test_too_little_memory_is_told(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int
):
    def fit(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(prepare, "fit", fit)
    dest = tmp_path / "new/x.zip"
    result = run("--source", source, "--dest", dest, "--size", 9000, "--workers", workers)
    assert result.exit_code == 2 and "error: memory does not suffice" in result.stderr
    assert list(dest.parent.iterdir()) == []


def test_no_more_workers_than_images(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    def in_order(function: Callable, inputs: Any, workers: int) -> Any:
        started.append(workers)
        yield from map(function, inputs)

    monkeypatch.setattr(prepare, "in_order", in_order)
    run("--source", source, "--dest", tmp_path / "x.zip", "--size", 8, "--workers", 300)
    assert started == [3]


def test_files_that_would_become_one(tmp_path: Path):
    source = make(tmp_path / "originals", ["a/b.png", "a/b-1.png", "a/b.bmp"])
    with pytest.raises(DataError, match=r"two files a/b, which differ in the extension only"):
        folder_originals(source)


def test_numbers_of_ffhq_survive(tmp_path: Path):
    source = make(tmp_path / "originals", ["59000/59999.png", "60000/60000.png"])
    prepare.prepare(folder_originals(source), tmp_path / "out.zip", size=64)
    assert FFHQ64(tmp_path / "out.zip", "heldout").names == ["60000/60000.png"]


def interrupt(index: int) -> tuple[bytes, str]:
    if index:
        raise KeyboardInterrupt
    return png(picture()), "a.png"


def test_an_interrupt_leaves_nothing(tmp_path: Path):
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(Originals(["a", "b"], [-1, -1], interrupt), tmp_path / "out.zip", size=8)
    assert not list(tmp_path.iterdir())


def test_workers_end_with_the_process_that_was_killed(tmp_path: Path):
    source = make(tmp_path / "originals", [f"{i:03d}.png" for i in range(600)])
    command = [sys.executable, "-m", "datautils.prepare", "--source", source, "--size", "300"]
    command += ["--dest", tmp_path / "x.zip", "--workers", "2"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        while not any(path.stat().st_size for path in tmp_path.glob(".x.zip.*")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()  # workers are there, and have prepared something
        process.communicate(timeout=60)  # to the end: until the last that could write has ended
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "x.zip").exists()


def test_a_killed_worker_is_told(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(prepare, "fit", die)
    with pytest.raises(DataError, match="a process that loads images was killed"):
        prepare.prepare(folder_originals(source), tmp_path / "out.zip", size=8, workers=1)
    assert list(tmp_path.iterdir()) == [source]


def die(*args: Any, **options: Any) -> bytes:
    import os

    os._exit(1)


# ---- Hugging Face --------------------------------------------------------------------------------


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A saved data set of three rows, one of which names a file."""
    datasets = pytest.importorskip("datasets")
    datasets.disable_progress_bars()
    (tmp_path / "local.png").write_bytes(png(picture(1)))
    cells = [{"bytes": png(picture(0)), "path": None}, {"path": str(tmp_path / "local.png")}]
    features = {"photo": datasets.Image(), "kind": datasets.Value("int64")}
    rows = {"photo": [*cells, {"bytes": b"no picture", "path": None}], "kind": [3, 0, 1]}
    saved = datasets.Dataset.from_dict(rows, features=datasets.Features(features))
    saved.save_to_disk(tmp_path / "rows")
    return tmp_path / "rows"


def test_rows_of_the_hub(hub: Path, tmp_path: Path):
    dest = tmp_path / "out.zip"
    options = ["--hub", hub, "--dest", dest, "--size", 8, "--workers", 0]
    result = run(*options, "--image-column", "photo", "--label-column", "kind", "--limit", 2)
    assert result.exit_code == 0, result.output
    data = ImageDir(dest)
    assert data.names == ["00000/00000000.png", "00000/00000001.png"]
    assert [data[i][1] for i in range(2)] == [3, 0]
    expected = picture(1).crop((2, 0, 18, 16)).resize((8, 8), LANCZOS)
    assert (data[1][0].permute(1, 2, 0).numpy() == np.array(expected)).all()
    dest.unlink()
    result = run(*options, "--image-column", "photo", "--skip-broken")
    assert "2 images, no classes; 1 broken ones left out" in result.output
    assert "left out: row 2 of the split train of" in result.stderr


def test_the_hub_out_of_reach(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    result = run("--hub", "owner/name", "--dest", tmp_path / "new/out.zip", "--size", 8)
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
    with Image.open(io.BytesIO(originals.picture(7)[0])) as image:
        expected = np.array(image.convert("RGB").resize((64, 64), LANCZOS))
    assert (data[7][0].permute(1, 2, 0).numpy() == expected).all()
