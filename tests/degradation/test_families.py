"""Random families: what an operator depends on, and the laws it is drawn from."""

import hashlib
import math

import numpy as np
import pytest
import scipy.stats
import torch
from helpers import (
    assert_penrose,
    check_laws,
    dense,
    dense_pinv,
    gaussian,
)

from degradation import (
    FAMILIES,
    Box,
    DenseMatrix,
    Mask,
    MatrixDegradation,
    MissingBox,
    MissingPatches,
    MotionBlur,
    NoDegradation,
    NullOperator,
    RandomDegradation,
    SRConv,
    StridedConvolution,
    blur,
    get_family,
)

P_VALUE = 1e-3  # the seeds are fixed, so a pass stays a pass; a wrong law gives far below 1e-9
every_family = pytest.mark.parametrize("name", list(FAMILIES))

# Families of few operators, or of one: two seeds need not differ.
FEW = {
    *("CentreBox", "HalfImage", "FixedMask", "AveragePool", "Bicubic", "UniformBlur"),
    *("FixedKernel", "Colourisation"),
}


def family_of(name, shape=(3, 16, 16)):
    """The family with its defaults, or with what it cannot do without."""
    given = {
        "FixedMask": {"mask": (gaussian(1, *shape[1:]) > 0).float()},
        "FixedKernel": {"kernel": gaussian(4, 5).float(), "stride": 2},
    }
    return get_family(name, given.get(name))


def uniform_counts(counts) -> bool:
    return scipy.stats.chisquare(np.asarray(counts)).pvalue > P_VALUE


def structures(family) -> list:
    """Every structure that the family draws, in the order of their first seeds."""
    return list(dict.fromkeys(family.structure(seed) for seed in range(200)))


def one_seed_each(family) -> list:
    """(structure, seed that draws it)."""
    return [
        (s, next(i for i in range(200) if family.structure(i) == s)) for s in structures(family)
    ]


# Every family


@every_family
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 16, 24)])
def test_sampled_operators_obey_penrose(name, shape):
    family = family_of(name, shape)
    for structure, seed in one_seed_each(family):
        seeds = [seed, 10_000 + seed] if shape[0] == 1 else [seed]
        op = family.sample(shape, structure, seeds)
        assert op.image_shape == shape and len(op) == len(seeds)
        H = dense(op)
        assert_penrose(H, dense_pinv(op), 1e-4)
        energy = H.double().square().sum((1, 2))
        torch.testing.assert_close(op.s.double().square().sum(1), energy, rtol=1e-5, atol=0)


@every_family
def test_an_operator_depends_on_its_own_seed_alone(name):
    shape = (2, 16, 16)
    family = family_of(name)
    seeds = [5, 77, 1234, 2**62 + 1, 9, 10]
    x = gaussian(1, *shape).float()
    for structure in structures(family):
        batch = family.sample(shape, structure, seeds)
        backwards = family.sample(shape, structure, seeds[::-1])
        images = x.expand(len(seeds), *shape)
        measured = batch.H(images)
        torch.testing.assert_close(backwards.H(images).flip(0), measured, rtol=0, atol=1e-5)
        for i in (0, 3):
            alone = family.sample(shape, structure, seeds[i : i + 1])
            torch.testing.assert_close(alone.H(x), measured[i : i + 1], rtol=0, atol=1e-5)
            assert torch.equal(alone.rows, batch.rows[i : i + 1])
        if not isinstance(batch, NullOperator) and name not in FEW:
            assert torch.cdist(measured, measured).add(torch.eye(6)).min() > 5e-5  # all differ


@every_family
def test_structure_is_a_function_of_the_seed(name):
    drawn = [family_of(name).structure(seed) for seed in range(30)]
    assert drawn == [family_of(name).structure(seed) for seed in range(30)]
    assert set(family_of(name).structures()) == set(structures(family_of(name)))
    several = {"MotionBlur", "SRConv", "AveragePool", "Bicubic", "RandomDegradation"}
    assert (len(set(drawn)) > 1) == (name in several)


@every_family
def test_a_family_goes_by_its_name(name):
    assert type(family_of(name)) is FAMILIES[name]
    if not name.startswith("Fixed"):
        assert get_family(f"degradation.{name}") == get_family(name)


@every_family
def test_operators_obey_their_laws_at_the_size_of_photos(name):
    shape = 3, 48, 64
    family = family_of(name, shape)
    family.check(shape)
    for structure, seed in one_seed_each(family):
        op = family.sample(shape, structure, [seed, 10_000 + seed])
        check_laws(op, seed, 1e-4)


