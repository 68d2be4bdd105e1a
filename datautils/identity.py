"""What tells a data set from another one, wherever it lies."""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np

from datautils import DataError, ImageDataset


@dataclass(frozen=True)
class Identity:
    """A data set in a record: how many images, of which names and classes."""

    images: int | None  # None for a stream
    digest: str  # SHA-256 of shape, names and labels of the images, as far as the set has them
    classes: tuple[str, ...] = ()  # names, empty if there are none or they have only numbers

    def __str__(self) -> str:
        images = "a stream of images" if self.images is None else f"{self.images} images"
        classes = f" of the classes {', '.join(self.classes)}" if self.classes else ""
        return f"{images}{classes} (digest {self.digest[:12]})"


def identity(dataset: ImageDataset) -> Identity:
    """What a data set is made of: its `names`, `labels` and `classes`, if it has them."""
    digest = hashlib.sha256(repr(tuple(dataset.image_shape)).encode())
    for name in _listed(dataset, "names"):
        digest.update(str(name).encode(errors="surrogateescape") + b"\0")
    with suppress(TypeError, ValueError):  # labels of a class of the user's own
        digest.update(np.asarray(_listed(dataset, "labels"), "<i8").tobytes())
    images = None
    with suppress(TypeError, DataError):
        images = len(dataset)
    return Identity(images, digest.hexdigest(), classes_of(dataset))


def classes_of(dataset: ImageDataset) -> tuple[str, ...]:
    """Names of the classes, empty if there are none."""
    return tuple(map(str, _listed(dataset, "classes")))


def _listed(dataset: ImageDataset, name: str) -> Any:
    """An attribute that is a list or an array, else nothing."""
    value = getattr(dataset, name, ())
    return value if isinstance(value, list | tuple | np.ndarray) else ()
