"""Image datasets. Every item is (uint8 image [3, h, w], class label or -1)."""

from typing import Any, Protocol

from torch import Tensor

from runtime.errors import DataError
from runtime.registry import Registry

__all__ = ["DATASETS", "DataError", "ImageDataset", "dataset_class", "get_dataset"]

DATASETS = Registry("dataset")
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
    """Build a data set by its name, such as "Photos", or module.Class.

    split: "train", "heldout" or, if the class has it, "all". Options are text, read by the
    types of the class's parameters, or values. Raises ValueError for an unknown class or option, a
    missing option, a value of another type and a module that cannot be imported; DataError, which
    is one, for faults of the data.
    """
    return DATASETS.build(name, options, split=split)


def dataset_class(name: str) -> Any:
    """The class of a name. Raises ValueError with the known ones."""
    return DATASETS.find(name)
