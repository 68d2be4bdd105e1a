"""Non-leaking augmentation: recorded outputs, the affine maps, and what each seed decides.

`test_recorded_augmentations` compares with recorded outputs of an independent implementation, and
is skipped without them; `test_a_smooth_picture_moves_as_described` checks the same by the affine
map of a picture that is a formula.
"""

import math
from dataclasses import replace

import pytest
import scipy.stats
import torch
from helpers import gaussian
from torch import Tensor

from degradation import Draws
from training.augment import (
    _SYM6,
    Parameters,
    apply,
    augment,
    parameters,
    raw_numbers,
    warp,
)

P_VALUE = 1e-4  # the seeds are fixed, so a pass stays a pass

# The order in which the recorded run drew its numbers.
TAPE = [
    *("xflip", "xflip/gate", "yflip", "yflip/gate", "scale", "scale/gate"),
    *("rotation", "rotation/gate", "stretch", "axis", "stretch/gate", "axis/gate"),
    *("shift", "shift/gate"),
]


def from_tape(tape: list[Tensor]) -> dict[str, Tensor]:
    """Recorded draws as `raw_numbers` names them: the shift was drawn as `[2, B]`."""
    assert len(tape) == len(TAPE)
    return {
        name: drawn.T if name == "shift" else drawn.flatten()
        for name, drawn in zip(TAPE, tape, strict=True)
    }


@pytest.mark.parametrize("case", ["edm_p0", "edm_p0.12", "edm_p0.9"])
def test_recorded_augmentations(golden, case):
    case = golden("augment")[case]
    params = parameters(from_tape(case["tape"]), case["kwargs"]["p"])
    torch.testing.assert_close(params.labels(), case["labels"], rtol=0, atol=1e-6)
    torch.testing.assert_close(apply(case["images"], params), case["out"], rtol=0, atol=2e-5)


# The maps


def doing(batch: int = 1, **values: float | tuple[float, float]) -> Parameters:
    """Parameters that do what is named, the same to all images, and nothing else."""
    names = ("xflip", "yflip", "scale", "rotation", "stretch", "axis")
    numbers = {name: torch.full((batch,), float(values.get(name, 0))) for name in names}
    shift = torch.tensor(values.get("shift", (0.0, 0.0))).expand(batch, 2)
    return Parameters(**numbers, shift=shift)


def wave(x: Tensor, y: Tensor) -> Tensor:
    """A smooth picture with no symmetry, pixels counted from the middle."""
    return 0.5 * torch.sin(0.11 * x + 0.07 * y + 0.4) + 0.3 * torch.cos(0.13 * y - 0.05 * x)


def middle(h: int, w: int) -> tuple[Tensor, Tensor]:
    """Columns and rows counted from the middle of the image, float64."""
    y, x = (torch.arange(n, dtype=torch.float64) - (n - 1) / 2 for n in (h, w))
    return x.expand(h, w), y[:, None].expand(h, w)


def source(x: Tensor, y: Tensor, params: Parameters, h: int, w: int) -> tuple[Tensor, Tensor]:
    """Where the pixel at x, y comes from: shift, stretch, rotation, scale undone one by one."""
    tx, ty = params.shift[0].double()
    x, y = x - tx * w / 8, y - ty * h / 8
    axis, turn = float(params.axis[0]), float(params.rotation[0])
    along = x * math.cos(axis) - y * math.sin(axis)  # y points down, angles go up
    across = x * math.sin(axis) + y * math.cos(axis)
    factor = 2 ** (0.2 * float(params.stretch[0]))
    along, across = along / factor, across * factor
    x = along * math.cos(axis) + across * math.sin(axis)
    y = -along * math.sin(axis) + across * math.cos(axis)
    x, y = (
        x * math.cos(turn) - y * math.sin(turn),
        x * math.sin(turn) + y * math.cos(turn),
    )
    size = 2 ** (0.2 * float(params.scale[0]))
    return x / size, y / size


