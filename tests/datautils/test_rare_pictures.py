"""Rare kinds of PNG and TIFF: what is transparent, where black is, and long texts beside it."""

import io
import struct
import zlib

import numpy as np
import pytest
import tifffile
from image_files import chunk, png_of
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from datautils.decode import DataError, decode_image, read_kernel

WHITE = 255


def pixels(data: bytes) -> np.ndarray:
    return np.array(decode_image(data, "a"))


def tiff(values: list[int], dtype: type, photometric: str = "minisblack") -> bytes:
    file = io.BytesIO()
    tifffile.imwrite(file, np.array([values], dtype), photometric=photometric)
    return file.getvalue()


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear", "expected"),
    [
        (16, 0, struct.pack(">2H", 10000, 25600), (10000,), [WHITE, 100]),
        (16, 2, struct.pack(">6H", 100, 2000, 3000, 25600, 0, 512), (100, 2000, 3000),
         [[WHITE] * 3, [100, 0, 2]]),
        (8, 0, bytes([7, 8]), (7,), [WHITE, 8]),
        (4, 0, bytes([0x12]), (1,), [WHITE, 34]),
        (2, 0, bytes([0b01100000]), (1,), [WHITE, 170]),
        (1, 0, bytes([0b01000000]), (0,), [WHITE, WHITE]),
    ],
)  # fmt: skip
def test_the_transparent_colour_of_a_png_is_laid_over_white(
    bits: int, colour: int, row: bytes, clear: tuple[int, ...], expected: list
) -> None:
    found = pixels(png_of(2, 1, bits, colour, row, struct.pack(f">{len(clear)}H", *clear)))[0]
    assert (found == np.array(expected).reshape(2, -1)).all()


@pytest.mark.parametrize(
    ("values", "dtype", "photometric", "expected"),
    [
        ([0, 65535, 25600], np.uint16, "miniswhite", [255, 0, 155]),
        ([0, 255, 100], np.uint8, "miniswhite", [255, 0, 155]),
        ([-128, 0, 127], np.int8, "minisblack", [0, 128, 255]),
        ([0, 0, 0], np.uint16, "minisblack", [0, 0, 0]),
    ],
)
def test_black_of_a_tiff(values: list, dtype: type, photometric: str, expected: list) -> None:
    assert (pixels(tiff(values, dtype, photometric))[0] == np.array(expected)[:, None]).all()


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.int16])
def test_numbers_of_no_known_range_are_refused(dtype: type) -> None:
    with pytest.raises(DataError, match=r"^a has signed numbers, or more than 16 bits"):
        pixels(tiff([0, 255, 100], dtype))


@pytest.mark.parametrize("photometric", ["minisblack", "miniswhite"])
def test_twelve_bits_in_sixteen_are_refused(photometric: str) -> None:
    with pytest.raises(DataError, match=r"^a has 16 bits, and values up to 4095 only"):
        pixels(tiff([0, 4095, 100], np.uint16, photometric))


def test_a_kernel_may_be_of_any_range(tmp_path) -> None:
    path = tmp_path / "k.tif"
    path.write_bytes(tiff([1, 2, 1], np.uint16))
    assert read_kernel(path).tolist() == [[0.25, 0.5, 0.25]]


def test_a_png_with_long_texts_and_profiles_is_read() -> None:
    text, file = PngInfo(), io.BytesIO()
    text.add_text("notes", "x" * 3_000_000, zip=True)
    image = Image.new("RGB", (1, 1), (1, 2, 3))
    image.save(file, "PNG", pnginfo=text)
    assert pixels(file.getvalue()).tolist() == [[[1, 2, 3]]]
    profile = chunk(b"iCCP", b"p\0\0" + zlib.compress(bytes(3_000_000)))
    data = png_of(1, 1, 8, 2, bytes([1, 2, 3]), None, profile)
    assert pixels(data).tolist() == [[[1, 2, 3]]]


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read(format: str) -> None:
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {format}")
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (200, 100, 50)).save(file, format)
    assert np.abs(pixels(file.getvalue()).astype(int) - (200, 100, 50)).max() <= 3
