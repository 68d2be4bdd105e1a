"""Products of matrices by oneDNN: the same numbers, in eager mode, backward and compiled."""

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from helpers import gaussian
from torch import Tensor

from networks import cpu

# Few rows and many, narrow to wide and back, and too little work for the other kernel.
SIZES = [(2, 3, 4, 5), (4, 8, 8, 192, 96), (3, 40, 700, 320), (4096, 64, 17)]


@pytest.fixture
def multiplied(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[tuple[int, ...]]]:
    """oneDNN multiplies inside; the shapes that it has met."""
    shapes, multiply = [], cpu.multiply

    def record(a: Tensor, b: Tensor) -> Tensor:
        shapes.append((*a.shape, b.shape[1]))
        return multiply(a, b)

    monkeypatch.setattr(cpu, "multiply", record)
    cpu.use_onednn()
    yield shapes
    cpu.use_onednn(False)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["rows", "half", "columns"])
def test_products_and_gradients(
    size: tuple[int, ...], layout: str, multiplied: list[tuple[int, ...]]
) -> None:
    *rows, inputs, outputs = size
    wide = gaussian(outputs, 2 * inputs, seed=1).float() / inputs**0.5
    weight = {
        "rows": wide[:, :inputs].contiguous(),
        "half": wide[:, inputs:],  # of the map of two streams
        "columns": wide[:, :inputs].T.contiguous().T,
    }[layout]
    x = gaussian(*rows, inputs, seed=2).float()

    def gradients(*factors: Tensor) -> tuple[Tensor, ...]:
        x, weight = (factor.detach().requires_grad_() for factor in factors)
        out = F.linear(x, weight)
        along = torch.arange(out.numel()).view_as(out).sin()
        return out, *torch.autograd.grad((out * along).sum(), (x, weight))

    found = gradients(x, weight)
    assert len(multiplied) == (3 if x.numel() * outputs >= 2**19 else 0)
    for a, b in zip(found, gradients(x.double(), weight.double()), strict=True):
        scale = b.abs().amax()
        torch.testing.assert_close(a / scale, (b / scale).float(), rtol=0, atol=2e-6)


def test_compiled_graphs_multiply_by_it_too(multiplied: list[tuple[int, ...]]) -> None:
    x, weight = gaussian(512, 64, seed=3).float(), gaussian(96, 64, seed=4).float()
    found = torch.compile(F.linear, fullgraph=True)(x, weight)
    assert multiplied
    torch.testing.assert_close(found, x @ weight.T, rtol=1e-4, atol=1e-4)


def test_other_types_and_shapes_are_pytorchs_own(multiplied: list[tuple[int, ...]]) -> None:
    """In half and double precision and under autocast; what PyTorch refuses is refused."""
    x, weight = gaussian(4096, 64, seed=7), gaussian(96, 64, seed=8)
    for dtype in (torch.bfloat16, torch.float64):
        assert F.linear(x.to(dtype), weight.to(dtype)).dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert F.linear(x.float(), weight.float()).dtype == torch.bfloat16
    for other in (weight.float(), weight.double().T):  # another shape, another type
        with pytest.raises(RuntimeError):
            torch.mm(x.float(), other)
    assert not multiplied


def test_it_is_undone() -> None:
    x = gaussian(512, 64, seed=5).float()
    plain = x @ x.T
    cpu.use_onednn()
    assert cpu.uses_onednn()
    cpu.use_onednn(False)
    assert not cpu.uses_onednn() and torch.equal(x @ x.T, plain)


@pytest.mark.parametrize(("gain", "taken"), [(1.0, False), (2.0, True)])
def test_it_is_switched_on_where_it_is_faster(
    gain: float, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cpu, "keep_memory", lambda: None)
    monkeypatch.setattr(cpu, "has_kernels", lambda: True)
    monkeypatch.setattr(cpu, "_gain", lambda: gain)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    try:
        cpu.tune()
        assert cpu.uses_onednn() == taken
    finally:
        cpu.use_onednn(False)
