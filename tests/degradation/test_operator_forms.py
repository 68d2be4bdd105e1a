"""Operators in stacks, sub-batches, precisions, under autograd and autocast."""

import pytest
import torch
from helpers import (
    data,
    gaussian,
    images,
)
from operator_cases import BATCH, LEVELS, both_forms, both_precisions, build, every_operator

from degradation import (
    ChannelProduct,
    DenseMatrix,
    Mask,
    Problem,
    StridedConvolution,
    ValidConvolution,
)
from degradation.base import apply_matrix
from networks import Denoiser, make_config


@every_operator
@both_precisions
def test_a_stack_is_its_images_one_by_one(case, dtype):
    op = build(case, dtype)
    for fn, stacks in both_forms(op):
        stacked = fn(*stacks)
        alone = torch.stack([fn(*(s[:, k] for s in stacks)) for k in range(4)], 1)
        torch.testing.assert_close(stacked, alone, rtol=0, atol=300 * torch.finfo(dtype).eps)
        assert fn(*(s[:, :1] for s in stacks)).shape == stacked[:, :1].shape


# The batch, precision and gradients


@every_operator
@pytest.mark.parametrize(
    "index", [slice(1, 3), [2, 0], torch.tensor([1]), torch.tensor([True, False, True])]
)
def test_index_gives_the_operators_of_a_sub_batch(case, index):
    op = build(case)
    part = op[index]
    x, y = images(op), data(op)
    assert len(part) == len(x[index])
    torch.testing.assert_close(part.H(x[index]), op.H(x)[index])
    torch.testing.assert_close(part.H_pinv(y[index], 0.1), op.H_pinv(y, 0.1)[index])
    assert torch.equal(part.rows, op.rows[index])


@every_operator
def test_expand_repeats_the_batch_in_blocks(case):
    op = build(case)
    x = gaussian(2 * BATCH, *op.image_shape)
    twice = op.expand(2)
    assert len(twice) == 2 * BATCH
    torch.testing.assert_close(twice.H(x), torch.cat((op.H(x[:BATCH]), op.H(x[BATCH:]))))
    assert torch.equal(twice.s, torch.cat((op.s, op.s)))


@every_operator
def test_expand_of_one_operator_shares_its_storage(case):
    op = build(case)[:1]
    many = op.expand(5)
    assert len(many) == 5
    pairs = [(op, many)]
    if isinstance(op, ChannelProduct):
        pairs.append((op.measured, many.measured))
    for one, copies in pairs:
        for name in one.tensors:
            assert getattr(copies, name).data_ptr() == getattr(one, name).data_ptr()
            assert getattr(copies, name).stride(0) == 0
    x = gaussian(5, *op.image_shape)
    torch.testing.assert_close(many.H(x), op.H(x[None])[0])


@every_operator
def test_to_float64(case):
    short = build(case, torch.float32)
    op = short.to(torch.float64)
    x, y = images(op), data(short)
    assert op.H(x).dtype == op.H_pinv(y.double()).dtype == op.s.dtype == torch.float64
    torch.testing.assert_close(op.H(x).float(), short.H(x.float()), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        op.H_pinv(y.double(), 0.1).float(), short.H_pinv(y, 0.1), rtol=1e-4, atol=1e-4
    )
    assert op.rows.dtype == torch.bool and torch.equal(op.rows, short.rows)
    assert short.s.dtype == torch.float32  # a copy was moved


@every_operator
def test_gradients(case):
    op = build(case)[:2]
    x, y = images(op).requires_grad_(), data(op).requires_grad_()
    for fn in (op.H_adjoint, op.H_pinv, lambda y: op.H_pinv(y, LEVELS[:2])):
        assert torch.autograd.gradcheck(fn, y, fast_mode=True)
    assert torch.autograd.gradcheck(op.H, x, fast_mode=True)
    assert torch.autograd.gradcheck(op.project, (x, y), fast_mode=True)
    (gradient,) = torch.autograd.grad(op.H(x), x, y.detach())
    torch.testing.assert_close(gradient, op.H_adjoint(y.detach()), rtol=0, atol=1e-11)


@every_operator
def test_short_inputs_are_worked_on_in_float32(case):
    op = build(case, torch.float32)
    for fn, stacks in both_forms(op):
        short = [s.bfloat16() for s in stacks]
        result = fn(*short)
        assert result.dtype == torch.float32 or fn == op.project
        expected = fn(*(s.float() for s in short))
        torch.testing.assert_close(result, expected, rtol=0, atol=1e-4)


@every_operator
@pytest.mark.parametrize("made", ["outside", "inside"])
def test_autocast_changes_nothing(case, made):
    op = build(case, torch.float32)
    expected = [fn(*stacks) for fn, stacks in both_forms(op)]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        op = build(case, torch.float32) if made == "inside" else op
        results = [fn(*stacks) for fn, stacks in both_forms(op)]
    for result, exact in zip(results, expected, strict=True):
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, exact, rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 40), (3, 4, 40)])
def test_a_compiled_product_with_each_matrix(shape):
    matrix, x = gaussian(3, 7, 40, seed=1).float(), gaussian(*shape, seed=2).float()
    x.requires_grad_()
    results = []
    for call in (apply_matrix, torch.compile(apply_matrix, fullgraph=True, dynamic=False)):
        out = call(matrix, x)
        results.append((out, *torch.autograd.grad(out.square().sum(), x)))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert results[0][0].shape == (*shape[:-1], 7)


def test_a_matrix_keeps_its_values_when_the_callers_change():
    W = gaussian(1, 3, 48, dtype=torch.float32)
    op, x = DenseMatrix(W, (3, 4, 4)), gaussian(1, 3, 4, 4, dtype=torch.float32)
    before = op.H(x)
    W *= 2
    assert torch.equal(op.H(x), before)


def test_images_in_float64_meet_operators_in_float32():
    x = gaussian(1, 3, 8, 8)
    kernel = torch.ones(1, 3, 3) / 9
    for op in (
        DenseMatrix(gaussian(1, 5, 192, dtype=torch.float32), (3, 8, 8)),
        ChannelProduct(torch.ones(1, 1, 3), Mask(torch.ones(1, 1, 8, 8), (1, 8, 8))),
        ValidConvolution(kernel, 1, (3, 8, 8)),
        StridedConvolution(kernel, 2, (3, 8, 8)),
    ):
        y = op.H(x)
        assert y.dtype == torch.float64
        assert op.H_pinv(y).dtype == torch.float64
        torch.testing.assert_close(op.H(x.float()), y.float(), rtol=1e-5, atol=1e-5)


def test_constants_made_in_inference_mode_serve_training_later():
    from degradation import hadamard

    hadamard._hadamard.cache_clear()
    denoiser = Denoiser(make_config("tiny"))
    task, image = Problem.without_measurement(1, (3, 16, 16)), torch.ones(1, 3, 16, 16)
    with torch.inference_mode():
        denoiser(image, 1.0, task)
        hadamard.walsh_hadamard(torch.ones(1, 8))
    x = torch.ones(1, 1, 8, 8, requires_grad=True)
    hadamard.walsh_hadamard(x.flatten(1)).sum().backward()
    denoiser(image, 1.0, Problem.without_measurement(1, (3, 16, 16))).sum().backward()
    assert x.grad.isfinite().all()
