"""Random motion-blur kernels: the path of a shaken camera, drawn as a line and smoothed.

The distribution is that of the `motionblur` library (Levi Borodenko), which the paper uses for its
strided motion blur (appendix A.3.2). Here every kernel is a function of its seed alone.
"""

import functools
import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation.randomness import Draws

# A path is at most 15 times as long as the longest step can be, and the mean step is 1/31 of that:
# 465 steps. Were the steps exponential (they vary less), 640 would be too few once in 5e12 times.
MAX_STEPS = 640


class MotionPaths(NamedTuple):
    """B camera paths on the double-size canvas; lengths in canvas pixels, angles in radians.

    A path has as many points as `valid` says, all others repeat the last one. As in the library
    the path starts at the end of its first step, so n steps are n points and n - 1 drawn segments.
    """

    points: Tensor  # [B, N] complex, x + iy with x to the right and y down; their mean is 0
    valid: Tensor  # [B, N] bool, the steps and points that exist: always the first ones
    steps: Tensor  # [B, N] length of each step
    headings: Tensor  # [B, N] direction of each step before the rotation of the whole path
    total: Tensor  # [B] the path ends with the step that reaches this length
    intensity: Tensor  # [B] in (0, 1): 0 is nearly straight, 1 long, wound and in many short steps
    max_angle: Tensor  # [B] scale of the headings
    flip_rate: Tensor  # [B] probability that a heading has the other sign than the previous one


def motion_paths(draws: Draws, size: tuple[int, int]) -> MotionPaths:
    """Camera paths for kernels of `size` = (height, width), one for each seed, on the CPU."""
    draws = Draws(draws.seeds, "cpu")  # whether one more step is taken must not depend on a device
    diagonal = 2 * math.hypot(*size)
    u = draws.uniform((8,), "motion/path").double().unbind(1)

    intensity = u[0]
    total = 0.75 * diagonal * (u[1] + u[2] * intensity**2)
    steps, valid = _steps(draws, total, (1 - intensity + 0.1) * diagonal)

    max_angle = math.pi * intensity * u[3]
    # Beta(2, 20): the second smallest of 21 uniform numbers.
    flip_rate = 1 - u[4] ** (1 / 21) * u[5] ** (1 / 20)
    first = (2 * u[6] - 1) * max_angle
    headings = _headings(draws, steps.shape[1], intensity, max_angle, flip_rate, first)

    rotation = math.pi * u[7]
    points = torch.polar(steps * valid, headings + rotation[:, None]).cumsum(1)
    centre = (points * valid).sum(1) / valid.sum(1)
    points = points - centre[:, None]
    return MotionPaths(
        points, valid, steps * valid, headings * valid, total, intensity, max_angle, flip_rate
    )


def motion_kernels(draws: Draws, size: tuple[int, int], smooth: float) -> Tensor:
    """Motion-blur kernels, float32 `[B, kh, kw]`, non-negative, of sum 1, for `size` = (kh, kw).

    smooth: standard deviation in kernel pixels of the Gaussian that the path is convolved with
    ("same", zeros outside), the stride of the operator; 0 for none. The centre of mass of the path
    is at index (kh // 2, kw // 2).

    What differs from the library:
    - lines are anti-aliased and at least one pixel wide (the library asks for width 0 on small
      canvases, which draws one pixel or nothing);
    - the canvas is not rounded to 8 bits, its Gaussian is exact and sees zeros outside the canvas;
    - two by two pixels are averaged to one, where the library applies a Lanczos filter;
    - the centre is exact: the library's is 1/4 of a pixel away, and its sizes are (width, height).
    """
    paths, diagonal = motion_paths(draws, size), 2 * math.hypot(*size)
    width, blur = max(1, int(diagonal / 150)), int(diagonal / 100)
    canvas = draw_lines(paths.points, paths.valid, (2 * size[0], 2 * size[1]), width)
    rows, columns = (_reduction(length, blur, float(smooth)) for length in size)
    return _normalise(rows @ canvas @ columns.T).to(draws.seeds.device)


