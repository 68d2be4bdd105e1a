"""Image datasets. Every item is (uint8 image [3, h, w], class label or -1)."""

from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from runtime.errors import DataError
from runtime.registry import Registry

__all__ = ["DATASETS", "DataError", "ImageDataset", "get_dataset", "is_path"]

DATASETS = Registry(
    "dataset", others="module.Class of your own, or a folder or a zip file of images"
)
DATASETS |= {
    "Photos": "datautils.photos.Photos",
    "Emoji": "datautils.emoji.Emoji",
    "ImageDir": "datautils.imagedir.ImageDir",
    "FFHQ64": "datautils.ffhq.FFHQ64",
    "FFHQ256": "datautils.ffhq.FFHQ256",
    "ImageNet64": "datautils.imagenet.ImageNet64",
    "HuggingFace": "datautils.huggingface.HuggingFace",
    "HuggingFaceStream": "datautils.huggingface.HuggingFaceStream",
}


class ImageDataset(Protocol):
    """What the project needs of every data set."""

    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]: ...
    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def get_dataset(name: str, split: str, /, **options: Any) -> ImageDataset:
    """Build a data set by its name, such as "Photos", or module.Class, or from a path.

    A folder or a zip file is an `ImageDir`: all of its images, unless an option holds some out.
    split: "train", "heldout" or, if the class has it, "all". Options are text, read by the
    types of the class's parameters, or values. Raises ValueError for an unknown class or option, a
    missing option, a value of another type and a module that cannot be imported; DataError, which
    is one, for faults of the data.
    """
    if not is_path(name):
        return DATASETS.build(name, options, split=split)
    if "path" in options:
        raise ValueError(f"{name} is a path already: leave out the option path={options['path']}")
    if not {"heldout", "heldout_path"} & options.keys():
        if split == "train":
            raise ValueError(
                f"nothing says which images of {name} are held out: give heldout=N, or take the "
                'split "all"'
            )
        split = "all"
    return DATASETS.build("ImageDir", {"path": name} | options, split=split)


def is_path(name: str) -> bool:
    """Whether this names a folder or a zip file, not a class."""
    if not name or name in DATASETS:
        return False
    return "/" in name or name.endswith(".zip") or Path(name).exists()
