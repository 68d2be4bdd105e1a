"""From the bytes of a picture to uint8 RGB; masks and kernels from a user's file."""

import io
import os
from contextlib import suppress
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps, PngImagePlugin, UnidentifiedImageError
from torch import Tensor

from runtime.errors import DataError

# Only these are tried: of the dozens Pillow knows, one starts a PostScript interpreter. An older
# Pillow lacks the last.
_WANTED = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "AVIF")
Image.init()
_FORMATS = tuple(name for name in _WANTED if name in Image.OPEN)
EXTENSIONS = tuple(
    extension
    for extension, name in sorted(Image.registered_extensions().items())
    if name in _FORMATS and extension != ".pfm"  # of floating-point numbers
)
_MOST_PIXELS = 2**28
Image.MAX_IMAGE_PIXELS = None  # ours counts instead, which names the picture
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY  # 64 MiB for all, not 1 for each


def decode_image(data: bytes, name: str) -> Image.Image:
    """The picture in `data`, upright and in RGB.

    The EXIF orientation is applied. Grey becomes RGB, transparent pixels are laid over white,
    of 16 bits the upper 8 are kept, an animation gives its first frame. Colours of an embedded ICC
    profile are converted to sRGB. `name` stands in messages. Raises DataError if the bytes are no
    whole picture, one of more than 2²⁸ pixels, or one of numbers whose range is unknown:
    floating-point ones, or more than 16 bits.
    """
    return _to_rgb(_open(data, name), name)


def to_tensor(image: Image.Image) -> Tensor:
    """An RGB picture as uint8 `[3, h, w]`."""
    return torch.from_numpy(np.array(np.asarray(image).transpose(2, 0, 1), order="C"))


def centre_crop(image: Image.Image, side: int | None = None) -> Image.Image:
    """The square of `side` pixels, at most and by default the largest, in the middle."""
    width, height = image.size
    side = min(width, height) if side is None else side
    left, top = (width - side) // 2, (height - side) // 2
    return image.crop((left, top, left + side, top + side))


def resize(image: Image.Image, side: int) -> Image.Image:
    """The picture resized to side×side by Lanczos."""
    return image.resize((side, side), Image.Resampling.LANCZOS)


def read_image(path: str | os.PathLike[str]) -> Tensor:
    """The picture in a file as uint8 `[3, h, w]`. Raises DataError."""
    return to_tensor(decode_image(read_file(path), str(path)))


def read_mask(path: str | os.PathLike[str]) -> Tensor:
    """The mask that a grey picture shows, bool `[1, h, w]`: True (visible) above half of white.

    Colours count by their luma. An alpha channel over one colour is the mask itself. Raises
    DataError for an alpha channel beside a picture, and for a mask that hides everything (one of
    bytes 0 and 1, say) or nothing.
    """
    grey = _grey(_open(read_file(path), str(path)), str(path))
    if grey.max() <= 127:
        raise DataError(
            f"{path} hides everything, its largest value is {grey.max()} of 255: visible is white"
        )
    if grey.min() > 127:
        raise DataError(f"{path} hides nothing: pixels that are missing must be black")
    return torch.from_numpy(grey > 127)[None]


def read_kernel(path: str | os.PathLike[str]) -> Tensor:
    """A blur kernel from a file, float32 `[kh, kw]`.

    A picture's grey values (all 16 bits where it has them), or those of an alpha channel over one
    colour, are scaled to the sum 1. The numbers of a .npy file are taken as they are. Raises
    DataError if the file holds neither, or in float32 has values that are not finite, or only
    zeros.
    """
    is_array = Path(path).suffix.lower() == ".npy"
    kernel = _array_kernel(path) if is_array else _picture_kernel(path)
    with np.errstate(over="ignore"):
        kernel = kernel.astype(np.float32)
    if not np.isfinite(kernel).all():
        raise DataError(f"the kernel {path} holds values that are not finite in float32")
    if not kernel.any():
        raise DataError(f"the kernel {path} is zero everywhere")
    return torch.from_numpy(kernel)


