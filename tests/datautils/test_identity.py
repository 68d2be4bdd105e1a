"""What tells a data set from another one."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datautils.identity import Identity, identity
from datautils.imagedir import ImageDir
from datautils.photos import Photos


def folder(path: Path, *names: str) -> Path:
    for name in names:
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path / name)
    return path


def of(path: Path, **options: object) -> Identity:
    return identity(ImageDir(path, "train", **options))  # type: ignore[arg-type]


def test_moved_images_are_the_same_and_others_are_not(tmp_path):
    names = ["cat/0.png", "dog/0.png", "dog/1.png"]
    one = of(folder(tmp_path / "one", *names))
    assert (one.images, one.classes) == (3, ("cat", "dog"))
    assert of(folder(tmp_path / "moved", *names)) == one
    others = [
        of(folder(tmp_path / "more", *names, "dog/2.png")),
        of(folder(tmp_path / "renamed", "dog/0.png", "dog/1.png", "tomcat/0.png")),
        of(tmp_path / "one", labels="none"),
        of(tmp_path / "one", size=4),
        of(tmp_path / "one", heldout=1),
    ]
    assert len({one.digest, *(other.digest for other in others)}) == 6
    assert str(others[1]).startswith("3 images of the classes dog, tomcat (digest ")


class Stream:
    """A class of a user's own, whose attributes mean something else."""

    num_classes, image_shape, names, labels, classes = 0, (3, 4, 4), None, ["a"], 7


@pytest.mark.parametrize("dataset", [Stream(), Photos(16, "train", size=8)])
def test_a_data_set_without_names_has_what_it_has(dataset):
    found = identity(dataset)
    assert found.images == (8 if isinstance(dataset, Photos) else None) and found.classes == ()
    assert found == identity(dataset) and len(found.digest) == 64
