"""A user's photo as an inverse problem: what is read, cut to size, measured, and cut into tiles."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from commands.operators import family_of
from commands.options import Request
from datautils.decode import centre_crop, read_image, read_kernel, read_mask, resize, to_tensor
from degradation import (
    Diagonalisable,
    Draws,
    GaussianNoise,
    LinearOperator,
    Mask,
    NullOperator,
    PoissonNoise,
    Problem,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
    derive_seed,
    make_noise,
)
from degradation.valid import MAX_BYTES, MAX_ROWS
from metrics.images import picture
from metrics.pixel import to_float
from samplers import Tiling
from samplers.tiles import TileBlur

Shape = tuple[int, int, int]


def _noise_of(request: Request) -> GaussianNoise | PoissonNoise:
    return make_noise(request.noise_level or 0.0, request.poisson_peak)


def _problem_seed(request: Request) -> int:
    """Of the operator and of the noise."""
    return derive_seed(request.seed, "restore", "problem")


def check(request: Request) -> None:
    """Raise ValueError for options that contradict each other or leave something open."""
    noise = _noise_of(request)
    kinds = {f"--{name}": getattr(request, name) for name in ("degradation", "mask", "kernel")}
    given = [option for option, value in kinds.items() if value is not None]
    if len(given) != 1 or (request.measured and given == ["--degradation"]):
        known = "--mask or --kernel" if request.measured else "--degradation, --mask or --kernel"
        found = f", not {' and '.join(given)}" if given else ""
        raise ValueError(f"{'with --measured ' * request.measured}give one of {known}{found}")
    if request.degradation_opt and request.degradation is None:
        raise ValueError("--degradation-opt goes with a --degradation")
    if request.stride is not None and request.kernel is None:
        raise ValueError(f"--stride {request.stride} goes with a --kernel")
    if request.measured and request.fit == "resize":
        raise ValueError("--fit resize would change what was measured: use --fit tile")
    unknown = request.noise_level is None and isinstance(noise, GaussianNoise)
    if request.measured and request.kernel and unknown:
        raise ValueError(
            "--measured with --kernel needs --noise-level, the standard deviation of the "
            "photo's noise where images are in [-1, 1]: rounding to 8 bits alone is 0.0023"
        )


@dataclass
class Task:
    """One photo to restore."""

    problem: Problem  # of the whole photo, a batch of one
    tiling: Tiling
    truth: Tensor | None  # the clean photo, uint8 `[3, H, W]`, or None if it is not known
    measurement: Tensor | None  # y as a picture in [-1, 1], `[3, h, w]`, or None if it is not one
    blur: TileBlur | None  # the operator of a tile if the photo is blurred and has several tiles
    notes: list[str] = field(default_factory=list)
    """What the user should know about how the photo was cut."""
    grey: bool = False  # whether the photo has no colours: then its restorations have none

    @property
    def exact(self) -> bool:
        """Whether images are projected onto Hx = y: without noise, by an exact H†."""
        exact = isinstance(self.problem.degradation, Diagonalisable)
        return exact and not bool(self.problem.levels.any())


def pose(request: Request, image_shape: Shape, device: torch.device) -> Task:
    """Read the files of a request and make its problem, for a network of this image shape.

    Raises ValueError for files that cannot be read or do not fit together.
    """
    check(request)
    photo = read_image(request.image)
    task = _posed(request, photo, image_shape, device)
    if bool((photo == photo[:1]).all()):
        task.grey = True
        task.notes.append("the photo is grey, so samples and estimate are made grey")
    return task


def _posed(request: Request, photo: Tensor, image_shape: Shape, device: torch.device) -> Task:
    kernel = None if request.kernel is None else read_kernel(request.kernel)[None]
    if kernel is not None and request.measured:
        return _measured_blur(request, photo, kernel, image_shape, device)
    mask = None if request.mask is None else read_mask(request.mask)
    if mask is not None and mask.shape[1:] != photo.shape[1:]:
        raise ValueError(
            f"{request.mask} has {_sides(mask.shape)} pixels (height × width), but "
            f"{request.image} has {_sides(photo.shape)}"
        )
    if request.fit == "resize":
        photo, mask = _resized(request, photo, mask, image_shape)
    if mask is not None:
        tiling = _tiling(request, photo, image_shape)
        task = _task(request, photo, Mask(mask[None].to(device), _shape(photo)), tiling)
        task.notes.append(f"{int(mask.sum())} of {mask.numel()} pixels are visible")
        return task
    if kernel is not None:
        return _blurred(request, photo, kernel.to(device), request.stride or 1, image_shape)
    return _drawn(request, photo, image_shape, device)


def _drawn(request: Request, photo: Tensor, image_shape: Shape, device: torch.device) -> Task:
    """By an operator that a family draws: kernels for the model's size, masks for the photo's."""
    family = family_of(request.degradation or "", request.degradation_opt)
    seed = _problem_seed(request)
    family, structure = family.drawn(family.structure(seed))
    # Kernels of motion grow with the image: as in training, they fit the network's images.
    kernel = family.kernels(image_shape if family.grows else _shape(photo), structure, [seed])
    if kernel is not None and not family.grows:  # such kernels have the size of the cropped photo
        kernel = family.kernels(_shape(_cropped(photo, structure)), structure, [seed])
    if kernel is not None:
        return _blurred(request, photo, kernel.to(device), structure, image_shape)
    tiling = _tiling(request, photo, image_shape)
    whole = ValueError(
        f"only masks and blurs are restored in tiles, and {type(family).__name__} draws neither: "
        f"use --fit resize, to {_sides(image_shape)} pixels"
    )
    if not family.local and len(tiling) > 1:
        raise whole  # before anything that large is drawn
    operator = family.sample(_shape(photo), structure, [seed], device)
    if len(tiling) > 1 and not isinstance(operator, Mask | NullOperator):
        raise whole
    return _task(request, photo, operator, tiling)


def _blurred(
    request: Request, photo: Tensor, kernel: Tensor, stride: int, image_shape: Shape
) -> Task:
    """By a circular blur of the whole photo, of which the tiles use what they see all of."""
    whole = photo
    photo = _cropped(photo, stride)
    tiling = _tiling(request, photo, image_shape, stride)
    try:
        operator = StridedConvolution(kernel, stride, _shape(photo))
    except ValueError as error:  # of a drawn kernel it says all
        raise ValueError(f"{request.kernel}: {error}" if request.kernel else str(error)) from None
    blur = _tile_blur(kernel, stride, image_shape) if len(tiling) > 1 else None
    task = _task(request, photo, operator, tiling, blur)
    if photo.shape != whole.shape:
        task.notes.append(
            f"{request.image} of {_sides(whole.shape)} pixels is cropped at the right and the "
            f"bottom to {_sides(photo.shape)}, multiples of the stride {stride}"
        )
    return task


def _cropped(photo: Tensor, stride: int) -> Tensor:
    """The photo without the rows and columns beyond a multiple of the stride. ValueError."""
    if min(photo.shape[1:]) < stride:
        raise ValueError(f"stride {stride} is larger than a photo of {_sides(photo.shape)} pixels")
    return photo[:, : photo.shape[1] // stride * stride, : photo.shape[2] // stride * stride]


def _task(
    request: Request,
    photo: Tensor,
    operator: LinearOperator,
    tiling: Tiling,
    blur: TileBlur | None = None,
    y: Tensor | None = None,
) -> Task:
    """The task of a clean photo, which is measured here, or of one that was measured.

    y: the measurement of the second; without it, the operator is applied to the photo.
    """
    noise = _noise_of(request)
    noise.check(operator)
    device = operator.rows.device
    labels = None
    if request.class_label is not None:
        labels = torch.tensor([request.class_label], device=device)
    x = to_float(photo.to(device))[None]
    if request.measured:
        y = operator.H(x) if y is None else y
        problem = Problem(operator, y, noise.level_of(operator, y), labels)
    else:
        draws = Draws([_problem_seed(request)], device)
        problem = noise.measure(operator, x, draws, labels)
    picture = operator.measurement_image(problem.y)
    truth = None if request.measured else photo
    task = Task(problem, tiling, truth, None if picture is None else picture[0], blur)
    if isinstance(blur, ValidRegion):
        sides = _sides(blur.image_shape)
        task.notes.append(
            f"H† of {sides} pixels is found by iterations in every layer, which takes long"
        )
    return task


def _measured_blur(
    request: Request, photo: Tensor, kernel: Tensor, image_shape: Shape, device: torch.device
) -> Task:
    """With the photo as y: the samples that see beyond the restored image are not used."""
    total = kernel.sum().item()
    if total <= 1e-6 * kernel.abs().sum():  # negative, or 0 but for rounding
        raise ValueError(
            f"{request.kernel} sums to {total:g}: the kernel of a camera has a positive sum"
        )
    scaled = abs(total - 1) >= 1e-3  # black is -1, so another sum would also shift the light
    kernel, stride = (kernel / total if scaled else kernel).to(device), request.stride or 1
    shape = (photo.shape[0], stride * photo.shape[1], stride * photo.shape[2])
    tiling = _tiling(request, torch.empty(shape, device="meta"), image_shape, stride)
    print("computing H† of the kernel first: this takes a while", file=sys.stderr, flush=True)
    try:
        blur = _tile_blur(kernel, stride, image_shape)
    except ValueError as error:
        raise ValueError(f"{request.kernel}: {error}") from None
    # H† is shown, not computed with: a tolerance far below a grey level is enough.
    operator = blur if len(tiling) == 1 else ValidRegion(kernel, stride, shape, tol=1e-3)
    picture = to_float(photo.to(device))
    task = _task(request, photo, operator, tiling, blur, picture.flatten()[None] * operator.rows)
    task.measurement = picture
    used = operator.rows[0].view(photo.shape)[0]
    if not used.all():
        task.notes.append(
            f"{int((~used).sum())} of the {used.numel()} pixels of {request.image} are not used: "
            "blur brought in what lies beyond its border"
        )
    if scaled:
        task.notes.append(f"{request.kernel} sums to {total:.4g}: it is divided by that")
    return task


def _tile_blur(kernel: Tensor, stride: int, image_shape: Shape) -> TileBlur:
    """The operator of a tile: with its SVD if that is small enough, else by iterations."""
    count = image_shape[1] * image_shape[2]
    if (count // stride**2) * count * 8 > MAX_BYTES or count // stride**2 > MAX_ROWS:
        return ValidRegion(kernel, stride, image_shape, tol=0.02, max_iter=100, floor=0.02)
    return ValidConvolution(kernel, stride, image_shape)


def _resized(
    request: Request, photo: Tensor, mask: Tensor | None, image_shape: Shape
) -> tuple[Tensor, Tensor | None]:
    """The largest square in the middle, at the model's size."""
    _, n, width = image_shape
    if n != width:
        raise ValueError(f"--fit resize makes squares, but the network restores {n}×{width}")
    _check_size(request, photo, image_shape)
    square = _square(photo, n)
    if mask is not None:
        mask = _square(mask.expand(3, -1, -1).to(torch.uint8) * 255, n)[:1] > 127
        if not mask.any():
            raise ValueError(f"nothing of {request.mask} is visible once it is resized")
    return square, mask


def _square(image: Tensor, n: int) -> Tensor:
    return to_tensor(resize(centre_crop(picture(image)), n))


def _tiling(request: Request, photo: Tensor, image_shape: Shape, stride: int = 1) -> Tiling:
    _check_size(request, photo, image_shape)
    return Tiling(_shape(photo)[1:], image_shape[1:], stride)


def _check_size(request: Request, photo: Tensor, image_shape: Shape) -> None:
    """Raise ValueError for a photo that is smaller than the network's images."""
    if photo.shape[1] < image_shape[1] or photo.shape[2] < image_shape[2]:
        raise ValueError(
            f"{request.image} is too small: it gives {_sides(photo.shape)} pixels (height × "
            f"width), and the network restores {_sides(image_shape)} or more: enlarge it first"
        )


def _sides(shape: Sequence[int]) -> str:
    return f"{shape[-2]}×{shape[-1]}"


def _shape(photo: Tensor) -> Shape:
    channels, h, w = photo.shape
    return channels, h, w
