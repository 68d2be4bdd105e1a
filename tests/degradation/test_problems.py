"""Noise, and problems: an operator with its measurement."""

import dataclasses
import math

import pytest
import scipy.stats
import torch
from helpers import (
    assert_near,
    dense,
    gaussian,
    regularised_inverse,
)

from degradation import (
    Box,
    Draws,
    GaussianNoise,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    NoDegradation,
    NullOperator,
    Problem,
    SRConv,
)

P_VALUE = 1e-3  # the seeds are fixed, so a pass stays a pass; a wrong law gives far below 1e-9


# Noise


def noise_of(family, level, seeds, shape=(3, 16, 16)):
    """Operator and noise, measured from the difference to a measurement without noise."""
    op = family.sample(shape, family.structure(0), seeds)
    x = gaussian(len(op), *shape).float()
    problem = GaussianNoise(level).measure(op, x, Draws(seeds))
    clean = GaussianNoise().measure(op, x, Draws(seeds))
    assert torch.equal(clean.y, op.H(x)) and (clean.levels == 0).all()
    assert problem.degradation is op
    assert torch.equal(problem.levels, torch.full((len(op),), level))
    return op, problem.y - clean.y


@pytest.mark.parametrize(
    "family", [Box(), MissingPatches(), MatrixDegradation(), MotionBlur(), NoDegradation()]
)
@pytest.mark.parametrize("level", [0.1, 0.5])
def test_noise_is_white_on_existing_rows_and_nowhere_else(family, level):
    op, noise = noise_of(family, level, range(200))
    assert (noise[~op.rows] == 0).all()
    on = noise[op.rows].double() / level
    if isinstance(family, NoDegradation):
        assert len(on) == 0
        return
    assert scipy.stats.kstest(on.numpy(), "norm").pvalue > P_VALUE
    assert abs(on.std() - 1) < 4.5 / math.sqrt(2 * len(on))
    assert abs((on[1:] * on[:-1]).mean()) < 4.5 / math.sqrt(len(on))


def test_noise_is_that_of_the_seed_of_the_image():
    _, batch = noise_of(SRConv((4,)), 0.1, [1, 2, 3])
    _, alone = noise_of(SRConv((4,)), 0.1, [3])
    torch.testing.assert_close(batch[2:], alone, rtol=0, atol=1e-6)
    assert not torch.allclose(batch[0], batch[1], atol=0.05)


@pytest.mark.parametrize("level", [-0.1, math.inf, math.nan])
def test_impossible_noise_levels_are_refused(level):
    with pytest.raises(ValueError, match="noise level must be a number ≥ 0, not"):
        GaussianNoise(level)


# Problems


LEVELS = torch.tensor([0.0, 0.1, 1.0])
LABELS = torch.tensor([4, -1, 7])


@pytest.fixture(params=[MissingPatches(), SRConv((2,)), MatrixDegradation(), NoDegradation()])
def problem(request) -> Problem:
    op = request.param.sample((3, 8, 8), request.param.structure(0), [1, 2, 3])
    noise = gaussian(*op.rows.shape, seed=1).float()
    y = op.H(gaussian(3, 3, 8, 8).float()) + 0.1 * op.rows * noise
    return Problem(op, y, LEVELS, LABELS)


def test_a_noise_level_is_kept_for_each_image(problem):
    assert len(problem) == 3
    assert torch.equal(problem.levels, LEVELS)
    same = Problem(problem.degradation, problem.y, 0.3)
    assert torch.equal(same.levels, torch.full((3,), 0.3))
    assert same.class_labels is None
    assert torch.equal(Problem(problem.degradation, problem.y).levels, torch.zeros(3))


def test_a_problem_is_frozen_and_its_levels_fit(problem):
    with pytest.raises(dataclasses.FrozenInstanceError):
        problem.noise_level = 0.1
    with pytest.raises(ValueError, match="5 noise levels cannot be those of 3 problems"):
        Problem(problem.degradation, problem.y, torch.zeros(5))


def test_the_unconditional_problem_keeps_only_the_class(problem):
    plain = problem.unconditional()
    assert isinstance(plain.degradation, NullOperator)
    assert plain.degradation.image_shape == (3, 8, 8)
    assert len(plain) == len(plain.degradation) == 3
    assert not plain.degradation.rows.any()
    assert (plain.levels == 0).all() and (plain.y == 0).all()
    assert torch.equal(plain.class_labels, LABELS)
    assert (plain.pinv() == 0).all() and plain.pinv().shape == (3, 3, 8, 8)
    assert problem.with_classes(None).unconditional().class_labels is None


def test_with_classes_changes_nothing_else(problem):
    other = problem.with_classes(torch.tensor([0, 1, 2]))
    assert other.class_labels.tolist() == [0, 1, 2]
    assert other.degradation is problem.degradation and other.y is problem.y
    assert torch.equal(other.levels, problem.levels)


def test_expand_repeats_a_problem_in_blocks(problem):
    twice = problem.expand(2)
    x = gaussian(6, 3, 8, 8).float()
    assert len(twice) == len(twice.degradation) == 6
    halves = torch.cat((problem.residual(x[:3]), problem.residual(x[3:])))
    torch.testing.assert_close(twice.residual(x), halves, rtol=0, atol=1e-5)
    torch.testing.assert_close(twice.pinv(), torch.cat((problem.pinv(), problem.pinv())))
    assert torch.equal(twice.levels, LEVELS.repeat(2))
    assert torch.equal(twice.class_labels, LABELS.repeat(2))
    assert problem.with_classes(None).expand(2).class_labels is None


@pytest.mark.parametrize("index", [slice(1, 3), [2, 0], torch.tensor([False, True, False])])
def test_index_gives_the_problems_of_a_sub_batch(problem, index):
    whole = problem.pinv()  # computed once for each problem, never handed down
    part, x = problem[index], gaussian(3, 3, 8, 8).float()
    torch.testing.assert_close(part.pinv(), whole[index])
    torch.testing.assert_close(part.project(x[index]), problem.project(x)[index])
    assert torch.equal(part.y, problem.y[index])
    assert torch.equal(part.levels, LEVELS[index])
    assert torch.equal(part.class_labels, LABELS[index])
    assert problem.with_classes(None)[index].class_labels is None


def test_the_inverse_is_regularised_by_the_noise(problem):
    H = dense(problem.degradation).double()
    x = gaussian(3, 3, 8, 8)
    inverse = torch.linalg.pinv(H, rtol=1e-5)
    inverse[1:] = regularised_inverse(H[1:], LEVELS[1:])
    expected = torch.einsum("bnm,bm->bn", inverse, problem.y.double())
    assert_near(problem.pinv().flatten(1), expected, 1e-4)
    residual = problem.y - torch.einsum("bmn,bn->bm", H, x.flatten(1))
    torch.testing.assert_close(problem.residual(x.float()).double(), residual, rtol=0, atol=1e-5)
    projected = x.flatten(1) + torch.einsum("bnm,bm->bn", inverse, residual)
    assert_near(problem.project(x.float()).flatten(1), projected, 1e-4)


def test_without_measurement_is_plain_generation():
    plain = Problem.without_measurement(2, (3, 4, 4), torch.tensor([1, 2]))
    x = gaussian(2, 3, 4, 4).float()
    assert (plain.residual(x) == 0).all()
    assert torch.equal(plain.project(x), x)
    assert plain.class_labels.tolist() == [1, 2]
    assert len(plain.to("cpu")) == 2