def draw_lines(points: Tensor, valid: Tensor, canvas: tuple[int, int], width: int) -> Tensor:
    """Polylines of brightness 1 with soft edges, float32 `[B, *canvas]`; canvas sides are even.

    points: complex `[B, N]`, in pixels from the middle of the two by two pixels that become the
    centre of the kernel. Crossing or overlapping lines do not add up. A pixel at distance d from
    the line has brightness (width + 1)/2 - d, within [0, 1].
    """
    image, start, step, sample = _segments(points, valid)
    reach = (width + 1) / 2
    radius = math.ceil(reach)  # see _segments
    around = torch.arange(-radius, radius + 1)
    top, left = (2 * (side // 4) + 0.5 for side in canvas)  # of the middle
    y = (sample.imag + top).round().long()[:, None] + around
    x = (sample.real + left).round().long()[:, None] + around

    distance = _distance(y - top - start.imag[:, None], x - left - start.real[:, None], step)
    brightness = (reach - distance).clamp(0, 1)
    inside = ((y >= 0) & (y < canvas[0]))[:, :, None] & ((x >= 0) & (x < canvas[1]))[:, None, :]
    index = (image[:, None] * canvas[0] + y)[:, :, None] * canvas[1] + x[:, None, :]
    result = torch.zeros(len(points) * canvas[0] * canvas[1])
    result.scatter_reduce_(0, index[inside], brightness[inside], "amax")
    return result.view(len(points), *canvas)


def _segments(points: Tensor, valid: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Number of the path, start and vector of the segment, and position of samples `[samples]`.

    They lie on all segments, at most one pixel apart. A pixel at distance r from a segment is
    among the 2 ceil(r) + 1 squared pixels around one of its samples.
    """
    exists = valid[:, 1:]
    start = points[:, :-1][exists].to(torch.complex64)
    step = points.diff(dim=1)[exists].to(torch.complex64)
    count = step.abs().ceil().clamp(min=1).long()
    segment = torch.arange(len(count)).repeat_interleave(count)
    position = torch.arange(len(segment)) - (count.cumsum(0) - count)[segment]
    image, start, step = exists.nonzero()[segment, 0], start[segment], step[segment]
    return image, start, step, start + (position + 0.5) / count[segment] * step


def _distance(dy: Tensor, dx: Tensor, step: Tensor) -> Tensor:
    """Distance `[S, Y, X]` to segments of pixels at dy `[S, Y]` and dx `[S, X]` from the start."""
    heading, length = step.angle()[:, None, None], step.abs()[:, None, None]  # a dot has angle 0
    dy, dx = dy[:, :, None], dx[:, None, :]
    sin, cos = heading.sin(), heading.cos()
    forward = dx * cos + dy * sin
    beyond = forward - forward.clamp(min=0).minimum(length)
    return torch.hypot(beyond, dy * cos - dx * sin)


def _steps(draws: Draws, total: Tensor, longest: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths `[B, N]` of the steps and which exist: until their sum reaches `total`.

    A step is Beta(1, 30) x longest, cut off at `total`: the library draws again what is above.
    """
    u = draws.uniform((MAX_STEPS,), "motion/steps").double()
    accepted = 1 - (1 - (total / longest).clamp(max=1)) ** 30
    steps = longest[:, None] * (1 - (1 - u * accepted[:, None]) ** (1 / 30))
    before = F.pad(steps.cumsum(1)[:, :-1], (1, 0))
    valid = before < total[:, None]
    count = int(valid.sum(1).max())
    return steps[:, :count], valid[:, :count]


def _headings(
    draws: Draws, count: int, intensity: Tensor, max_angle: Tensor, flip_rate: Tensor, first: Tensor
) -> Tensor:
    """Directions `[B, count]` of the steps: the first as given, the others triangular in size.

    Their signs persist, but for flips that happen at the rate `flip_rate` of the path.
    """
    u = draws.uniform((count, 2), "motion/headings").double()
    size = _triangular(u[..., 0], (intensity * max_angle)[:, None], max_angle[:, None] + 0.1)
    turns = torch.where(u[..., 1] < flip_rate[:, None], -1.0, 1.0)
    turns[:, :1] = first.sign()[:, None]
    headings = turns.cumprod(1) * size
    headings[:, :1] = first[:, None]
    return headings


def _triangular(u: Tensor, mode: Tensor, right: Tensor) -> Tensor:
    """Inverse distribution function of the triangular distribution on [0, right] with `mode`."""
    rising = (u * mode * right).sqrt()
    falling = right - ((1 - u) * right * (right - mode)).sqrt()
    return torch.where(u * right < mode, rising, falling)


@functools.lru_cache(maxsize=64)
def _reduction(length: int, blur: float, smooth: float) -> Tensor:
    """Matrix `[length, 2 * length]` from a line of the canvas to a line of the kernel.

    Gaussian of deviation `blur` on the canvas, mean of two pixels, Gaussian of deviation `smooth`.
    """
    halve = torch.eye(length).repeat_interleave(2, dim=1) / 2
    return _gaussian(length, smooth) @ halve @ _gaussian(2 * length, blur)


def _gaussian(length: int, deviation: float) -> Tensor:
    """Matrix `[length, length]` of the convolution with a normalised Gaussian, zeros outside."""
    if deviation == 0:
        return torch.eye(length)
    offsets = torch.arange(1 - length, length, dtype=torch.float64)
    weights = torch.exp(-((offsets / deviation) ** 2) / 2)
    index = torch.arange(length)
    return (weights / weights.sum()).float()[index[:, None] - index + length - 1]


def _normalise(kernels: Tensor) -> Tensor:
    """Kernels `[B, kh, kw]` divided by their sums; an empty one becomes a point at the centre.

    A path that winds around a small or narrow canvas can miss it altogether.
    """
    empty = kernels.sum((1, 2)) <= 0
    kernels[empty, kernels.shape[1] // 2, kernels.shape[2] // 2] = 1
    return kernels / kernels.sum((1, 2), keepdim=True)
