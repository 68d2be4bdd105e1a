"""Image datasets. Every item is (uint8 image [3, h, w], class label or -1)."""

import importlib
import inspect
from typing import Any, Protocol

from torch import Tensor

from datautils.streams import ImageStream
from runtime.errors import DataError

__all__ = ["DATASETS", "DataError", "ImageDataset", "ImageStream", "dataset_class", "get_dataset"]

DATASETS = (
    "datautils.photos.Photos",
    "datautils.emoji.Emoji",
    "datautils.imagedir.ImageDir",
    "datautils.ffhq.FFHQ64",
    "datautils.ffhq.FFHQ256",
    "datautils.imagenet.ImageNet64",
    "datautils.huggingface.HuggingFace",
    "datautils.huggingface.HuggingFaceStream",
    "datautils.tarstream.TarStream",
)


class ImageDataset(Protocol):
    """What the project needs of a data set, whatever class it is."""

    num_classes: int

    @property
    def image_shape(self) -> tuple[int, int, int]: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Tensor, int]: ...


def get_dataset(name: str, split: str, /, **options: Any) -> ImageDataset:
    """Build a dataset from its dotted class name, such as "datautils.photos.Photos".

    split: "train", "heldout" or, where the class has it, "all". Raises ValueError for an unknown
    class or option, a missing option and a module that cannot be imported; DataError, which is
    one, for faults of the data.
    """
    cls = dataset_class(name)
    parameters = {
        key: value for key, value in inspect.signature(cls).parameters.items() if key != "split"
    }
    for option in options:
        if option not in parameters:
            raise ValueError(
                f"dataset {name} has no option '{option}'; it has {', '.join(parameters)}"
            )
    for option, parameter in parameters.items():
        if option not in options and _is_required(parameter):
            raise ValueError(f"dataset {name} needs the option '{option}'")
    try:
        return cls(split=split, **options)
    except TypeError:
        text = ", ".join(f"{key}={value!r}" for key, value in options.items())
        raise ValueError(f"dataset {name} cannot be built with {text}") from None


def dataset_class(name: str) -> Any:
    """The class of a dotted name. Raises ValueError with the known ones."""
    module_name, _, class_name = name.rpartition(".")
    unknown = ValueError(f"unknown dataset '{name}'; known are {', '.join(DATASETS)}")
    if not all(name.split(".")) or not module_name:
        raise unknown
    try:
        module = importlib.import_module(module_name)
    except ImportError as error:
        # Only where this module or a package around it is what was not found: another that is
        # missing is one that this module imports.
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and f"{module_name}.".startswith(f"{missing}."):
            raise unknown from None
        raise ValueError(f"dataset {name} cannot be imported: {error}") from error
    cls = getattr(module, class_name, None)
    if not isinstance(cls, type):
        raise unknown
    return cls


def _is_required(parameter: inspect.Parameter) -> bool:
    variadic = parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    return parameter.default is parameter.empty and not variadic
