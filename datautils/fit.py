"""Pictures of all sizes become images of one shape."""

import math
import sys
from collections.abc import Callable

from PIL import Image
from torch import Tensor

from datautils.decode import centre_crop, decode_image, resize, to_tensor
from runtime.errors import DataError


class Fit:
    """From the bytes of a picture to uint8 `[3, h, w]` of a fixed shape.

    `crop` is the side in pixels of the square cut out of the middle, `size` the side after resizing
    by Lanczos; `size` alone resizes the largest square. With neither all pictures must have the
    shape of the first one, which `shape_by` reads. Raises ValueError for sides that are none.
    """

    def __init__(self, size: int | None, crop: int | None):
        check_side("size", size)
        check_side("crop", crop)
        self.size, self.crop = size, crop
        side = size or crop
        self.shape: tuple[int, int, int] | None = None if side is None else (3, side, side)
        self._model = ""

    def shape_by(self, first: Callable[[], tuple[bytes, str]]) -> tuple[int, int, int]:
        """The shape; where it is not known yet, that of the picture that `first` gives as its bytes
        and how a message names it. Raises DataError."""
        if self.shape is None:
            data, where = first()
            channels, height, width = self._image(data, where).shape
            self.shape, self._model = (channels, height, width), where
        return self.shape

    def __call__(self, data: bytes, where: str) -> Tensor:
        """The image. Raises DataError where it is broken, too small, or of another shape."""
        image = self._image(data, where)
        if tuple(image.shape) != self.shape and self.shape:
            _, height, width = self.shape
            raise DataError(
                f"{where} has {image.shape[2]}x{image.shape[1]} pixels, but {self._model} has "
                f"{width}x{height}: give size or crop"
            )
        return image

    def _image(self, data: bytes, where: str) -> Tensor:
        return to_tensor(fit(decode_image(data, where), self.size, self.crop, where))


def fit(image: Image.Image, size: int | None, crop: int | None, where: str) -> Image.Image:
    """The centre square of `crop` pixels (default: the largest), resized to `size` pixels.

    With neither, the image as it is. Raises DataError where it is too small for the crop.
    """
    if size is None and crop is None:
        return image
    try:
        image = centre_crop(image, crop)
    except ValueError as error:
        raise DataError(f"{where} is {error}") from None
    return image if size is None else resize(image, size)


def check_side(name: str, value: object) -> None:
    """Raise ValueError for an option that is neither left out nor the side of an image, 1 to the
    root of the pixels from which on a picture is refused as a decompression bomb."""
    check_count(name, value)
    largest = math.isqrt(Image.MAX_IMAGE_PIXELS or sys.maxsize)
    if isinstance(value, int) and value > largest:
        raise ValueError(f"{name} must be at most {largest} pixels, not {value}")


def check_count(name: str, value: object) -> None:
    """Raise ValueError for an option that is neither left out nor an integer of at least 1."""
    if value is not None and (type(value) is not int or value < 1):
        raise ValueError(f"{name} must be an integer of at least 1, not {value!r}")
