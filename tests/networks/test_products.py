"""Linear maps by oneDNN, against PyTorch's own."""

from collections.abc import Callable, Iterator

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from networks import products
from networks.compiling import allow_graphs
from networks.products import Linear, linear

# Few rows and many, narrow to wide and back, and too little work for the other kernels.
SIZES = [(2, 3, 4, 5), (4, 8, 8, 192, 96), (2, 32, 32, 48, 200), (3, 40, 700, 320), (4096, 64, 17)]


@pytest.fixture
def use_threads() -> Iterator[Callable]:
    """Sets the number of threads for one test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def gradients(call: object, x: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    """The product and the gradients of both factors."""
    x, weight = x.requires_grad_(), weight.requires_grad_()
    out = call(x, weight)  # type: ignore[operator]
    along = torch.arange(out.numel()).view_as(out).sin()
    return out, *torch.autograd.grad((out * along).sum(), (x, weight))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["rows", "half", "columns"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("threads", [1, 2])
def test_products_and_gradients(
    size: tuple[int, ...], layout: str, compiled: bool, threads: int, use_threads: Callable
) -> None:
    use_threads(threads)
    *rows, inputs, outputs = size
    wide = gaussian(outputs, 2 * inputs, seed=1).float() / inputs**0.5
    weight = {
        "rows": wide[:, :inputs].contiguous(),
        "half": wide[:, inputs:],  # of the map of two streams
        "columns": wide[:, :inputs].T.contiguous().T,
    }[layout].detach()
    x = gaussian(*rows, inputs, seed=2).float()
    allow_graphs()
    call = torch.compile(linear, fullgraph=True, dynamic=False) if compiled else linear
    found = gradients(call, x.clone(), weight)
    expected = gradients(torch.nn.functional.linear, x.double(), weight.double())
    for a, b in zip(found, expected, strict=True):
        scale = b.abs().amax()
        torch.testing.assert_close(a / scale, (b / scale).float(), rtol=0, atol=2e-6)


def test_rows_out_of_order() -> None:
    x = gaussian(8, 192, 64, seed=3).float().transpose(1, 2)
    weight = gaussian(96, 192, seed=4).float()
    torch.testing.assert_close(linear(x, weight), x @ weight.T, rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(not products._HAS_KERNELS, reason="no AVX-512")
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("rows", [63, 64])
def test_large_products_are_by_onednn(
    monkeypatch: pytest.MonkeyPatch, compiled: bool, rows: int
) -> None:
    calls, multiply = [], products._multiply
    monkeypatch.setattr(products, "_multiply", lambda *x: calls.append(0) or multiply(*x))
    allow_graphs()
    call = torch.compile(linear, fullgraph=True, dynamic=False) if compiled else linear
    call(torch.ones(rows, 64), torch.ones(128, 64))
    assert len(calls) == (rows * 64 * 128 >= products._LEAST)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("frozen", [0, 1])
def test_a_factor_is_kept_for_the_gradient_of_the_other_alone(compiled: bool, frozen: int) -> None:
    """Guidance by a frozen network would keep the activations of every layer for nothing."""
    shapes = (4096, 64), (32, 64)
    factors = [torch.ones(shape, requires_grad=i != frozen) for i, shape in enumerate(shapes)]
    allow_graphs()
    call = torch.compile(linear, fullgraph=True, dynamic=False) if compiled else linear
    kept: list[tuple[int, ...]] = []

    def keep(x: Tensor) -> Tensor:
        kept.append(tuple(x.shape))
        return x

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x):
        call(*factors)
    ((rows, columns),) = kept
    assert {rows, columns} == set(shapes[frozen])  # a compiler keeps either as its transpose


@pytest.mark.parametrize("wanted", [(True, False), (False, True), (False, False)])
def test_only_the_gradients_that_are_wanted(wanted: tuple[bool, bool]) -> None:
    x, weight = gaussian(4096, 64, seed=5).float(), gaussian(32, 64, seed=6).float()
    x.requires_grad_(wanted[0])
    weight.requires_grad_(wanted[1])
    out = linear(x, weight)
    assert out.requires_grad == any(wanted)
    if any(wanted):
        out.sum().backward()
    assert (x.grad is not None, weight.grad is not None) == wanted


def test_other_types_are_pytorchs_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under autocast, in half and in double precision."""
    monkeypatch.setattr(products, "_multiply", None)
    layer = Linear(64, 96)
    x = gaussian(4096, 64, seed=7)
    with torch.autocast("cpu", torch.bfloat16):
        assert layer(x.float()).dtype == torch.bfloat16
    for dtype in (torch.bfloat16, torch.float64):
        assert layer.to(dtype)(x.to(dtype)).dtype == dtype


def test_without_the_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_HAS_KERNELS", False)
    monkeypatch.setattr(products, "_multiply", None)
    x, weight = gaussian(4096, 64, seed=8).float(), gaussian(32, 64, seed=9).float()
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))
