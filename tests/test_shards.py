"""Tar shards on a disk: the same images as anywhere, their labels, damage told in one sentence."""

import bz2
import gzip
import io
import json
import lzma
import multiprocessing
import os
import pickle
import random
import tarfile
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from datautils import DataError, prepare, shards
from datautils.archive import is_there, open_archive
from datautils.ffhq import FFHQ64
from datautils.imagedir import ImageDir
from datautils.labels import read_labels
from datautils.shards import Shards
from datautils.streams import Record
from datautils.tarstream import TarStream


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A picture of noise that follows from the value."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def tar(path: Path, files: Mapping[str, bytes], format: int = tarfile.PAX_FORMAT) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def labelled(first: int, count: int, kind: str = "cls") -> dict[str, bytes]:
    """Samples 000.png, 000.cls ... with the label i mod 3."""
    files = {}
    for i in range(first, first + count):
        label = {"cls": b"%d", "json": b'{"caption": "x", "label": %d}', "bare.json": b"%d"}[kind]
        files[f"{i:03d}.png"] = png(i)
        files[f"{i:03d}.{kind.removeprefix('bare.')}"] = label % (i % 3)
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards with ten labelled pictures in all."""
    for k, (first, count) in enumerate([(0, 4), (4, 5), (9, 1)]):
        tar(tmp_path / f"data/train-{k:02d}.tar", labelled(first, count))
    return tmp_path / "data"


# ---- what is read --------------------------------------------------------------------------------


def test_shards_hold_what_a_folder_holds(folder: Path, tmp_path: Path):
    (tmp_path / "plain").mkdir()
    for i in range(10):
        (tmp_path / f"plain/{i:03d}.png").write_bytes(png(i))
    ours, plain = ImageDir(folder), ImageDir(tmp_path / "plain")
    assert ours.names == plain.names and ours.image_shape == (3, 4, 4)
    assert all(torch.equal(ours[i][0], plain[i][0]) for i in range(10))
    assert [ours[i][1] for i in range(10)] == [i % 3 for i in range(10)]
    assert ours.num_classes == 3 and ours.description["labels"] == "sidecar"


@pytest.mark.parametrize(
    ("pattern", "count"),
    [("", 10), ("train-00.tar", 4), ("train-{00..01}.tar", 9), ("train-0?.tar", 10),
     ("train-*1.tar", 5), ("train-{02..02}.tar", 1)],
)  # fmt: skip
def test_paths_of_shards(folder: Path, pattern: str, count: int):
    assert len(ImageDir(folder / pattern)) == count
    assert is_there(folder / pattern)


def test_shards_that_are_not_there(folder: Path):
    with pytest.raises(DataError, match=r"train-03\.tar, a shard of .*\{00\.\.03\}.*is not there"):
        ImageDir(folder / "train-{00..03}.tar")
    for nothing in ("val-*.tar", "none.tar"):
        assert not is_there(folder / nothing)
        with pytest.raises(DataError, match=r"is not there: it should be a folder or a zip file"):
            ImageDir(folder / nothing)
    with pytest.raises(DataError, match="must stand for 1 to"):
        ImageDir(folder / "train-{9..0}.tar")
    with pytest.raises(DataError, match="must stand for 1 to"):
        ImageDir(folder / "train-{0..99999}-{0..99999}.tar")


def test_published_splits_work_on_shards(tmp_path: Path):
    tar(tmp_path / "0.tar", {f"{i:05d}.png": png(i) for i in (59998, 59999, 60000)})
    assert len(FFHQ64(tmp_path / "*.tar", "train")) == 2
    assert FFHQ64(tmp_path, "heldout").names == ["60000.png"]


def test_pictures_come_before_tar_files(tmp_path: Path):
    tar(tmp_path / "a.tar", {"0.png": png(0)})
    (tmp_path / "1.png").write_bytes(png(1))
    assert ImageDir(tmp_path).names == ["1.png"]


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_formats_of_tar(tmp_path: Path, format: int):
    long = f"{'d' * 60}/{'e' * 90}.png"
    names = {
        "./a.png": png(0),
        long: png(1),
        ".hidden.png": b"",
        "__MACOSX/a.png": b"",
        "x.txt": b"",
    }
    archive = open_archive(tar(tmp_path / "a.tar", names, format))
    assert archive.names == ["a.png", long]
    assert archive.read("a.png") == png(0) and archive.read(long) == png(1)
    for other in ("x.txt", "b.png", "dataset.json"):
        with pytest.raises(DataError, match=f"{other} in .*a.tar is not there"):
            archive.read(other)


def sums(data: ImageDir, indices: range) -> list[int]:
    return [int(data[i][0].sum()) for i in indices]


def test_processes_share_shards(folder: Path):
    data = ImageDir(folder)
    expected = sums(data, range(10))
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(sums, (data, range(10))) == expected
    assert sums(pickle.loads(pickle.dumps(data)), range(10)) == expected


def test_few_files_are_open_at_a_time(folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(shards, "_OPEN_FILES", 2)
    data = ImageDir(folder)
    for _ in range(2):
        assert sums(data, range(9, -1, -1)) == [int(data[i][0].sum()) for i in range(9, -1, -1)]
        assert len(data._archive._files) == 2  # type: ignore[attr-defined]


# ---- the index -----------------------------------------------------------------------------------


def test_the_index_is_kept_beside_the_shards(folder: Path, monkeypatch: pytest.MonkeyPatch):
    first = ImageDir(folder)
    assert len(list(folder.glob(".index-*.npz"))) == 1 and len(list(folder.iterdir())) == 4

    def scanned(*_: object) -> None:
        raise AssertionError("the headers were read again")

    with monkeypatch.context() as patch:
        patch.setattr(shards, "_scan", scanned)
        again = ImageDir(folder)
    assert again.names == first.names and again[7][1] == first[7][1]
    assert all(torch.equal(again[i][0], first[i][0]) for i in range(10))


def test_the_index_of_other_shards_is_not_believed(folder: Path):
    assert len(ImageDir(folder)) == 10
    tar(folder / "train-02.tar", labelled(20, 7))
    assert len(ImageDir(folder)) == 16
    (index,) = folder.glob(".index-*.npz")
    index.write_bytes(index.read_bytes()[:200])
    assert len(ImageDir(folder)) == 16
    index.write_bytes(b"PK nonsense")
    assert len(ImageDir(folder)) == 16


def test_a_folder_that_cannot_be_written_has_no_index(
    folder: Path, monkeypatch: pytest.MonkeyPatch
):
    def refused(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shards.tempfile, "mkstemp", refused)
    assert len(ImageDir(folder)) == 10 and not list(folder.glob(".index*"))


# ---- labels --------------------------------------------------------------------------------------


def test_shards_of_one_name_in_several_folders(tmp_path: Path):
    names = {"a": ["0.png"], "b": ["1.png"], "c": ["2.png"]}
    for folder, files in names.items():
        path = tar(tmp_path / folder / "x.tar", {name: png(0) for name in files})
        os.utime(path, (0, 0))  # the same sizes and times
    paths = {folder: tmp_path / folder / "x.tar" for folder in names}
    assert list(Shards(tmp_path, [paths["a"], paths["b"]]).names) == ["0.png", "1.png"]
    assert list(Shards(tmp_path, [paths["a"], paths["c"]]).names) == ["0.png", "2.png"]


def test_an_index_of_places_beyond_the_shards_is_not_believed(folder: Path):
    names = ImageDir(folder).names
    file = next(folder.glob(".index-*.npz"))
    for column in ("offset", "size", "shard"):
        with np.load(file) as kept:
            arrays = dict(kept)
        arrays[column] = arrays[column] + arrays[column].dtype.type(2**31)
        np.savez(file, **arrays)
        data = ImageDir(folder)
        assert data.names == names and data[0][0].shape == (3, 4, 4)


@pytest.mark.parametrize("kind", ["cls", "json", "bare.json"])
def test_sidecars_of_a_sample_are_its_label(tmp_path: Path, kind: str):
    archive = open_archive(tar(tmp_path / "a.tar", labelled(0, 5, kind)))
    assert read_labels(archive).values.tolist() == [0, 1, 2, 0, 1]
    assert read_labels(archive, "none").values.tolist() == [-1] * 5


def test_a_cls_outdoes_a_json_and_a_json_may_have_no_label(tmp_path: Path):
    files = {"a.png": png(0), "a.cls": b"4\n", "a.json": b'{"label": 3}', "b.x.json": b"7",
             "b.json": b"5", "b.cls": b"6", "b.left.png": png(1)}  # fmt: skip
    archive = open_archive(tar(tmp_path / "a.tar", files))
    assert read_labels(archive).values.tolist() == [4, 6]
    captions = {"a.png": png(0), "a.json": b'{"caption": "a cat"}'}
    archive = open_archive(tar(tmp_path / "b.tar", captions))
    assert read_labels(archive).mode == "none"
    with pytest.raises(DataError, match=r"b\.tar has no \.cls or \.json with labels"):
        read_labels(archive, "sidecar")


@pytest.mark.parametrize("text", [b"cat", b"-1", b"1.5", b"true", b"", b"9" * 30, b"\xff"])
def test_labels_that_are_none(tmp_path: Path, text: bytes):
    files = labelled(0, 3) | {"001.cls": text}
    path = tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"beside 001\.png in .*a\.tar holds no whole number"):
        ImageDir(path)
    assert len(ImageDir(path, labels="none")) == 3


def test_a_cls_may_have_leading_zeros(tmp_path: Path):
    path = tar(tmp_path / "a.tar", {"0.png": png(0), "0.cls": b"007\n"})
    assert ImageDir(path)[0][1] == 7


def test_a_missing_label_is_told(tmp_path: Path):
    files = labelled(0, 3)
    del files["002.cls"]
    path = tar(tmp_path / "a.tar", files)
    with pytest.raises(DataError, match=r"^002\.png in .*a\.tar has no label: others have"):
        ImageDir(path)


def test_dataset_json_and_folders_in_shards(tmp_path: Path):
    text = json.dumps({"labels": [["a.png", 7], ["b.png", 2]]}).encode()
    files = {"a.png": png(0), "b.png": png(1), "dataset.json": text}
    assert [label for _, label in ImageDir(tar(tmp_path / "j.tar", files))] == [7, 2]  # type: ignore[attr-defined]
    files = {"cat/0.png": png(0), "dog/0.png": png(1)}
    assert ImageDir(tar(tmp_path / "f.tar", files)).num_classes == 2


# ---- damage --------------------------------------------------------------------------------------


def one_sentence(error: pytest.ExceptionInfo) -> None:
    assert "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("share", [0.0, 0.2, 0.4, 0.5, 0.8, 0.999])
def test_a_shard_that_is_cut_off_is_told(folder: Path, share: float):
    """Wherever it was cut: also between two members, where tarfile sees nothing wrong."""
    path = folder / "train-01.tar"
    with tarfile.open(path) as archive:
        end = max(info.offset_data + -(-info.size // 512) * 512 for info in archive)
    whole = path.read_bytes()[:end]
    path.write_bytes(whole[: int(share * end) // 512 * 512])
    with pytest.raises(DataError, match=r"train-01\.tar") as error:
        ImageDir(folder)
    one_sentence(error)


def test_a_shard_cut_off_between_two_members(folder: Path):
    path = folder / "train-01.tar"
    with tarfile.open(path) as archive:
        start = archive.getmembers()[4].offset
    path.write_bytes(path.read_bytes()[:start])
    with pytest.raises(DataError, match=r"train-01\.tar.*the end is missing") as error:
        ImageDir(folder)
    one_sentence(error)


@pytest.mark.parametrize("member", [0, 3])
def test_a_damaged_header_is_told(folder: Path, member: int):
    """tarfile takes one in the middle for the end of the archive."""
    path = folder / "train-00.tar"
    with tarfile.open(path) as archive:
        start = archive.getmembers()[member].offset
    data = bytearray(path.read_bytes())
    data[start + 100] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"train-00\.tar.*a header is broken") as error:
        ImageDir(folder)
    one_sentence(error)


@pytest.mark.parametrize("content", [b"", b"no tar at all" * 100, bytes(511)])
def test_other_files_are_no_shards(tmp_path: Path, content: bytes):
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.tar is no tar file, or damaged") as error:
        ImageDir(tmp_path / "a.tar")
    one_sentence(error)


def records(path: Path, num_classes: int | None = None) -> list[Record]:
    """All of a stream."""
    data = TarStream(str(path), num_classes=num_classes)
    return [record for shard in range(data.shards) for record in data.records(shard)]


@pytest.mark.parametrize("suffix", [".tar.gz", ".tgz", ".tar"])
def test_compressed_shards_are_for_streams(tmp_path: Path, suffix: str):
    plain = tar(tmp_path / "plain.tar", {"0.png": png(0)})
    folder = tmp_path / "packed"
    folder.mkdir()
    (folder / f"0{suffix}").write_bytes(gzip.compress(plain.read_bytes()))
    for path in (folder, folder / f"0{suffix}", folder / "0*"):
        with pytest.raises(DataError, match=r"0\.t.* is compressed.*TarStream") as error:
            ImageDir(path)
        one_sentence(error)
        assert [record.data for record in records(path)] == [png(0)]


@pytest.mark.parametrize("kind", [tarfile.LNKTYPE, tarfile.SYMTYPE])
def test_a_picture_that_is_a_link_is_told(tmp_path: Path, kind: bytes):
    path = tar(tmp_path / "a.tar", {"0.png": png(0)})
    link = tarfile.TarInfo("1.png")
    link.type, link.linkname = kind, "0.png"
    readme = tarfile.TarInfo("README")
    readme.type, readme.linkname = kind, "0.png"
    with tarfile.open(path, "a") as archive:
        archive.addfile(readme)
    assert ImageDir(path).names == ["0.png"]
    with tarfile.open(path, "a") as archive:
        archive.addfile(link)
    for read in (ImageDir, records):
        with pytest.raises(DataError, match=r"1\.png in .*a\.tar is a link to 0\.png") as error:
            read(path)
        one_sentence(error)


def test_the_twins_of_macos_do_not_part_a_sample(tmp_path: Path):
    files = {name: b"" for name in ("._0.png", "0.png", "._0.cls", "0.cls")}
    path = tar(tmp_path / "a.tar", files | {"0.png": png(0), "0.cls": b"1"})
    assert ImageDir(path)[0][1] == 1
    assert [record.label for record in records(path, 2)] == [1]


def test_joined_tar_files_are_told(tmp_path: Path):
    parts = [tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i)}).read_bytes() for i in range(2)]
    (tmp_path / "both.tar").write_bytes(parts[0] + parts[1])
    for read in (ImageDir, records):
        with pytest.raises(DataError, match=r"both\.tar .* more follows its end") as error:
            read(tmp_path / "both.tar")
        one_sentence(error)
    (tmp_path / "padded.tar").write_bytes(parts[0] + bytes(3000))
    assert ImageDir(tmp_path / "padded.tar").names == ["0.png"]
    assert len(records(tmp_path / "padded.tar")) == 1


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize("filling", [0, 10**6])  # bytes: beyond what is read at a time
def test_joined_compressed_tar_files_are_told(tmp_path: Path, compress: Callable, filling: int):
    noise = random.Random(0).randbytes(filling)
    parts = [
        compress(tar(tmp_path / f"{i}.tar", {f"{i}.png": png(i), "noise": noise}).read_bytes())
        for i in range(2)
    ]
    both = tmp_path / "both.tar.gz"
    both.write_bytes(parts[0])
    assert [record.data for record in records(both)] == [png(0)]
    both.write_bytes(parts[0] + parts[1])
    with pytest.raises(DataError, match=r"both\.tar\.gz is no tar file, or damaged") as error:
        records(both)
    one_sentence(error)


def test_a_shard_that_is_gone_is_named(folder: Path):
    (folder / "train-03.tar").symlink_to("/nowhere/train-03.tar")
    with pytest.raises(DataError, match=r"train-03\.tar cannot be read: No such file"):
        ImageDir(folder)


def test_hidden_shards_are_left_out(folder: Path):
    (folder / ".train-09.tar").write_bytes(b"half of a copy")
    assert len(ImageDir(folder / "*.tar")) == len(ImageDir(folder)) == 10


def test_what_is_refused(tmp_path: Path):
    with pytest.raises(DataError, match=r"\.\./a\.png in .*a\.tar has a path that leaves"):
        ImageDir(tar(tmp_path / "a.tar", {"../a.png": png(0)}))
    tar(tmp_path / "twice/0.tar", {"a.png": png(0)})
    tar(tmp_path / "twice/1.tar", {"a.png": png(1)})
    with pytest.raises(DataError, match=r"a\.png is in .*0\.tar and again in .*1\.tar"):
        ImageDir(tmp_path / "twice")
    with pytest.raises(DataError, match="holds no image"):
        ImageDir(tar(tmp_path / "empty.tar", {}))


def test_broken_and_mixed_images_name_their_shard(tmp_path: Path):
    files = {"0.png": png(0), "1.png": png(1)[:80], "2.png": png(2, (4, 6))}
    data = ImageDir(tar(tmp_path / "a.tar", files))
    with pytest.raises(DataError, match=r"^1\.png in .*a\.tar is a damaged picture"):
        data[1]
    with pytest.raises(DataError, match=r"2\.png in .*a\.tar has 4x6 pixels.*0\.png in .*4x4"):
        data[2]


def test_a_shard_that_shrinks_meanwhile(tmp_path: Path):
    path = tar(tmp_path / "a.tar", labelled(0, 30))
    data = ImageDir(path)
    with path.open("r+b") as file:
        file.truncate(600)
    with pytest.raises(DataError, match=r"^000\.png in .*a\.tar is damaged, or was changed"):
        data[0]


# ---- preparing -----------------------------------------------------------------------------------


def run(*arguments: object) -> Result:
    return CliRunner().invoke(prepare.main, [str(argument) for argument in arguments])


def contents(path: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(path.glob("*.tar"))}


@pytest.mark.parametrize("labels", ["auto", "none"])
def test_prepared_shards_are_the_prepared_zip(tmp_path: Path, labels: str):
    source = tmp_path / "source"
    for i in range(10):
        path = source / f"n{i % 2}/{i:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(i, (20, 16)))
    options = ["--source", source, "--size", 8, "--labels", labels]
    results = [
        run(*options, "--dest", tmp_path / "a.zip", "--workers", 0),
        run(*options, "--dest", tmp_path / "a", "--workers", 0, "--shard-size", 4),
        run(*options, "--dest", tmp_path / "b", "--workers", 2, "--shard-size", 4),
    ]
    assert [r.exit_code for r in results] == [0, 0, 0], results[1].output
    assert "10 images of 8x8 pixels" in results[1].output
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert list(contents(tmp_path / "a")) == ["000000.tar", "000001.tar", "000002.tar"]
    zipped, sharded = ImageDir(tmp_path / "a.zip"), ImageDir(tmp_path / "a")
    assert sharded.names == zipped.names and sharded.num_classes == zipped.num_classes
    assert sharded.num_classes == (2 if labels == "auto" else 0)
    for i in range(10):
        assert torch.equal(sharded[i][0], zipped[i][0]) and sharded[i][1] == zipped[i][1]
    with tarfile.open(tmp_path / "a/000001.tar") as archive:  # the naming convention
        names = archive.getnames()
    assert names[:2] == (["n0/08.png", "n0/08.cls"] if labels == "auto" else names[:2])


def test_dots_in_names_become_underscores(tmp_path: Path):
    for name in ("a.v1.png", "a.v2.png"):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / "source" / name).write_bytes(png(0))
    options = ["--source", tmp_path / "source", "--size", 4, "--workers", 0, "--shard-size", 9]
    assert run(*options, "--dest", tmp_path / "a").exit_code == 0
    assert ImageDir(tmp_path / "a").names == ["a_v1.png", "a_v2.png"]
    (tmp_path / "source/a_v1.png").write_bytes(png(0))
    result = run(*options, "--dest", tmp_path / "b")
    assert result.exit_code == 2 and "two originals would become a_v1" in result.output
    assert not (tmp_path / "b").exists()


def test_nothing_half_written_is_left(tmp_path: Path):
    for i in range(9):
        (tmp_path / "source").mkdir(exist_ok=True)
        (tmp_path / f"source/{i}.png").write_bytes(png(i)[: 50 if i == 7 else None])
    options = ["--source", tmp_path / "source", "--size", 4, "--workers", 0, "--shard-size", 2]
    result = run(*options, "--dest", tmp_path / "new/out")
    assert result.exit_code == 2 and "7.png" in result.output
    assert os.listdir(tmp_path) == ["source"]
    result = run(*options, "--dest", tmp_path / "out", "--skip-broken")
    assert result.exit_code == 0 and "1 broken ones left out" in result.output
    assert len(ImageDir(tmp_path / "out")) == 8
    assert run(*options, "--dest", tmp_path / "out").exit_code == 2  # already there


def test_shards_are_originals_too(folder: Path, tmp_path: Path):
    dest = tmp_path / "again.zip"
    result = run("--source", folder, "--dest", dest, "--size", 4, "--workers", 0)
    assert result.exit_code == 0, result.output
    data = ImageDir(dest)
    assert [data[i][1] for i in range(10)] == [i % 3 for i in range(10)]
    assert isinstance(open_archive(folder), Shards)