@pytest.mark.parametrize(("h", "w"), [(32, 32), (24, 41), (33, 20)])
@pytest.mark.parametrize(
    "values",
    [
        {"scale": 1.3},
        {"scale": -1.1},
        {"rotation": 0.7},
        {"rotation": -2.5},
        {"stretch": 1.2},
        {"stretch": -0.9, "axis": 0.6},
        {"shift": (0.7, -1.1)},
        {"scale": 0.6, "rotation": 0.5, "stretch": 0.8, "axis": 1.9, "shift": (-0.4, 0.3)},
    ],
)
def test_a_smooth_picture_moves_as_described(h, w, values):
    x, y = middle(h, w)
    params = doing(**values)
    out = apply(wave(x, y)[None, None], params)[0, 0]
    x, y = source(x, y, params, h, w)
    inside = (x.abs() < (w - 1) / 2 - 4) & (y.abs() < (h - 1) / 2 - 4)
    assert inside.sum() > 50
    # The filter is not symmetric: a turned picture is off by a tenth of a sample.
    torch.testing.assert_close(out[inside], wave(x, y)[inside], rtol=0, atol=0.015)


@pytest.mark.parametrize(("h", "w"), [(16, 16), (13, 24)])
def test_a_shift_by_whole_pixels_is_exact_and_reflects(h, w):
    images = gaussian(2, 3, h, w)
    out = apply(images, doing(2, shift=(8 * 3 / w, 8 * -2 / h)))  # right by 3, up by 2
    column = (torch.arange(w) - 3).abs()
    row = torch.arange(h) + 2
    row = torch.where(row >= h, 2 * (h - 1) - row, row)
    torch.testing.assert_close(out, images[:, :, row][..., column], rtol=0, atol=1e-5)


def test_beyond_a_reflected_image_it_is_black():
    image = 1 + torch.rand(1, 1, 16, 16)
    out = apply(image, doing(shift=(8 * 40 / 16, 0.0)))
    assert out.abs().max() < 1e-5
    half = apply(image, doing(shift=(8 * 20 / 16, 0.0)))
    assert half[..., :3].abs().max() < 0.1 and half[..., 8:].min() > 0.8


def test_quarter_turns_are_counter_clockwise():
    x, y = middle(32, 32)
    picture = wave(x, y)[None, None]
    out = apply(picture, doing(rotation=math.pi / 2))
    inner = (..., slice(6, -6), slice(6, -6))
    torch.testing.assert_close(out[inner], picture.rot90(1, (2, 3))[inner], rtol=0, atol=0.015)
    assert (out - picture.rot90(-1, (2, 3)))[inner].abs().max() > 0.2


def test_a_constant_stays_constant_up_to_the_reflection():
    params = doing(scale=0.4, rotation=1.0, stretch=0.7, axis=0.3, shift=(0.5, -0.5))
    out = apply(torch.full((1, 3, 20, 27), 0.7), params)
    torch.testing.assert_close(out, torch.full_like(out, 0.7), rtol=0, atol=1e-5)


def test_the_identity_map_changes_nothing():
    images = gaussian(2, 1, 9, 14)
    out = warp(images, torch.eye(2).double().expand(2, 2, 2), torch.zeros(2, 2).double())
    torch.testing.assert_close(out, images, rtol=0, atol=1e-11)


def test_the_filter_is_orthonormal_with_six_vanishing_moments():
    taps = torch.tensor(_SYM6, dtype=torch.float64)
    position = torch.arange(12, dtype=torch.float64)
    assert taps.sum().item() == pytest.approx(math.sqrt(2), abs=1e-12)
    for k in range(6):
        product = (taps[2 * k :] * taps[: 12 - 2 * k]).sum().item()
        assert product == pytest.approx(float(k == 0), abs=1e-11)
        moment = ((-1) ** position * (position - 5) ** k * taps).sum().item()
        assert moment == pytest.approx(0, abs=1e-6)


# Flips and labels


@pytest.mark.parametrize("channels", [1, 3])
def test_flips_are_exact_and_untouched_images_stay_as_they_are(channels):
    images = torch.rand(4, channels, 11, 6)
    before = images.clone()
    params = doing(4, rotation=0.3)
    params.rotation[:3] = 0
    params.xflip[1] = params.xflip[2] = params.yflip[2] = 1
    out = apply(images, params)
    assert torch.equal(images, before)
    assert torch.equal(out[0], images[0])
    assert torch.equal(out[1], images[1].flip(-1))
    assert torch.equal(out[2], images[2].flip(-1, -2))
    assert (out[3] - images[3]).abs().max() > 0.05
    labels = params.labels()
    assert labels[:3, :2].tolist() == [[0, 0], [1, 0], [1, 1]]
    assert (labels[:3, 2:] == 0).all() and labels[3].count_nonzero() == 2


def test_flips_come_before_the_warp():
    images = gaussian(1, 1, 16, 16)
    params = doing(xflip=1, rotation=0.4)
    expected = apply(images.flip(-1), doing(rotation=0.4))
    torch.testing.assert_close(apply(images, params), expected)