# Drawn before the families came into files of their own; masks exactly, the others to rounding.
FROZEN_MASKS = {
    "MissingPatches": "0fc1f27eeccbb6e4",
    "Box": "9d34d7bdaae67b49",
    "MissingBox": "a97c7d787a2e3943",
}
FROZEN = {
    ("MotionBlur", 2): [0.3140804, 0.3277525, 0.3013725, 0.3402812],
    ("MotionBlur", 4): [-0.0319278, -0.0278434, -0.0367107, -0.0208144],
    ("MotionBlur", 8): [-0.3767717, -0.3768143, -0.3774887, -0.3769194],
    ("SRConv", 2): [0.1549964, 0.1245238, 0.3034345, -0.3307497],
    ("SRConv", 4): [-0.0503241, 0.0369626, 0.0392934, -0.3257112],
    ("SRConv", 8): [-0.0352544, -0.1010592, 0.0322485, 0.0554807],
    ("MatrixDegradation", None): [-1.3679283, 0.2393705, 0.4380413, 0.3402818],
}
FROZEN_SEEDS = [0, 7, 123456789, 2**62 + 3]


@pytest.mark.parametrize("name", list(FROZEN_MASKS))
def test_masks_of_a_seed_stay_what_they_were(name):
    mask = get_family(name).sample((3, 16, 16), None, FROZEN_SEEDS).mask
    digest = hashlib.blake2b(mask.to(torch.uint8).numpy().tobytes(), digest_size=8)
    assert digest.hexdigest() == FROZEN_MASKS[name]


@pytest.mark.parametrize(("name", "structure"), list(FROZEN))
def test_operators_of_a_seed_stay_what_they_were(name, structure):
    x = (0.37 * torch.arange(3 * 16 * 16)).cos().view(1, 3, 16, 16).expand(4, -1, -1, -1)
    y = get_family(name).sample((3, 16, 16), structure, FROZEN_SEEDS).H(x)[:, 1]
    torch.testing.assert_close(y, torch.tensor(FROZEN[name, structure]), rtol=0, atol=2e-6)


def test_structures_of_a_seed_stay_what_they_were():
    drawn = [get_family("RandomDegradation").structure(seed) for seed in range(12)]
    assert [member for member, _ in drawn] == [3, 3, 2, 3, 2, 2, 0, 0, 1, 3, 3, 1]
    assert [inner for member, inner in drawn if member == 0] == [8, 2]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: MissingPatches(0.0), "max_visible must lie between 0.0001 and 1"),
        (lambda: MissingPatches(1.5), "not 1.5"),
        (lambda: MatrixDegradation(0, 4), "1 ≤ min_rows ≤ max_rows must hold, not 0 and 4"),
        (lambda: MatrixDegradation(5, 4), "not 5 and 4"),
    ],
)
def test_options_out_of_range_are_refused(make, text):
    with pytest.raises(ValueError, match=text):
        make()


# Masks


def masks(family, shape, count, first=0):
    """Masks `[count, h, w]` as numbers."""
    op = family.sample(shape, None, range(first, first + count))
    return op.mask.expand(-1, 1, *shape[1:]).squeeze(1)


def largest_side(mask: torch.Tensor, sides: list[int]) -> torch.Tensor:
    """For each mask the largest side of aligned squares on which it is constant, `[B]`."""
    result = torch.zeros(len(mask), dtype=torch.int64)
    for side in sides:
        blocks = mask[:, ::side, ::side].repeat_interleave(side, 1).repeat_interleave(side, 2)
        result[(blocks[:, : mask.shape[1], : mask.shape[2]] == mask).flatten(1).all(1)] = side
    return result


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (12, 20)])
def test_the_law_of_missing_patches(size):
    h, w = size
    mask = masks(MissingPatches(), (3, h, w), 4000)
    visible = mask.flatten(1).mean(1)
    assert (visible > 0).all() and (visible < 1).all()
    sides = [1, 2, 4, 8, 16][: int(math.log2(min(size))) + 1]
    side = largest_side(mask, sides)
    assert (side > 0).all()

    # p is uniform in (0, 0.1); none or all of n patches visible is drawn anew, side and all.
    n = np.array([math.ceil(h / s) * math.ceil(w / s) for s in sides])
    all_visible = 0.1**n / (n + 1)
    accepted = 1 - (1 - 0.9 ** (n + 1)) / (0.1 * (n + 1)) - all_visible
    accepted[n == 1] = 0
    counts = np.array([(side == s).sum() for s in sides])
    expected = 4000 * accepted / accepted.sum()
    assert (counts[n == 1] == 0).all()
    assert scipy.stats.chisquare(counts[n > 1], expected[n > 1]).pvalue > P_VALUE

    for s, patches, chance, full in zip(sides, n, accepted, all_visible, strict=True):
        if patches > 1 and h % s == w % s == 0:
            share = visible[side == s].double()
            mean = (0.05 - full) / chance
            assert abs(share.mean() - mean) < 4.5 * share.std() / math.sqrt(len(share))
    share = visible[side == 1]  # of h·w patches
    assert share.max() < 0.1 + 4.5 * math.sqrt(0.1 * 0.9 / (h * w))


