"""Pictures of every kind become upright RGB; one that cannot be decoded raises an error."""

import contextlib
import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from datautils.decode import (
    DataError,
    centre_crop,
    decode_image,
    read_image,
    read_kernel,
    read_mask,
    resize,
    to_tensor,
)

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def pixels(data: bytes) -> np.ndarray:
    image = decode_image(data, "a.png")
    assert image.mode == "RGB"
    return np.array(image)


def random_image(*shape: int, dtype: Any = np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">L", len(data)) + kind + data + struct.pack(">L", zlib.crc32(kind + data))


def png_claiming(width: int, height: int) -> bytes:
    """A PNG of a hundred bytes whose header claims any size."""
    header = chunk(b"IHDR", struct.pack(">2L5B", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.mark.parametrize("format", ["PNG", "BMP", "TIFF", "PPM"])
def test_rgb_stays_as_it_is(format: str):
    values = random_image(5, 7, 3)
    assert (pixels(encoded(Image.fromarray(values), format)) == values).all()


def test_webp_and_jpeg_are_read():
    values = random_image(5, 7, 3)
    assert (pixels(encoded(Image.fromarray(values), "WEBP", lossless=True)) == values).all()
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(pixels(encoded(flat, "JPEG")).astype(int) - (200, 100, 50)).max() <= 2


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("format", ["PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied(orientation: int, format: str):
    values = random_image(4, 6, 3)
    turn = {  # what the EXIF standard says the stored rows and columns are
        1: lambda x: x, 2: lambda x: x[:, ::-1], 3: lambda x: x[::-1, ::-1], 4: lambda x: x[::-1],
        5: lambda x: x.swapaxes(0, 1), 6: lambda x: np.rot90(x, 1),
        7: lambda x: x[::-1, ::-1].swapaxes(0, 1), 8: lambda x: np.rot90(x, -1),
    }  # fmt: skip
    stored = Image.fromarray(np.ascontiguousarray(turn[orientation](values)))
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"lossless": True} if format == "WEBP" else {}
    assert (pixels(encoded(stored, format, exif=exif, **options)) == values).all()


def test_a_broken_exif_block_is_no_reason_to_refuse():
    image = Image.new("RGB", (8, 8), RED)
    data = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff garbage")
    assert pixels(data).shape == (8, 8, 3)


def test_grey_and_one_bit():
    grey = random_image(4, 6)
    assert (pixels(encoded(Image.fromarray(grey))) == grey[..., None]).all()
    bits = Image.fromarray(grey > 127)
    assert bits.mode == "1"
    assert (pixels(encoded(bits)) == np.where(grey > 127, 255, 0)[..., None]).all()


@pytest.mark.parametrize("format", ["PNG", "TIFF", "PPM"])
def test_of_sixteen_bits_the_upper_eight_are_kept(format: str):
    values = random_image(4, 6, dtype=np.uint16)
    values[0] = 300  # clipped, it would be white; stretched, it would follow the others
    assert (pixels(encoded(Image.fromarray(values), format)) == (values >> 8)[..., None]).all()


@pytest.mark.parametrize("format", ["AVIF", "JPEG2000"])
def test_newer_formats_are_read(format: str) -> None:
    if format not in Image.SAVE:
        pytest.skip(f"this Pillow has no {format}")
    flat = Image.new("RGB", (16, 16), (200, 100, 50))
    assert np.abs(pixels(encoded(flat, format)).astype(int) - (200, 100, 50)).max() <= 3


def test_thirty_two_bits_are_refused_beyond_sixteen():
    data = encoded(Image.fromarray(np.full((2, 2), 255, np.int32)), "TIFF")
    with pytest.raises(DataError, match=r"^a\.png has .* more than 16 bits"):
        decode_image(data, "a.png")
    with pytest.raises(DataError, match=r"a\.png .*floating-point"):
        decode_image(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), "a.png")


def test_what_is_transparent_is_laid_over_white():
    rgba = np.zeros((1, 3, 4), np.uint8)
    rgba[0] = [(255, 0, 0, 255), (0, 255, 0, 0), (0, 0, 0, 128)]
    assert pixels(encoded(Image.fromarray(rgba))).tolist() == [[[255, 0, 0], [255] * 3, [127] * 3]]
    grey = Image.fromarray(rgba).convert("LA")
    assert pixels(encoded(grey))[0, 1].tolist() == [255] * 3


def test_palettes_with_and_without_transparency():
    image = Image.new("P", (3, 1))
    image.putpalette([*RED, *GREEN, *BLUE])
    image.putdata([0, 1, 2])
    expected = [[list(RED), list(GREEN), list(BLUE)]]
    assert pixels(encoded(image)).tolist() == expected
    assert pixels(encoded(image, "GIF")).tolist() == expected
    expected[0][1] = list(WHITE)
    assert pixels(encoded(image, transparency=1)).tolist() == expected
    assert pixels(encoded(image, transparency=bytes([255, 0, 255]))).tolist() == expected
    rgb = Image.new("RGB", (2, 2), GREEN)
    assert (pixels(encoded(rgb, transparency=GREEN)) == 255).all()


def test_cmyk_is_converted():
    image = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    for format in ("TIFF", "JPEG"):
        assert np.abs(pixels(encoded(image, format)).astype(int) - RED).max() <= 3


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_an_animation_gives_its_first_frame(format: str):
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert (pixels(data) == RED).all()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "PPM"])
def test_truncated_pictures_are_refused(format: str):
    data = encoded(Image.fromarray(random_image(32, 32, 3)), format)
    for length in (0, 1, 10, len(data) // 2):
        with pytest.raises(DataError, match=r"^b/a\.png in data\.zip is (no|a damaged) picture"):
            decode_image(data[:length], "b/a.png in data.zip")


def test_damaged_bytes_raise_nothing_but_data_errors():
    generator = np.random.default_rng(0)
    for format in ("PNG", "JPEG", "WEBP", "TIFF", "GIF"):
        data = encoded(Image.fromarray(random_image(16, 16, 3)), format)
        for _ in range(60):
            damaged = np.frombuffer(data, np.uint8).copy()
            at = generator.integers(0, len(data), 4)
            damaged[at] = generator.integers(0, 256, 4)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with contextlib.suppress(DataError):  # any other error fails
                    decode_image(damaged.tobytes(), "a")


def test_formats_that_are_not_listed_are_left_to_no_decoder():
    for format in ("PCX", "EPS"):  # Pillow would hand the second to an interpreter
        with pytest.raises(DataError, match=r"^a\.png is no picture"):
            decode_image(encoded(Image.new("RGB", (4, 4)), format), "a.png")


@pytest.mark.parametrize("data", [b"", b"<svg/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\0" * 1000])
def test_other_files_are_refused(data: bytes):
    with pytest.raises(DataError, match=r"^a\.png is no picture \(PNG, JPEG"):
        decode_image(data, "a.png")


def test_absurdly_many_pixels_are_refused():
    with pytest.raises(DataError, match=r"^a\.png has 10000000000 pixels, more than the"):
        decode_image(png_claiming(100_000, 100_000), "a.png")
    with pytest.raises(DataError, match=r"^a\.png is a damaged picture"):  # its size is no fault
        decode_image(png_claiming(10_000, 20_000), "a.png")


def test_centre_crop():
    values = random_image(6, 9, 3)
    image = Image.fromarray(values)
    assert (np.array(centre_crop(image, 3)) == values[1:4, 3:6]).all()
    assert (np.array(centre_crop(image)) == values[:, 1:7]).all()


def test_resize_is_lanczos_and_leaves_the_right_size_alone():
    image = Image.fromarray(random_image(12, 12, 3))
    assert resize(image, 12) == image
    expected = image.resize((5, 5), Image.Resampling.LANCZOS)
    assert (np.array(resize(image, 5)) == np.array(expected)).all()


def test_tensors():
    values = random_image(4, 6, 3)
    tensor = to_tensor(Image.fromarray(values))
    assert tensor.dtype == torch.uint8 and tensor.is_contiguous()
    assert (tensor.numpy() == values.transpose(2, 0, 1)).all()


def test_read_image_and_mask(tmp_path: Path):
    values = random_image(4, 6)
    path = tmp_path / "mask.png"
    path.write_bytes(encoded(Image.fromarray(values)))
    assert read_image(path).shape == (3, 4, 6)
    mask = read_mask(path)
    assert mask.dtype == torch.bool
    assert (mask.numpy() == (values > 127.5)[None]).all()
    path.write_bytes(encoded(Image.fromarray(random_image(4, 6, dtype=np.uint16))))
    assert (read_mask(path).numpy() == (random_image(4, 6, dtype=np.uint16) > 32767)[None]).all()
    for read in (read_image, read_mask, read_kernel):
        with pytest.raises(DataError, match=r"nowhere\.png cannot be read: No such file"):
            read(tmp_path / "nowhere.png")
        with pytest.raises(DataError, match=rf"{tmp_path} cannot be read: Is a directory"):
            read(tmp_path)


def test_a_kernel_from_a_picture_has_the_sum_one(tmp_path: Path):
    path = tmp_path / "kernel.png"
    for dtype in (np.uint8, np.uint16):
        values = random_image(3, 5, dtype=dtype)
        path.write_bytes(encoded(Image.fromarray(values)))
        kernel = read_kernel(path)
        assert kernel.dtype == torch.float32
        assert kernel.numpy() == pytest.approx(values / values.sum(dtype=float), rel=1e-6)
    path.write_bytes(encoded(Image.new("L", (3, 3))))
    with pytest.raises(DataError, match=r"kernel\.png is zero everywhere"):
        read_kernel(path)


def test_a_kernel_from_numbers_is_taken_as_it_is(tmp_path: Path):
    path = tmp_path / "kernel.npy"
    values = np.random.default_rng(0).standard_normal((3, 4))
    np.save(path, values)
    assert torch.equal(read_kernel(path), torch.from_numpy(values).float())
    np.save(path, np.eye(3, dtype=int))
    assert torch.equal(read_kernel(path), torch.eye(3))


class Trap:
    """Unpickling it leaves a file behind."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


def test_wrong_kernel_files_are_refused_and_never_unpickled(tmp_path: Path):
    path = tmp_path / "kernel.npy"
    np.save(path, np.array([[Trap(tmp_path / "sprung")]], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"kernel\.npy"):
        read_kernel(path)
    assert not (tmp_path / "sprung").exists()
    for values in (np.ones(3), np.ones((2, 2, 2)), np.ones((2, 2), complex), np.float32(1)):
        np.save(path, values)
        with pytest.raises(DataError, match=r"kernel\.npy must hold one array of real numbers"):
            read_kernel(path)
    np.save(path, np.full((2, 2), np.nan))
    with pytest.raises(DataError, match="not finite"):
        read_kernel(path)
    np.save(path, np.array([[1e300, 1.0]]))  # finite, but not in float32
    with pytest.raises(DataError, match=r"kernel\.npy holds values that are not finite in float32"):
        read_kernel(path)
    for values in (np.zeros((3, 3)), np.full((3, 3), 1e-60)):
        np.save(path, values)
        with pytest.raises(DataError, match=r"kernel\.npy is zero everywhere"):
            read_kernel(path)
    np.save(path, np.ones((200, 200)))
    whole = path.read_bytes()
    for data in (
        b"",
        b"abc",
        whole[:1000],
        whole[:20],
        whole.replace(b"(200, 200)", b"(9**9,900)"),
    ):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"kernel\.npy"):
            read_kernel(path)


# ---- data in an alpha channel --------------------------------------------------------------------


def test_a_mask_or_kernel_in_the_alpha_channel(tmp_path):
    values = np.zeros((4, 6), np.uint8)
    values[1, 2:5] = 255, 128, 64
    colour = np.full((4, 6, 3), 30, np.uint8)
    path = tmp_path / "alpha.png"
    Image.fromarray(np.dstack((colour, values))).save(path)
    assert (read_mask(path)[0].numpy() == (values > 127)).all()
    expected = values / values.sum()
    np.testing.assert_allclose(read_kernel(path).numpy(), expected, rtol=1e-6)
    colour[0, 0] = 200
    Image.fromarray(np.dstack((colour, values))).save(path)
    for read in (read_mask, read_kernel):
        with pytest.raises(DataError, match=r"alpha\.png has a picture and an alpha channel"):
            read(path)
    opaque = np.full((4, 6), 255, np.uint8)
    Image.fromarray(np.dstack((np.dstack([values] * 3), opaque))).save(path)
    assert (read_mask(path)[0].numpy() == (values > 127)).all()


def test_a_mask_that_hides_everything_or_nothing_is_refused(tmp_path):
    path = tmp_path / "mask.png"
    for values, reason in (
        (np.eye(4, dtype=np.uint8), r"everything, its largest value is 1 of 255"),
        (np.full((4, 4), 255, np.uint8), "nothing"),
    ):
        Image.fromarray(values).save(path)
        with pytest.raises(DataError, match=rf"mask\.png hides {reason}"):
            read_mask(path)


# ---- colour profiles -----------------------------------------------------------------------------


def icc_profile(primaries: list[tuple[float, float, float]], gamma: float) -> bytes:
    """A profile of three primaries (XYZ under D50) and one gamma (ICC.1:2004, version 2)."""

    def fixed(value: float) -> bytes:
        return round(value * 65536).to_bytes(4, "big", signed=True)

    def xyz(values: tuple[float, float, float]) -> bytes:
        return b"XYZ " + bytes(4) + b"".join(map(fixed, values))

    curve = b"curv" + bytes(4) + (1).to_bytes(4, "big") + round(gamma * 256).to_bytes(2, "big")
    white = 0.9642, 1.0, 0.8249
    text = b"test profile\0"
    described = b"desc" + bytes(4) + len(text).to_bytes(4, "big") + text + bytes(78)
    tags = {
        b"desc": described, b"cprt": b"text" + bytes(4) + text, b"wtpt": xyz(white),
        b"rXYZ": xyz(primaries[0]), b"gXYZ": xyz(primaries[1]), b"bXYZ": xyz(primaries[2]),
        b"rTRC": curve, b"gTRC": curve, b"bTRC": curve,
    }  # fmt: skip
    offset, table, data = 132 + 12 * len(tags), len(tags).to_bytes(4, "big"), b""
    for name, value in tags.items():
        table += name + (offset + len(data)).to_bytes(4, "big") + len(value).to_bytes(4, "big")
        data += value + bytes(-len(value) % 4)
    header = bytes(8) + bytes.fromhex("02400000") + b"mntrRGB XYZ " + bytes(12) + b"acsp"
    header += bytes(28) + b"".join(map(fixed, white)) + bytes(48)
    size = len(header[4:]) + 4 + len(table) + len(data)
    return size.to_bytes(4, "big") + header[4:] + table + data


def test_colours_of_a_profile_become_srgb():
    adobe = [(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)]
    pixels = np.full((2, 3, 3), (200, 60, 60), np.uint8)
    for picture in (Image.fromarray(pixels), Image.fromarray(pixels).quantize(2)):
        stream = io.BytesIO()
        picture.save(stream, "PNG", icc_profile=icc_profile(adobe, 563 / 256))
        found = np.asarray(decode_image(stream.getvalue(), "adobe.png"))
        assert np.abs(found.astype(int) - (231, 57, 57)).max() <= 2, found[0, 0]
    grey = [Image.fromarray(np.full((2, 2), v)) for v in (np.uint8(50), np.uint16(50 << 8))]
    data = [encoded(picture, icc_profile=icc_profile(adobe, 1.0)) for picture in grey]
    eight, sixteen = (np.asarray(decode_image(picture, "grey.png")) for picture in data)
    assert (eight == sixteen).all()
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG", icc_profile=b"no profile at all")
    assert (np.asarray(decode_image(stream.getvalue(), "broken.png")) == pixels).all()


@pytest.mark.parametrize(
    "header",
    [b"{'descr': '<f8', 'fortran_order': False, 'shape': (2, 2", b"{'descr': (", b"'" * 3,
     b"{'descr': '<f8', 'fortran_order': False, 'shape': (999999999, 999999), }", b"1 +\xff(\0",
     b"(" * 9000],
    ids=str,
)  # fmt: skip
def test_a_broken_header_of_numbers_is_one_sentence(tmp_path: Path, header: bytes):
    path = tmp_path / "kernel.npy"
    path.write_bytes(b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header)
    with pytest.raises(DataError, match=r"kernel\.npy is no \.npy file of numbers"):
        read_kernel(path)
