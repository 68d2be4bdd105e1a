"""The data sets of the paper: which images are held out, and real files of them."""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from image_files import TEN, gradient, make, png
from PIL import Image

from datautils import DataError, get_dataset
from datautils.ffhq import FFHQ64, FFHQ256
from datautils.imagedir import ImageDir
from datautils.imagenet import ImageNet64

Shared = Callable[[str], Path]


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