def test_missing_patches_are_visible_independently_of_their_place():
    visible = masks(MissingPatches(), (3, 8, 8), 6000).mean(0)
    error = math.sqrt(visible.mean() * (1 - visible.mean()) / 6000)
    assert (visible - visible.mean()).abs().max() < 5 * error


def test_the_visible_share_is_an_option_of_missing_patches():
    share = masks(MissingPatches(max_visible=1.0), (3, 16, 16), 2000)
    share = share[largest_side(share, [1, 2, 4, 8, 16]) == 1].flatten(1).mean(1)
    assert share.max() > 0.95
    assert scipy.stats.kstest(share, "uniform").pvalue > P_VALUE


@pytest.mark.parametrize("family", [MissingPatches(), Box(), MissingBox()])
def test_all_channels_share_a_mask(family):
    seen = family.sample((3, 16, 16), None, range(20)).rows.unflatten(1, (3, 256))
    assert torch.equal(seen, seen[:, :1].expand(-1, 3, -1))


def cuts(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """First and one past the last index seen, of bool `[B, n]` that are one interval each."""
    index = torch.arange(seen.shape[1])
    first = torch.where(seen, index, seen.shape[1]).amin(1)
    end = torch.where(seen, index, -1).amax(1) + 1
    assert torch.equal(seen, (index >= first[:, None]) & (index < end[:, None]))
    assert (first < end).all()
    return first, end


def test_a_box_lies_between_two_distinct_uniform_cuts_of_each_axis():
    h, w = 6, 9
    seen = masks(Box(), (3, h, w), 6000).bool()
    top, bottom = cuts(seen.any(2))
    left, right = cuts(seen.any(1))
    assert torch.equal(seen, seen.any(2)[:, :, None] & seen.any(1)[:, None, :])
    for first, end, n in ((top, bottom, h), (left, right, w)):
        counts = torch.bincount(first * (n + 1) + end, minlength=(n + 1) ** 2).view(n + 1, n + 1)
        above = torch.ones(n + 1, n + 1).triu(1).bool()
        assert uniform_counts(counts[above])
    table = np.zeros((h + 1, w + 1))
    np.add.at(table, (top.numpy(), left.numpy()), 1)
    table = table[:h, :w]
    assert scipy.stats.chi2_contingency(table[:4, :6]).pvalue > P_VALUE


def test_a_missing_box_is_the_complement_of_the_box():
    boxes = masks(Box(), (3, 16, 24), 50, first=7)
    assert torch.equal(masks(MissingBox(), (3, 16, 24), 50, first=7), 1 - boxes)


# Convolutions and matrices


@pytest.fixture
def kernels_of(monkeypatch):
    """`kernels_of(family, stride, seeds)`: the kernels that the operators are made from."""
    seen = []

    def record(kernel, stride, shape):
        seen.append(kernel)
        return StridedConvolution(kernel, stride, shape)

    monkeypatch.setattr(blur, "StridedConvolution", record)

    def draw(family, stride, seeds, shape=(1, 16, 24)):
        op = family.sample(shape, stride, seeds)
        assert op.stride == stride
        return seen[-1]

    return draw


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_motion_kernels_average(kernels_of, stride):
    kernel = kernels_of(MotionBlur(), stride, range(20))
    assert kernel.shape == (20, 8, 12)  # half the image
    assert (kernel >= 0).all()
    torch.testing.assert_close(kernel.sum((1, 2)), torch.ones(20), rtol=0, atol=1e-5)
    op = MotionBlur().sample((1, 16, 24), stride, range(20))
    grey = op.H(torch.full((20, 1, 16, 24), 0.3))
    torch.testing.assert_close(grey, torch.full_like(grey, 0.3), rtol=0, atol=1e-5)


def test_motion_kernels_are_smoothed_by_their_stride(kernels_of):
    peaks = [kernels_of(MotionBlur(), s, range(20), (1, 32, 32)).amax((1, 2)) for s in (2, 4, 8)]
    assert (peaks[0] > peaks[1]).all() and (peaks[1] > peaks[2]).all()


@pytest.mark.parametrize("stride", [2, 4, 8])
def test_srconv_kernels_are_white_and_of_unit_magnitude(kernels_of, stride):
    kernel = kernels_of(SRConv(), stride, range(400))
    assert kernel.shape == (400, 2 * stride, 2 * stride)
    total = kernel.abs().sum((1, 2))
    torch.testing.assert_close(total, torch.ones(400), rtol=0, atol=1e-5)
    white = kernel / kernel.square().mean((1, 2), keepdim=True).sqrt()
    correlation = (white.flatten(1).T @ white.flatten(1)) / 400
    assert (correlation - torch.eye(4 * stride**2)).abs().max() < 6 / math.sqrt(400)


@pytest.mark.parametrize("family", [MotionBlur(), SRConv()])
def test_strides_are_uniform(family):
    drawn = [family.structure(seed) for seed in range(450)]
    assert set(drawn) == {2, 4, 8}
    assert uniform_counts([drawn.count(s) for s in (2, 4, 8)])
    assert {type(family)((3,)).structure(seed) for seed in range(5)} == {3}


def test_numbers_of_matrix_rows_are_uniform_from_2_to_128():
    counts = MatrixDegradation().sample((1, 2, 2), None, range(400)).rows.sum(1)
    assert counts.min() >= 2 and counts.max() <= 128
    jittered = (counts.numpy() - 2 + np.random.default_rng(0).uniform(size=400)) / 127
    assert scipy.stats.kstest(jittered, "uniform").pvalue > P_VALUE
    few = MatrixDegradation(3, 7).sample((1, 4, 4), None, range(400)).rows.sum(1)
    assert uniform_counts(torch.bincount(few, minlength=8)[3:])
    assert few.min() == 3 and few.max() == 7


def test_matrix_rows_are_directions_of_unit_norm_stored_first():
    op = MatrixDegradation().sample((3, 16, 16), None, range(12))
    rows = op.H_adjoint(torch.eye(128).expand(12, 128, 128)).flatten(2)
    counts = op.rows.sum(1)
    assert torch.equal(op.rows, torch.arange(128) < counts[:, None])
    torch.testing.assert_close(rows.norm(dim=2), op.rows.float(), rtol=0, atol=1e-5)
    values = rows[op.rows].flatten() * math.sqrt(768)
    assert scipy.stats.kstest(values[:100_000].numpy(), "norm").pvalue > P_VALUE
    overlap = rows @ rows.mT - torch.diag_embed(op.rows.float())
    assert overlap.abs().max() < 6.5 / math.sqrt(768)


def test_matrix_rows_do_not_depend_on_how_many_there_are():
    eye = torch.eye(4).expand(1, 4, 4)
    few = MatrixDegradation(4, 4).sample((1, 8, 8), None, [3]).H_adjoint(eye)
    more = MatrixDegradation(9, 9).sample((1, 8, 8), None, [3])
    more = more.H_adjoint(torch.eye(4, 9).expand(1, 4, 9))
    torch.testing.assert_close(few, more, rtol=0, atol=1e-5)


# The mixture


def test_the_mixture_is_uniform_over_its_members():
    family = RandomDegradation()
    drawn = [family.structure(seed) for seed in range(900)]
    members = [member for member, _ in drawn]
    assert uniform_counts(np.bincount(members, minlength=4))
    kinds = {
        member: type(family.sample((3, 16, 16), (member, inner), [0]))
        for member, inner in set(drawn)
    }
    assert kinds == {0: StridedConvolution, 1: Mask, 2: DenseMatrix, 3: NullOperator}
    strides = [inner for member, inner in drawn if member == 0]
    assert uniform_counts([strides.count(s) for s in (2, 4, 8)])


def test_a_member_of_the_mixture_is_its_family():
    mixture = RandomDegradation((Box(), NoDegradation(), SRConv((4,))))
    seeds, x = [1, 2, 3], gaussian(3, 3, 16, 16).float()
    assert torch.equal(
        mixture.sample((3, 16, 16), (0, None), seeds).H(x),
        Box().sample((3, 16, 16), None, seeds).H(x),
    )
    assert {mixture.structure(seed) for seed in range(50)} == {(0, None), (1, None), (2, 4)}


def test_one_pixel_has_no_mask():
    with pytest.raises(ValueError, match="one pixel"):
        MissingPatches().sample((3, 1, 1), None, [0])