def read_file(path: str | os.PathLike[str]) -> bytes:
    """The contents of a file. Raises DataError."""
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}") from None


def _open(data: bytes, name: str) -> Image.Image:
    """The picture as Pillow sees it, with its pixels read, and upright."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=_FORMATS)
        pixels = image.width * image.height
        if pixels > _MOST_PIXELS:
            raise DataError(f"{name} has {pixels} pixels, more than the {_MOST_PIXELS} allowed")
        image.load()
        with suppress(Exception):  # a camera's broken tags are no reason to refuse the pixels
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except UnidentifiedImageError:
        raise DataError(f"{name} is no picture ({', '.join(_FORMATS)})") from None
    except (MemoryError, DataError):
        raise
    except Exception as error:  # on damaged bytes the decoders raise nearly anything
        raise DataError(f"{name} is a damaged picture: {error or type(error).__name__}") from None


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I") or image.mode == "F":
        profile = image.info.get("icc_profile")
        image = Image.fromarray((_sixteen_bits(image, name) >> 8).astype(np.uint8))
        image.info["icc_profile"] = profile
    try:
        image = _in_srgb(image)
        if image.has_transparency_data:
            rgba = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), rgba)
        return image.convert("RGB")
    except (ValueError, OSError) as error:  # LAB, for one, has no conversion
        raise DataError(f"{name} cannot be converted to RGB: {error}") from None


def _in_srgb(image: Image.Image) -> Image.Image:
    """The picture in the colours of sRGB; as it is if it has no profile, or one that is broken."""
    profile = image.info.get("icc_profile")
    if not profile or b"sRGB" in profile:
        return image
    bare = {"RGBA": "RGB", "P": "RGB", "PA": "RGB", "LA": "L"}.get(image.mode, image.mode)
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        colours = image.convert(bare)
        found = ImageCms.profileToProfile(
            colours, source, ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    except (ImageCms.PyCMSError, OSError):
        return image
    assert found is not None  # it is not changed in place
    if image.has_transparency_data:
        found.putalpha(image.convert("RGBA").getchannel("A"))
    return found


def _sixteen_bits(image: Image.Image, name: str) -> np.ndarray:
    """Grey values as they are, int64 `[h, w]` in 0..65535: not stretched to their own range, nor
    clipped at 255 as Pillow's conversion does. Raises DataError for numbers of another kind."""
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise DataError(
            f"{name} has signed or floating-point numbers, or more than 16 bits, whose range is "
            "unknown: save it with 8 or 16 bits"
        )
    return np.array(image).astype(np.int64)


def _picture_kernel(path: str | os.PathLike[str]) -> np.ndarray:
    name = str(path)
    image = _open(read_file(path), name)
    wide = image.mode.startswith("I")
    values = _sixteen_bits(image, name) if wide else _grey(image, name)
    return values / max(values.sum(dtype=np.float64), 1.0)


def _grey(image: Image.Image, name: str) -> np.ndarray:
    """The values that a picture of data holds, 0 to 255 `[h, w]`: in grey, or in its alpha channel.

    Raises DataError if both hold some.
    """
    if not image.mode.startswith("I") and image.has_transparency_data:
        bands = image.convert("RGBA").split()
        *colours, alpha = (low != high for low, high in (band.getextrema() for band in bands))
        if alpha and any(colours):
            raise DataError(
                f"{name} has a picture and an alpha channel, and either may be meant: "
                "save it without the other"
            )
        if alpha:
            return np.array(bands[-1])
    return np.array(_to_rgb(image, name).convert("L"))


def _array_kernel(path: str | os.PathLike[str]) -> np.ndarray:
    data = read_file(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception:  # on a damaged header its parser raises nearly anything
        raise DataError(f"{path} is no .npy file of numbers, or a damaged one") from None
    if not isinstance(array, np.ndarray) or array.ndim != 2 or array.dtype.kind not in "biuf":
        raise DataError(f"{path} must hold one array of real numbers of shape [kh, kw]")
    return array.astype(np.float64)
