"""A user's photo as an inverse problem: what is read, cut to size, measured, and cut into tiles."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import torch
from PIL import Image
from torch import Tensor

from datautils.decode import centre_crop, read_image, read_kernel, read_mask, resize, to_tensor
from degradation import (
    Degradation,
    Draws,
    GaussianNoise,
    Mask,
    MatrixDegradation,
    MotionBlur,
    Problem,
    RandomDegradation,
    SRConv,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
    derive_seed,
    get_family,
)
from metrics.pixel import to_float
from samplers import Tiling

Shape = tuple[int, int, int]


@dataclass
class Request:
    """Which photo is to be restored, and how it was, or is to be, measured."""

    image: Path
    measured: bool = False
    degradation: str | None = None
    mask: Path | None = None
    kernel: Path | None = None
    stride: int | None = None
    noise_level: float | None = None
    fit: str = "tile"
    seed: int = 0
    class_label: int | None = None

    def check(self) -> None:
        """Raise ValueError for options that contradict each other or leave something open."""
        GaussianNoise(self.noise_level or 0.0)  # refuses what is no level
        named = {"--degradation": self.degradation, "--mask": self.mask, "--kernel": self.kernel}
        given = [option for option, value in named.items() if value is not None]
        if self.measured and self.degradation is not None:
            raise ValueError(
                "--measured restores what a camera measured: give its --mask or --kernel, "
                "not a --degradation to be drawn"
            )
        if len(given) != 1:
            known = "--mask or --kernel" if self.measured else "--degradation, --mask or --kernel"
            found = f", not {' and '.join(given)}" if given else ""
            raise ValueError(f"give one of {known}{found}")
        if (self.kernel is None) != (self.stride is None):
            raise ValueError("--kernel and --stride go together: the stride is 1 for blur alone")
        if self.measured and self.fit == "resize":
            raise ValueError("--fit resize would change what was measured: use --fit tile")
        if self.measured and self.kernel and self.noise_level is None:
            raise ValueError(
                "--measured with --kernel needs --noise-level, the standard deviation of the "
                "photo's noise where images are in [-1, 1]: rounding to 8 bits alone is 0.0023"
            )


@dataclass
class Task:
    """One photo to restore."""

    problem: Problem
    """Of the whole photo, a batch of one."""
    tiling: Tiling
    truth: Tensor | None
    """The clean photo, uint8 `[3, H, W]`, where it is known."""
    measurement: Tensor | None
    """y as a picture in [-1, 1], `[3, h, w]`, where it is one."""
    blur: ValidConvolution | None
    """The operator of a tile where a photo of several tiles is blurred."""
    notes: list[str] = field(default_factory=list)
    """What the user should know about how the photo was cut."""

    @property
    def invertible(self) -> bool:
        """Whether the operator of the whole photo has its exact H†."""
        return not isinstance(self.problem.degradation, ValidRegion)

    @property
    def exact(self) -> bool:
        """Whether images can be projected onto Hx = y: without noise, by an exact H†."""
        return self.invertible and not bool(self.problem.noise_level.any())


def pose(request: Request, image_shape: Shape, device: torch.device) -> Task:
    """Read the files of a request and make its problem, for a network of this image shape.

    Raises ValueError, in one sentence, for what cannot be read or does not fit together.
    """
    request.check()
    photo = read_image(request.image)
    if request.kernel is not None:
        kernel = read_kernel(request.kernel)[None]
        if request.measured:
            return _measured_blur(request, photo, kernel.to(device), image_shape)
    mask = None if request.mask is None else _mask(request, photo)
    if request.fit == "resize":
        photo, mask = _resized(request, photo, mask, image_shape)
    if mask is not None:
        tiling = _tiling(request, photo, image_shape)
        return _task(request, photo, Mask(mask[None].to(device), _shape(photo)), tiling)
    if request.kernel is not None:
        return _blurred(request, photo, kernel.to(device), request.stride or 1, image_shape)
    return _drawn(request, photo, image_shape, device)


def _drawn(request: Request, photo: Tensor, image_shape: Shape, device: torch.device) -> Task:
    """By an operator that a family draws: kernels for the model's size, masks for the photo's."""
    family, seed = get_family(request.degradation or ""), _problem_seed(request)
    structure = family.structure(seed)
    while isinstance(family, RandomDegradation):
        member, structure = cast(tuple[int, Hashable], structure)
        family = family.members[member]
    if isinstance(family, MotionBlur | SRConv):
        stride = cast(int, structure)
        kernel = family.kernels(image_shape, stride, [seed]).to(device)
        return _blurred(request, photo, kernel, stride, image_shape)
    tiling = _tiling(request, photo, image_shape)
    if isinstance(family, MatrixDegradation) and len(tiling) > 1:
        raise ValueError(
            "a random matrix measures all of a photo at once, so no tile can be restored by "
            f"itself: use --fit resize, to {_sides(image_shape)} pixels"
        )
    return _task(request, photo, family.sample(_shape(photo), structure, [seed], device), tiling)


def _blurred(
    request: Request, photo: Tensor, kernel: Tensor, stride: int, image_shape: Shape
) -> Task:
    """By a circular blur of the whole photo, of which the tiles use what they see all of."""
    whole = photo
    photo = photo[:, : photo.shape[1] // stride * stride, : photo.shape[2] // stride * stride]
    tiling = _tiling(request, photo, image_shape, stride)
    operator = StridedConvolution(kernel, stride, _shape(photo))
    blur = ValidConvolution(kernel, stride, image_shape) if len(tiling) > 1 else None
    task = _task(request, photo, operator, tiling, blur)
    if photo.shape != whole.shape:
        task.notes.append(
            f"{request.image} of {_sides(whole.shape)} pixels is cropped at the right and the "
            f"bottom to {_sides(photo.shape)}, multiples of the stride {stride}"
        )
    return task


def _task(
    request: Request,
    photo: Tensor,
    operator: Degradation,
    tiling: Tiling,
    blur: ValidConvolution | None = None,
) -> Task:
    """With y = Hx of the photo x: with noise where it is clean, as it is where it was measured."""
    device = operator.rows.device
    x, draws = to_float(photo.to(device))[None], Draws([_problem_seed(request)], device)
    level = request.noise_level or 0.0
    noise = GaussianNoise(0.0 if request.measured else level)
    y = noise.measure(operator, x, draws).y
    picture = operator.measurement_image(y)
    return Task(
        Problem(operator, y, level, _labels(request, device)),
        tiling,
        None if request.measured else photo,
        None if picture is None else picture[0],
        blur,
    )


def _measured_blur(request: Request, photo: Tensor, kernel: Tensor, image_shape: Shape) -> Task:
    """With the photo as y: the samples that see beyond the restored image are not used."""
    stride = request.stride or 1
    shape = (photo.shape[0], stride * photo.shape[1], stride * photo.shape[2])
    tiling = _tiling(request, torch.empty(shape, device="meta"), image_shape, stride)
    blur = ValidConvolution(kernel, stride, image_shape)
    operator = blur if len(tiling) == 1 else ValidRegion(kernel, stride, shape)
    picture = to_float(photo.to(kernel.device))
    y = picture.flatten()[None] * operator.rows
    labels = _labels(request, kernel.device)
    task = Task(
        Problem(operator, y, request.noise_level or 0.0, labels), tiling, None, picture, blur
    )
    used = operator.rows[0].view(photo.shape)[0]
    if not used.all():
        task.notes.append(
            f"{int((~used).sum())} of the {used.numel()} pixels of {request.image} are not used: "
            "blur brought in what lies beyond its border"
        )
    return task


def _problem_seed(request: Request) -> int:
    """Of the operator and of the noise."""
    return derive_seed(request.seed, "restore", "problem")


def _labels(request: Request, device: torch.device) -> Tensor | None:
    if request.class_label is None:
        return None
    return torch.tensor([request.class_label], device=device)


def _mask(request: Request, photo: Tensor) -> Tensor:
    """The mask of a request, bool `[1, H, W]`, for the photo as it is in its file."""
    mask = read_mask(cast(Path, request.mask))
    if mask.shape[1:] != photo.shape[1:]:
        raise ValueError(
            f"{request.mask} has {_sides(mask.shape)} pixels (height × width), but "
            f"{request.image} has {_sides(photo.shape)}"
        )
    if not mask.any():
        raise ValueError(f"{request.mask} is black everywhere: white pixels are the visible ones")
    return mask


def _resized(
    request: Request, photo: Tensor, mask: Tensor | None, image_shape: Shape
) -> tuple[Tensor, Tensor | None]:
    """The largest square in the middle, at the model's size."""
    _, n, width = image_shape
    if n != width:
        raise ValueError(f"--fit resize makes squares, but the network restores {n}×{width}")
    if min(photo.shape[1:]) < n:
        raise ValueError(_too_small(request, photo, image_shape))
    square = _square(photo, n)
    if mask is not None:
        mask = _square(mask.expand(3, -1, -1).to(torch.uint8) * 255, n)[:1] > 127
        if not mask.any():
            raise ValueError(f"nothing of {request.mask} is visible once it is resized")
    return square, mask


def _square(image: Tensor, n: int) -> Tensor:
    picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
    return to_tensor(resize(centre_crop(picture), n))


def _tiling(request: Request, photo: Tensor, image_shape: Shape, stride: int = 1) -> Tiling:
    size, side = _shape(photo)[1:], image_shape[1:]
    if size[0] < side[0] or size[1] < side[1]:
        raise ValueError(_too_small(request, photo, image_shape))
    return Tiling.cover(size, side, stride)


def _too_small(request: Request, photo: Tensor, image_shape: Shape) -> str:
    return (
        f"{request.image} is too small: it gives {_sides(photo.shape)} pixels (height × width), "
        f"and the network restores {_sides(image_shape)}"
    )


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[-2]}×{shape[-1]}"


def _shape(photo: Tensor) -> Shape:
    channels, h, w = photo.shape
    return channels, h, w
