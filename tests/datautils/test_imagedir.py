"""Images from folders and zip files: names, labels, splits, sizes; faults told in one sentence."""

import contextlib
import json
import multiprocessing
import os
import pickle
import re
import struct
import tracemalloc
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datautils import DATASETS, DataError, get_dataset
from datautils.archive import open_archive
from datautils.ffhq import FFHQ64, FFHQ256
from datautils.imagedir import ImageDir
from datautils.imagenet import ImageNet64
from datautils.loading import load_batches

Shared = Callable[[str], Path]


def png(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    """A picture of one colour that tells which one it is: (value, 2·value, 3·value) mod 256."""
    file = BytesIO()
    Image.new("RGB", size, tuple(k * value % 256 for k in (1, 2, 3))).save(file, "PNG")
    return file.getvalue()


def make(path: Path, files: Any, labels: Any = "no file", method: int = 0) -> Path:
    """A zip file or, if its name has no extension, a folder. files: names, or {name: bytes}."""
    if not isinstance(files, dict):
        files = {name: png(i) for i, name in enumerate(files)}
    if labels != "no file":
        files = files | {"dataset.json": json.dumps({"labels": labels}).encode()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


@pytest.fixture(params=["folder", "archive.zip"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder and a zip file, which must behave alike."""
    return tmp_path / request.param


def labels_of(data: ImageDir) -> list[int]:
    return [label for _, label in data]  # type: ignore[attr-defined]


# ---- archives ------------------------------------------------------------------------------------


def test_names_are_the_pictures_sorted(where: Path):
    files = dict.fromkeys(
        ["b.JPEG", "a/2.png", "a/10.png", "a-1.webp", "notes.txt", ".hidden.png", "a/.x/1.png",
         "__MACOSX/b.png", "é.jpg"], b"content"
    )  # fmt: skip
    archive = open_archive(make(where, files))
    assert list(archive.names) == ["a-1.webp", "a/10.png", "a/2.png", "b.JPEG", "é.jpg"]
    for i, name in enumerate(archive.names):
        data, place = archive.picture(i)
        assert data == b"content" and place == archive.where(name) and name in place


def test_links_are_followed_once(tmp_path: Path):
    make(tmp_path / "elsewhere", ["1.png"])
    make(tmp_path / "folder", ["0.png"])
    (tmp_path / "folder/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder/loop").symlink_to(tmp_path / "folder")
    assert list(open_archive(tmp_path / "folder").names) == ["0.png", "more/1.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("variant", ["plain", "comment", "prefix", "zip64"])
def test_members_are_those_of_zipfile(tmp_path: Path, method: int, variant: str):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("folder/", b"")
        for i in range(20):
            with archive.open(f"folder/{i}.png", "w", force_zip64=variant == "zip64") as file:
                file.write(b"x%d" % i * (i % 50))
        if variant == "comment":
            archive.comment = b"PK\3\4 no entry"
    if variant == "prefix":  # put before it afterwards, so that all offsets are too small
        path.write_bytes(b"a program that unpacks itself" + path.read_bytes())
    ours = open_archive(path)
    with zipfile.ZipFile(path) as theirs:
        assert list(ours.names) == sorted(theirs.namelist())[1:]
        for i, name in enumerate(ours.names):
            assert ours.picture(i)[0] == theirs.read(name)


def with_plain_names(path: Path, names: dict[str, bytes], extra: bytes = b"") -> Path:
    """A zip file whose names are these bytes, without the flag for UTF-8. names: {ASCII: bytes of
    the same length}; extra: the extra field of every member."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            info = zipfile.ZipInfo(name)
            info.extra = extra
            archive.writestr(info, png(i))
    data = path.read_bytes()
    for name, raw in names.items():
        assert len(name) == len(raw)
        data = data.replace(name.encode(), raw)
    path.write_bytes(data)
    return path


def unicode_path(raw: bytes, name: str, version: int = 1) -> bytes:
    """The extra field 0x7075 that gives the plain name `raw` another one."""
    content = struct.pack("<BL", version, zlib.crc32(raw)) + name.encode()
    return struct.pack("<2H", 0x7075, len(content)) + content


@pytest.mark.parametrize(
    ("raw", "extra", "expected"),
    [
        ("é/a.png".encode(), b"", "é/a.png"),  # UTF-8 without the flag
        ("é/a.png".encode("cp437"), b"", "é/a.png"),
        (b"xx/a.png", unicode_path(b"xx/a.png", "жж/a.png"), "жж/a.png"),
        (b"xx/a.png", b"\1\x99\2\0ab" + unicode_path(b"xx/a.png", "ж/b.png"), "ж/b.png"),
        (b"xx/a.png", unicode_path(b"another", "ж/a.png"), "xx/a.png"),  # renamed since
        (b"xx/a.png", unicode_path(b"xx/a.png", "ж/a.png", version=2), "xx/a.png"),
        (b"xx\\a.png", b"", "xx/a.png"),
        (b"./xa.png", b"", "xa.png"),
    ],
)
def test_names_without_the_flag_for_utf8(tmp_path: Path, raw: bytes, extra: bytes, expected: str):
    plain = f"{'q' * (len(raw) - 4)}.png"
    archive = open_archive(with_plain_names(tmp_path / "a.zip", {plain: raw}, extra))
    assert list(archive.names) == [expected]
    assert archive.picture(0) == (png(0), f"{expected} in {tmp_path}/a.zip")


def test_backslashes_make_class_folders(tmp_path: Path):
    names = {"cat_a.png": b"cat\\a.png", "dog_b.png": b"dog\\b.png"}
    data = ImageDir(with_plain_names(tmp_path / "a.zip", names))
    assert labels_of(data) == [0, 1]


def test_many_entries_take_little_more_memory_than_their_names(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(10_000):
            archive.writestr(f"{i // 1000:05d}/img{i:08d}.png", b"")
    open_archive(make(tmp_path / "first.zip", ["a.png"]))  # whatever is imported once
    tracemalloc.start()
    try:
        opened = open_archive(tmp_path / "a.zip")
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(opened.names) == 10_000 and held < 80 * 10_000  # of zipfile it would be 500


def test_encrypted_and_unknown_compression_are_told(tmp_path: Path):
    path = make(tmp_path / "a.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    lzma = make(tmp_path / "b.zip", {"a.png": png()}, method=zipfile.ZIP_LZMA)
    for archive in (path, lzma):
        with pytest.raises(DataError, match=rf"a\.png in .*{archive.name} is encrypted or compr"):
            open_archive(archive)


def test_damaged_zips_are_told(tmp_path: Path):
    path = make(tmp_path / "a.zip", [f"{i}.png" for i in range(5)])
    whole = path.read_bytes()
    for data in (b"", b"PK\5\6", b"no zip" * 100, whole[:-100], whole[:20]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.zip is no zip file, or a damaged one"):
            open_archive(path)
    at = whole.index(png(0)) + 30
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    archive = open_archive(path)
    with pytest.raises(DataError, match=r"^0\.png in .*a\.zip is damaged"):
        archive.picture(0)
    assert archive.picture(1)[0] == png(1)


def test_any_damage_to_the_directory_raises_data_errors_only(tmp_path: Path):
    path = make(tmp_path / "a.zip", [f"{i}.png" for i in range(5)], method=zipfile.ZIP_DEFLATED)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    directory = whole.index(b"PK\1\2")
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[generator.integers(directory, len(data), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(DataError):
            archive = open_archive(path)
            for i in range(len(archive.names)):
                archive.picture(i)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere is not there"):
        open_archive(tmp_path / "nowhere")
    for path in (make(tmp_path / "folder", {"a.txt": b""}), make(tmp_path / "a.zip", {})):
        with pytest.raises(DataError, match=rf"{path.name} holds no image"):
            open_archive(path)


def test_threads_share_an_archive(where: Path):
    files = {f"{i:03d}.png": os.urandom(2000 + i) for i in range(200)}
    archive = open_archive(make(where, files))
    with ThreadPoolExecutor(8) as pool:
        read = [data for data, _ in pool.map(archive.picture, [*range(200)] * 5)]
    assert read == [*files.values()] * 5


def test_an_opened_archive_can_be_pickled(where: Path):
    archive = open_archive(make(where, ["a.png"]))
    assert pickle.loads(pickle.dumps(archive)).picture(0) == archive.picture(0)


# ---- sizes and splits ----------------------------------------------------------------------------

TEN = [f"{i}.png" for i in range(10)]


def test_items_have_the_promised_form(where: Path):
    data = ImageDir(make(where, {"a.png": png(7, (6, 4)), "b.png": png(8, (6, 4))}))
    assert data.image_shape == (3, 4, 6)
    assert data.num_classes == 0
    assert len(data) == 2 and data.names == ["a.png", "b.png"]
    image, label = data[1]
    assert image.shape == data.image_shape and image.dtype == torch.uint8 and label == -1
    assert image.unique().tolist() == [8, 16, 24]
    for index in (2, -1):
        with pytest.raises(IndexError):
            data[index]


def test_held_out_are_the_last_in_name_order(where: Path):
    make(where, reversed(TEN))
    train, heldout = (ImageDir(where, split, heldout=3) for split in ("train", "heldout"))
    assert train.names == TEN[:7] and heldout.names == TEN[7:]
    assert ImageDir(where, "all", heldout=3).names == TEN
    assert ImageDir(where, "train").names == TEN
    assert heldout[0][0].unique().tolist() == [2, 4, 6]  # 7.png was written third


def test_held_out_from_elsewhere(where: Path, tmp_path: Path):
    make(where, TEN)
    other = make(tmp_path / "other.zip", ["x.png"])
    assert ImageDir(where, "train", heldout_path=other).names == TEN
    assert ImageDir(where, "heldout", heldout_path=other).names == ["x.png"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "unknown split 'test'; known: train, heldout, all"),
        ({"split": "heldout"}, "nothing says which images are held out: give heldout=N or "
         'heldout_path=PATH, or take the split "all"'),
        ({"heldout": 1, "heldout_path": "x"}, "not both"),
        ({"split": "train", "heldout": 10}, "heldout=10 must leave images in both"),
        ({"heldout": 0}, "heldout must be an integer of at least 1, not 0"),
        ({"heldout": 1.5}, "heldout must be an integer of at least 1, not 1.5"),
        ({"size": "64"}, "size must be an integer of at least 1, not '64'"),
        ({"crop": True}, "crop must be an integer of at least 1, not True"),
        ({"num_classes": -1}, "num_classes must be"),
        ({"labels": "folders"}, "labels must be one of auto, json, subfolders, none"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path: Path, options: dict, message: str):
    path = make(tmp_path / "a.zip", TEN)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ImageDir(path, **options)
    assert not isinstance(caught.value, DataError)


def gradient(width: int, height: int) -> bytes:
    file = BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()


def test_crop_and_size(tmp_path: Path):
    data = gradient(14, 10)
    path = make(tmp_path / "a.zip", {"a.png": data})
    whole = Image.open(BytesIO(data))

    def item(**options: Any) -> np.ndarray:
        return ImageDir(path, **options)[0][0].permute(1, 2, 0).numpy()

    lanczos = Image.Resampling.LANCZOS
    assert (item(crop=4) == np.array(whole.crop((5, 3, 9, 7)))).all()
    square = whole.crop((2, 0, 12, 10))
    assert (item(size=5) == np.array(square.resize((5, 5), lanczos))).all()
    small = whole.crop((3, 1, 11, 9))
    assert (item(size=5, crop=8) == np.array(small.resize((5, 5), lanczos))).all()
    assert ImageDir(path, size=5, crop=8).image_shape == (3, 5, 5)
    assert ImageDir(path, crop=8).image_shape == (3, 8, 8)
    with pytest.raises(DataError, match=r"^a\.png in .*a\.zip is of 14x10 pixels, too small"):
        item(crop=11)


def test_an_image_of_another_shape_is_named(tmp_path: Path):
    path = make(tmp_path / "a.zip", {"a.png": png(0, (4, 5)), "b.png": png(0, (5, 4))})
    data = ImageDir(path)
    data[0]
    message = r"^b\.png in .*a\.zip has 5x4 pixels, but the first image has 4x5: give size or crop"
    with pytest.raises(DataError, match=message):
        data[1]
    assert ImageDir(path, size=4)[1][0].shape == (3, 4, 4)


def test_description_is_json(where: Path):
    data = ImageDir(make(where, TEN), "heldout", heldout=4, size=8)
    described = json.loads(json.dumps(data.description))
    assert described["path"] == str(where)
    assert described["count"] == 4 and described["size"] == 8 and described["crop"] is None
    assert described["split"] == "heldout" and described["labels"] == "none"


# ---- labels --------------------------------------------------------------------------------------

PAIR = ["x/a.png", "y/b.png"]


def test_dataset_json_in_a_subfolder_is_relative_to_it(where: Path):
    labels = json.dumps({"labels": [["x/a.png", 4], ["y/b.png", 0]]}).encode()
    files = {f"my/set/{name}": png() for name in PAIR} | {"my/set/dataset.json": labels}
    other = {"my/set/z/dataset.json": b"further down", ".cache/dataset.json": b"hidden"}
    assert labels_of(ImageDir(make(where, files | other))) == [4, 0]


@pytest.mark.parametrize("form", [list, dict])
def test_labels_of_dataset_json(where: Path, form: Any):
    labels = [["y/b.png", 0], ["x/a.png", 4]]
    data = ImageDir(make(where, PAIR, list(labels) if form is list else dict(labels)))
    assert data.num_classes == 5
    assert labels_of(data) == [4, 0]
    assert ImageDir(where, num_classes=9).num_classes == 9
    assert labels_of(ImageDir(where, labels="subfolders")) == [0, 1]
    assert labels_of(ImageDir(where, labels="none")) == [-1, -1]


def test_labels_of_subfolders(where: Path, tmp_path: Path):
    data = ImageDir(make(where, ["n02/a.png", "n01/b.png", "n02/deep/c.png"]))
    assert data.num_classes == 2
    assert labels_of(data) == [0, 1, 1]
    for names in (["0/a.png", "1/b.png"], ["x/a.png"], ["a.png"]):  # parts, one folder, none
        path = make(tmp_path / "other.zip", names)
        assert ImageDir(path).num_classes == 0
    path = make(tmp_path / "other.zip", ["0/a.png", "1/b.png"])
    assert ImageDir(path, labels="subfolders").num_classes == 2
    path = make(tmp_path / "other.zip", PAIR, None)  # dataset.json says there are none
    assert ImageDir(path).num_classes == 0


@pytest.mark.parametrize("root", ["root", "root/ds", "./root"])
def test_subfolders_below_one_folder_that_holds_everything(tmp_path: Path, root: str):
    path = tmp_path / "a.zip"

    def classes(*names: str, labels: str = "auto") -> tuple[int, list[int]]:
        data = ImageDir(make(path, [f"{root}/{name}" for name in names]), labels=labels)
        return data.num_classes, labels_of(data)

    assert classes("cats/1.png", "cat/deep/1.png", "cats/2.png") == (2, [0, 1, 1])
    assert classes("0/a.png", "1/b.png") == (0, [-1, -1])  # parts
    assert classes("0/a.png", "1/b.png", labels="subfolders") == (2, [0, 1])
    for names in (["a.png", "b.png"], ["a.png", "deep/b.png"]):
        assert classes(*names) == (0, [-1, -1])
        assert classes(*names, labels="subfolders") == (1, [0, 0])
    with pytest.raises(DataError, match=r"a\.png in .* has no label: it lies in no subfolder"):
        classes("a.png", "cat/1.png", "dog/1.png")


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([["x/a.png", 0]], "y/b.png in ARCHIVE has no label"),
        ([["x/a.png", 0], ["y/b.png", 1], ["z.png", 1]], "has a label for z.png, which is not"),
        ([["x/a.png", 0], ["y/b.png", -1]], "of y/b.png in dataset.json in ARCHIVE is -1, not an"),
        ([["x/a.png", 0], ["y/b.png", 1.0]], "the label of y/b.png in dataset.json in ARCHIVE"),
        ([["x/a.png", 0], ["y/b.png", True]], "the label of y/b.png in dataset.json in ARCHIVE"),
        ([["x/a.png", 0], ["y/b.png", 2**40]], "the label of y/b.png in dataset.json in ARCHIVE"),
        ([["x/a.png", 0], ["x/a.png", 1]], "dataset.json in ARCHIVE has two labels for x/a.png"),
        ([["x/a.png"]], "dataset.json in ARCHIVE holds ['x/a.png'], not [name, label]"),
        ("cat", '"labels" in dataset.json in ARCHIVE must be a list'),
        ([["x/a.png", 0], ["y/b.png", 3]], "y/b.png in ARCHIVE has the label 3, but there are 3"),
    ],
)  # fmt: skip
def test_wrong_labels_name_the_file(tmp_path: Path, labels: Any, message: str):
    path = make(tmp_path / "a.zip", PAIR, labels)
    with pytest.raises(DataError, match=re.escape(message.replace("ARCHIVE", str(path)))):
        ImageDir(path, num_classes=3)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"[]", b"{}", b"1"])
def test_a_broken_dataset_json_is_named(where: Path, content: bytes):
    make(where, {"a.png": png(), "dataset.json": content})
    with pytest.raises(DataError, match=r"dataset\.json.* (is no valid JSON|must hold)"):
        ImageDir(where)
    assert len(ImageDir(where, labels="none")) == 1


def test_labels_asked_for_and_not_there(where: Path):
    make(where, ["x/a.png", "y/b.png", "c.png"])
    with pytest.raises(DataError, match=r"c\.png.* has no label: it lies in no subfolder"):
        ImageDir(where)
    with pytest.raises(DataError, match=r"dataset\.json"):
        ImageDir(where, labels="json")
    with pytest.raises(DataError, match="has no labels, but should have 3 classes"):
        ImageDir(where, labels="none", num_classes=3)


def test_held_out_labels_come_from_their_archive(where: Path, tmp_path: Path):
    make(where, TEN[:2], [["0.png", 0], ["1.png", 2]])
    other = make(tmp_path / "other.zip", ["x.png"], [["x.png", 1]])
    data = ImageDir(where, "heldout", heldout_path=other)
    assert labels_of(data) == [1] and data.num_classes == 3
    assert ImageDir(tmp_path / "absent", "heldout", heldout_path=other, num_classes=5)[0][1] == 1
    beyond = make(tmp_path / "beyond.zip", ["x.png"], [["x.png", 3]])
    with pytest.raises(DataError, match=r"x\.png in .*beyond\.zip has the label 3"):
        ImageDir(where, "heldout", heldout_path=beyond)
    none = make(tmp_path / "none.zip", ["x.png"])
    with pytest.raises(DataError, match=r"none\.zip 'none': they must be alike"):
        ImageDir(where, "heldout", heldout_path=none)


def test_class_folders_of_both_splits_must_be_the_same(where: Path, tmp_path: Path):
    make(where, ["cat/a.png", "dog/b.png", "eel/c.png"])
    same = make(tmp_path / "same.zip", ["eel/1.png", "dog/1.png", "cat/1.png"])
    assert labels_of(ImageDir(where, "heldout", heldout_path=same)) == [0, 1, 2]
    fewer = make(tmp_path / "fewer.zip", ["eel/1.png", "dog/1.png"])
    with pytest.raises(DataError, match=r"has a class folder 'cat' that .*fewer\.zip has not"):
        ImageDir(where, "heldout", heldout_path=fewer)


# ---- the sets of the paper -----------------------------------------------------------------------


def test_ffhq_is_split_by_the_files_numbers(where: Path):
    make(where, ["b/img00059999.png", "a/60000.png", "c/img7.png", "60001.png", "z/v2_00000.png"])
    train, heldout, every = (FFHQ64(where, split) for split in ("train", "heldout", "all"))
    assert train.names == ["z/v2_00000.png", "c/img7.png", "b/img00059999.png"]
    assert heldout.names == ["a/60000.png", "60001.png"]
    assert every.names == train.names + heldout.names
    assert train.image_shape == (3, 64, 64) and FFHQ256(where).image_shape == (3, 256, 256)
    assert heldout[0][1] == -1 and heldout.num_classes == 0


def test_ffhq_resizes_only_what_has_another_size(tmp_path: Path):
    exact, larger = gradient(64, 64), gradient(80, 90)
    data = FFHQ64(make(tmp_path / "a.zip", {"0.png": exact, "1.png": larger}))
    values = np.array(Image.open(BytesIO(exact)))
    assert (data[0][0].permute(1, 2, 0).numpy() == values).all()
    assert data[1][0].shape == (3, 64, 64)


def test_ffhq_with_other_numbers_or_none(where: Path, tmp_path: Path):
    make(where, ["3.png", "20.png"])
    with pytest.raises(DataError, match=r"no image of the heldout split.* are 3 to 20; give heldo"):
        FFHQ64(where, "heldout")
    other = make(tmp_path / "other.zip", ["face.png"])
    with pytest.raises(DataError, match=r"face\.png in .*other\.zip has no number in its name"):
        FFHQ64(other)
    assert FFHQ64(where, "train", heldout_path=other).names == ["20.png", "3.png"]
    assert FFHQ64(where, "heldout", heldout_path=other).names == ["face.png"]


def test_a_set_that_was_not_prepared_yet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    for name, split, path, size in [
        ("ffhq.FFHQ64", "train", "data/ffhq64.zip", 64),
        ("ffhq.FFHQ256", "heldout", "data/ffhq256.zip", 256),
        ("imagenet.ImageNet64", "train", "data/imagenet64-train.zip", 64),
        ("imagenet.ImageNet64", "heldout", "data/imagenet64-val.zip", 64),
    ]:
        with pytest.raises(DataError) as caught:
            get_dataset(f"datautils.{name}", split)
        assert str(caught.value).startswith(f"{path} is not there: make it by")
        assert f"python -m datautils.prepare --source ORIGINALS --dest {path} --size {size}" in str(
            caught.value
        )


def test_imagenet_holds_out_ten_of_fifty_of_each_class(tmp_path: Path):
    def names(counts: dict[int, int]) -> list:
        return [[f"{i:03d}-{label}.png", label] for label, n in counts.items() for i in range(n)]

    labels = names({3: 120, 999: 30, 5: 4})
    path = make(tmp_path / "val.zip", {name: png() for name, _ in labels}, labels)
    heldout = ImageNet64("absent.zip", "heldout", heldout_path=path)
    expected = [f"{i:03d}-3.png" for i in (*range(10), *range(50, 60), *range(100, 110))]
    expected += [f"{i:03d}-999.png" for i in range(10)] + [f"{i:03d}-5.png" for i in range(4)]
    assert sorted(heldout.names) == sorted(expected)
    first = [label for _, label in (heldout[i] for i in range(6))]
    assert first == [3, 5, 999, 3, 5, 999]  # classes take turns
    assert heldout.num_classes == 1000 and heldout.image_shape == (3, 64, 64)
    assert all(name.endswith(f"-{label}.png") for name, (_, label) in zip(heldout.names, heldout))  # type: ignore # noqa: B905
    assert len(ImageNet64(path)) == 154 and ImageNet64(path).num_classes == 1000
    unlabelled = make(tmp_path / "none.zip", TEN)
    with pytest.raises(DataError, match="has no labels"):
        ImageNet64(unlabelled)
    beyond = make(tmp_path / "beyond.zip", ["a.png"], [["a.png", 1000]])
    with pytest.raises(DataError, match="has the label 1000, but there are 1000 classes"):
        ImageNet64(beyond)


def test_faces(shared: Shared):
    path, heldout = shared("data/faces64-train.zip"), shared("data/faces64-heldout.zip")
    data = FFHQ64(path, "train")
    assert len(data) == 22613 and data.image_shape == (3, 64, 64)
    assert data[22612][0].shape == (3, 64, 64) and data[5][1] == -1
    assert len({data[i][0].numpy().tobytes() for i in range(50)}) == 50
    with pytest.raises(DataError, match="has no image of the heldout split"):
        FFHQ64(path, "heldout")
    assert len(FFHQ64(path, "heldout", heldout_path=heldout)) == 2000


def test_imagenette(shared: Shared):
    train, val = shared("data/imagenette64-train.zip"), shared("data/imagenette64-val.zip")
    data = ImageNet64(train, "train", heldout_path=val)
    heldout = ImageNet64(train, "heldout", heldout_path=val)
    assert len(data) == 9469 and data.num_classes == heldout.num_classes == 1000
    counts = np.bincount(heldout.labels, minlength=10)
    assert counts.sum() == len(heldout) and counts.min() >= 70 and counts.max() <= 90
    assert ImageDir(train).num_classes == 10
    wnids = sorted({name.split("/")[1] for name in data.names})
    for i in range(0, 9469, 900):  # the labels are the sorted wnids'
        image, label = data[i]
        assert image.shape == (3, 64, 64) and label == wnids.index(data.names[i].split("/")[1])


def test_photos256(shared: Shared):
    data = ImageDir(shared("data/photos256.zip"))
    assert len(data) == 43 and data.image_shape == (3, 256, 256) and data.num_classes == 0


# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_asked_for(where: Path, workers: int):
    data = ImageDir(make(where, TEN, [[name, i] for i, name in enumerate(TEN)]))
    state = torch.random.get_rng_state()
    batches = [[3, 1], [9], [0, 0, 7]]
    loaded = list(load_batches(data, batches, workers))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [labels.tolist() for _, labels in loaded] == batches
    for images, labels in loaded:
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images[:, 2] == 3 * labels[:, None, None]).all()


def endless() -> Iterator[Sequence[int]]:
    yield from ([i % 10, (i + 1) % 10] for i in count())


def test_endless_batches(where: Path):
    data = ImageDir(make(where, TEN))
    loaded = islice(load_batches(data, endless(), 2), 12)
    assert [images[0, 0, 0, 0].item() for images, _ in loaded] == [i % 10 for i in range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_comes_out_of_a_worker_as_it_was(where: Path, workers: int):
    files = {name: png(i) for i, name in enumerate(TEN)} | {"4.png": png(4)[:50]}
    data = ImageDir(make(where, files))
    with pytest.raises(DataError) as expected:
        data[4]
    batches = load_batches(data, [[0, 1], [2, 3], [4, 5], [6, 7]], workers)
    assert next(batches)[0].shape == next(batches)[0].shape == (2, 3, 4, 4)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == str(expected.value)
    assert "4.png" in str(caught.value) and "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # although the traceback is still here


class Deadly(ImageDir):
    """A data set that ends the process which reads it, as a lack of memory would."""

    def __getitem__(self, index: int) -> Any:
        os._exit(1)


def test_a_process_that_was_killed_is_told(tmp_path: Path):
    data = Deadly(make(tmp_path / "a.zip", TEN))
    with pytest.raises(DataError, match=r"loads images was killed.*--workers") as caught:
        next(load_batches(data, [[0, 1]], 1))
    assert "\n" not in str(caught.value)


class Mistaken(ImageDir):
    """A data set with a fault of the code."""

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("shapes do not match")


def test_a_mistake_within_a_worker_is_not_called_a_lack_of_memory(tmp_path: Path):
    data = Mistaken(make(tmp_path / "a.zip", TEN))
    with pytest.raises(RuntimeError, match="shapes do not match") as caught:
        next(load_batches(data, [[0, 1]], 1))
    assert not isinstance(caught.value, DataError)


def sums(data: ImageDir, indices: Sequence[int]) -> list[int]:
    return [int(data[i][0].sum()) for i in indices]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_processes_share_a_data_set(tmp_path: Path, method: str):
    data = ImageDir(make(tmp_path / "a.zip", [f"{i:03d}.png" for i in range(80)]))
    data[0]  # the file is open before the processes start
    shares = [range(k, 80, 2) for k in range(2)]
    with multiprocessing.get_context(method).Pool(2) as pool:
        found = pool.starmap(sums, [(data, share) for share in shares])
    assert found == [sums(data, share) for share in shares]


# ---- get_dataset ---------------------------------------------------------------------------------


def test_every_known_data_set_exists():
    for name in DATASETS:
        with pytest.raises(ValueError, match=f"dataset '{name}' has no option 'nonsense'"):
            get_dataset(name, "train", nonsense=1)


def test_data_sets_are_built_with_their_options(where: Path):
    make(where, TEN)
    data = get_dataset("datautils.imagedir.ImageDir", "heldout", path=str(where), heldout=2, size=8)
    assert len(data) == 2 and data.image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="needs the option 'path'"):
        get_dataset("datautils.imagedir.ImageDir", "train")
    with pytest.raises(DataError, match="nowhere is not there"):
        get_dataset("datautils.imagedir.ImageDir", "train", path="nowhere")


def test_a_module_that_fails_is_not_called_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needy_set.py").write_text("import no_such_package")
    (tmp_path / "wrong_set.py").write_text("from json import no_such_name")
    for module, culprit in (("needy_set", "no_such_package"), ("wrong_set", "no_such_name")):
        with pytest.raises(ValueError, match=f"cannot be imported: .*{culprit}"):
            get_dataset(f"{module}.Images", "train")
    (tmp_path / "broken_set.py").write_text("[].nothing")
    with pytest.raises(AttributeError, match="nothing"):
        get_dataset("broken_set.Images", "train")


@pytest.mark.parametrize(
    "name", ["", ".", "nowhere", ".x.Y", "no_such.module.X", "datautils.nope.X",
             "datautils.photos.x.Y", "datautils.photos.Fotos", "datautils.photos.Photos.x"]
)  # fmt: skip
def test_unknown_data_sets(name: str):
    with pytest.raises(
        ValueError, match=f"^unknown dataset '{re.escape(name)}'(; known are Emoji|: is it Photos)"
    ):
        get_dataset(name, "train")
