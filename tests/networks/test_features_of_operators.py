"""Operators in the layout of a network's tokens do what they do to images."""

import math

import pytest
import torch
import torch.nn.functional as F
from einops import rearrange
from helpers import gaussian

from degradation import (
    DenseMatrix,
    Mask,
    NullOperator,
    Problem,
    StridedConvolution,
)
from networks import PRESETS, Denoiser
from networks.features import (
    ImageFeatures,
    MaskedFeatures,
    MatrixFeatures,
    PhaseFeatures,
    RowFeatures,
    feature_map,
    mix,
)

SHAPE = (3, 24, 48)
PATCH, STACK = 4, 5
KINDS = {
    **{"mask": MaskedFeatures, "mask of colours": MaskedFeatures},
    **{"matrix": RowFeatures, "nothing": ImageFeatures},
    **{"blur": PhaseFeatures, "blur, stride 2": PhaseFeatures, "blur, stride 4": PhaseFeatures},
    **{"blur, stride 8": MatrixFeatures, "blur, stride 12": MatrixFeatures},
    **{"blur, stride 3": ImageFeatures},
}


def operators(batch: int = 2) -> dict[str, object]:
    kernel = gaussian(batch, 3, 3, seed=1)
    return {
        "mask": Mask((gaussian(batch, 1, *SHAPE[1:], seed=2) > 0).double(), SHAPE),
        "mask of colours": Mask((gaussian(batch, *SHAPE, seed=2) > 0).double(), SHAPE),
        "matrix": DenseMatrix(gaussian(batch, 6, math.prod(SHAPE), seed=3), SHAPE),
        "blur": StridedConvolution(kernel, 1, SHAPE),
        **{f"blur, stride {s}": StridedConvolution(kernel, s, SHAPE) for s in (2, 3, 4, 8, 12)},
        "nothing": NullOperator(batch, SHAPE).to(torch.float64),
    }


def layer(problem: Problem, tokens: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor):
    """H†·GELU(T[y, Ha]) on images, as the paper has it."""
    images = rearrange(tokens, "b h w (p q k c) -> b k c (h p) (w q)", p=PATCH, q=PATCH, c=3)
    measured = torch.cat((problem.y[:, None], problem.degradation.H(images)), 1)
    mixed = F.gelu(weight @ measured + bias[:, None])
    images = problem.degradation.H_pinv(mixed, problem.levels)
    return rearrange(images, "b k c (h p) (w q) -> b h w (p q k c)", p=PATCH, q=PATCH)


@pytest.mark.parametrize(
    "kind", [*KINDS, "blur, stride 8, transforms", "blur, stride 12, transforms"]
)
@pytest.mark.parametrize("level", [0.0, 0.3])
def test_a_layer_in_tokens_is_the_layer_on_images(kind, level, monkeypatch):
    if kind.endswith(", transforms"):  # a stride of several tokens
        monkeypatch.setattr("degradation.convolution._SMALL", 0)
    kind = kind.removesuffix(", transforms")
    operator = operators()[kind]
    y = operator.H(gaussian(2, *SHAPE, seed=4))
    problem = Problem(operator, y, torch.tensor([level, 0.2 + level]))
    tokens = gaussian(2, 6, 12, PATCH * PATCH * STACK * 3, seed=5).requires_grad_()
    weight = gaussian(STACK, STACK + 1, seed=6).requires_grad_()
    bias = gaussian(STACK, seed=7).requires_grad_()
    features = feature_map(operator, y, problem.levels, PATCH)
    small = getattr(operator, "small", True)
    assert type(features) is (
        KINDS[kind] if small or issubclass(KINDS[kind], ImageFeatures) else PhaseFeatures
    )
    found = features.H_pinv(F.gelu(mix(features.H(tokens), features.y, weight, bias)))
    expected = layer(problem, tokens, weight, bias)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)
    direction = gaussian(*expected.shape, seed=8)
    variables = [tokens, weight, bias]
    ours = torch.autograd.grad((found * direction).sum(), variables)
    theirs = torch.autograd.grad((expected * direction).sum(), variables, allow_unused=True)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, torch.zeros_like(a) if b is None else b, rtol=1e-7, atol=1e-7)


def test_features_made_under_autocast_are_exact():
    shape = PRESETS["tiny"].image_shape
    denoiser = Denoiser(PRESETS["tiny"])
    operator = DenseMatrix(gaussian(2, 6, math.prod(shape), seed=3).float(), shape)
    problem = Problem(operator, gaussian(2, 6).float(), 0.1)
    with torch.autocast("cpu", torch.bfloat16):
        short = denoiser.net.features(problem)
    exact = denoiser.net.features(problem)
    assert torch.equal(short[0].inverse, exact[0].inverse)


def test_a_run_prepares_a_problem_once():
    shape = PRESETS["tiny"].image_shape
    denoiser = Denoiser(PRESETS["tiny"])
    operator = Mask((gaussian(2, 1, *shape[1:], seed=2) > 0).float(), shape)
    problem = Problem(operator, operator.H(gaussian(2, *shape).float()), 0.1)
    once = denoiser.prepare(problem)
    assert denoiser.prepare(once) is once and problem.prepared is None
    assert once.with_classes(torch.tensor([0, 1])).prepared is once.prepared
    assert once[:1].prepared is None and once.unconditional().prepared is None
    x = gaussian(2, *shape, seed=5).float()
    with torch.no_grad():
        assert torch.equal(denoiser(x, 1.0, once), denoiser(x, 1.0, problem))


def test_a_measurement_may_have_a_gradient():
    operator = operators()["matrix"]
    y = operator.H(gaussian(2, *SHAPE, seed=4)).requires_grad_()
    problem = Problem(operator, y)
    with torch.no_grad():
        problem.pinv()
    for _ in range(2):
        (found,) = torch.autograd.grad(problem.pinv().square().sum(), y)
    (expected,) = torch.autograd.grad(operator.H_pinv(y).square().sum(), y)
    torch.testing.assert_close(found, expected)