def test_the_label_says_what_was_done():
    params = doing(scale=0.3, rotation=2.0, stretch=-1.5, axis=0.8, shift=(0.25, -0.75), yflip=1)
    expected = [0, 1, 0.3, math.cos(2) - 1, math.sin(2)]
    expected += [-1.5 * math.cos(0.8), -1.5 * math.sin(0.8), 0.25, -0.75]
    assert params.labels()[0].tolist() == pytest.approx(expected, abs=1e-6)


# What the seeds decide


def test_an_image_depends_on_its_own_seed_alone():
    seeds = list(range(40, 56))
    images = gaussian(16, 3, 12, 12)
    out, labels = augment(images, Draws(seeds), 0.3)
    assert (labels[:, 2:] != 0).any(1).float().mean() > 0.3
    for i in (0, 5, 15):
        alone, label = augment(images[i : i + 1], Draws(seeds[i : i + 1]), 0.3)
        assert torch.equal(label[0], labels[i])
        torch.testing.assert_close(alone[0], out[i], rtol=0, atol=1e-10)
    order = torch.randperm(16)
    shuffled, _ = augment(images[order], Draws([seeds[i] for i in order]), 0.3)
    torch.testing.assert_close(shuffled, out[order], rtol=0, atol=1e-10)


def test_neighbours_warped_far_leave_an_image_alone():
    """A reflection as long as the farthest image of the batch needs would change the others."""
    images = gaussian(2, 3, 16, 16)
    shift = torch.tensor([[0.0, 0.0], [6.0, 6.0]])
    together = apply(images, replace(doing(2, rotation=0.5), shift=shift))
    alone = apply(images[:1], doing(rotation=0.5))
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-10)


def test_probability_0_changes_nothing():
    images = gaussian(64, 1, 5, 5)
    out, labels = augment(images, Draws(range(64)), 0.0)
    assert torch.equal(out, images) and not labels.any()


@pytest.mark.parametrize("p", [0.12, 0.5, 1.0])
def test_operations_are_as_frequent_as_asked_and_independent(p):
    n = 20_000
    params = parameters(raw_numbers(Draws(range(n))), p)
    acted = {
        "xflip": (params.xflip != 0, 0.5),
        "yflip": (params.yflip != 0, p / 2),
        "scale": (params.scale != 0, p),
        "rotation": (params.rotation != 0, p),
        "stretch": (params.stretch != 0, p),
        "axis": (params.axis != 0, 0.5),
        "shift": ((params.shift != 0).all(1), p),
    }
    for name, (happened, share) in acted.items():
        count = int(happened.sum())
        assert scipy.stats.binomtest(count, n, share).pvalue > P_VALUE, (name, count / n)
    assert torch.equal((params.shift != 0).any(1), (params.shift != 0).all(1))
    together = acted["scale"][0] & acted["rotation"][0] & acted["yflip"][0]
    assert scipy.stats.binomtest(int(together.sum()), n, p**3 / 2).pvalue > P_VALUE
    warped = int(params.warped().sum())
    assert scipy.stats.binomtest(warped, n, 1 - (1 - p) ** 4).pvalue > P_VALUE


def test_parameters_follow_their_distributions():
    params = parameters(raw_numbers(Draws(range(20_000))), 1.0)
    for values in (params.scale, params.stretch, params.shift[:, 0], params.shift[:, 1]):
        assert scipy.stats.kstest(values.numpy(), "norm").pvalue > P_VALUE
    angles = scipy.stats.uniform(-math.pi, 2 * math.pi).cdf
    for values in (params.rotation, params.axis[params.axis != 0]):
        assert scipy.stats.kstest(values.numpy(), angles).pvalue > P_VALUE
    numbers = torch.stack((params.scale, params.stretch, params.rotation, *params.shift.T))
    correlation = torch.corrcoef(numbers) - torch.eye(5)
    assert correlation.abs().max() < 0.03


@pytest.mark.gpu
def test_a_gpu_gives_the_same_images():
    images = gaussian(32, 3, 24, 20, dtype=torch.float32)
    expected, labels = augment(images, Draws(range(32)), 0.5)
    out, same = augment(images.cuda(), Draws(range(32), "cuda"), 0.5)
    torch.testing.assert_close(same.cpu(), labels, rtol=0, atol=1e-5)
    torch.testing.assert_close(out.cpu(), expected, rtol=0, atol=1e-3)
