"""Images from folders and zip files: splits, sizes, labels; faults raise errors."""

import json
import re
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from image_files import PAIR, TEN, gradient, labels_of, make, png
from PIL import Image

from datautils import DataError
from datautils.imagedir import ImageDir


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
        ({"num_classes": -1}, "num_classes must be"),
        ({"labels": "folders"}, "labels must be one of auto, json, subfolders, none"),
    ],
)  # fmt: skip
def test_options_that_make_no_sense(tmp_path: Path, options: dict, message: str):
    path = make(tmp_path / "a.zip", TEN)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        ImageDir(path, **options)
    assert not isinstance(caught.value, DataError)


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


@pytest.mark.parametrize("content", [b"{", b"\xff", b"[" * 100_000, b"{}"])
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
