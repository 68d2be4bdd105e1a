"""Image datasets. Every item is (uint8 image [3, h, w], class label or -1)."""

import importlib
import inspect
from typing import Any, Protocol

from torch import Tensor

DATASETS = ("datautils.photos.Photos",)


class ImageDataset(Protocol):
    """What the project needs of a data set, whatever class it is."""

    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def get_dataset(name: str, split: str, /, **options: Any) -> ImageDataset:
    """Build a dataset from its dotted class name, such as "datautils.photos.Photos".

    split: "train" or "heldout". Raises ValueError for an unknown class or option.
    """
    module_name, _, class_name = name.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
        if not isinstance(cls, type):
            raise ValueError
    except (ImportError, AttributeError, ValueError):
        known = ", ".join(DATASETS)
        raise ValueError(f"unknown dataset '{name}'; known are {known}") from None
    accepted = [
        parameter for parameter in inspect.signature(cls).parameters if parameter != "split"
    ]
    for option in options:
        if option not in accepted:
            raise ValueError(
                f"dataset {name} has no option '{option}'; it has {', '.join(accepted)}"
            )
    try:
        return cls(split=split, **options)
    except TypeError:
        text = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(f"dataset {name} cannot be built with {text}") from None
