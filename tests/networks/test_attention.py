"""Neighbourhood attention against a dense masked softmax, and the windows it looks through."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from benchmarks.reference_path import DenseNeighbourhood
from networks.attention import BACKENDS, backend_in_use, make_attention, tiled, use_backend
from networks.attention.fused import has_kernels

pytestmark = pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")

# Up to 64 tokens are one tile; narrow maps are cut across, larger ones into tiles of 8×8 queries.
SMALL = [(6, 5), (8, 8)]
TILED = [(16, 16), (9, 13), (20, 27), (17, 40)]


def attention(q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int | None) -> Tensor:
    """Of the backend that is demanded, or the device's own."""
    return make_attention(*q.shape[1:3], kernel, len(streams), q.device)(q, streams)


def dense_attention(q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int | None) -> Tensor:
    """By its definition."""
    return DenseNeighbourhood(*q.shape[1:3], kernel, len(streams), q.device)(q, streams)


def random_inputs(
    h: int, w: int, streams: int, dtype: torch.dtype, batch: int = 2, heads: int = 2, d: int = 4
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    def draw() -> Tensor:
        return torch.randn(batch, h, w, heads, d, dtype=dtype, requires_grad=True)

    return draw(), [(draw(), draw()) for _ in range(streams)]


def both(
    size: tuple[int, int], kernel: int | None, streams: int, dtype: torch.dtype
) -> list[tuple[Tensor, Tensor]]:
    """Pairs (ours, by definition) of the output and of the gradient of every input."""
    q, pairs = random_inputs(*size, streams, dtype)
    if backend_in_use() == "flex":  # FlexAttention has no gradients on a CPU: tests/test_gpu.py
        q, pairs = q.detach(), [(k.detach(), v.detach()) for k, v in pairs]
        return [(attention(q, pairs, kernel), dense_attention(q, pairs, kernel))]
    inputs = [q, *(x for pair in pairs for x in pair)]
    outputs = [f(q, pairs, kernel) for f in (attention, dense_attention)]
    direction = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(out, inputs, direction) for out in outputs]
    return [(outputs[0], outputs[1]), *zip(*gradients, strict=True)]


@pytest.mark.parametrize(("kernel", "streams"), [(4, 2), (7, 1)])
@pytest.mark.parametrize("size", SMALL + TILED, ids=lambda s: f"{s[0]}x{s[1]}")
def test_neighbourhood_is_the_masked_softmax(
    size: tuple[int, int], kernel: int, streams: int, backend: str
) -> None:
    if backend == "natten" and kernel > min(size):
        pytest.skip("natten's windows are no larger than the map")
    for ours, expected in both(size, kernel, streams, torch.float64):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("size", [(12, 9), (20, 27)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_neighbourhood_in_float32(size: tuple[int, int], streams: int, backend: str) -> None:
    for ours, expected in both(size, 5, streams, torch.float32):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize(
    ("size", "kernel"),
    [((18, 19), None), ((18, 19), 21), ((18, 19), 19), ((7, 5), 9)],
)
def test_a_kernel_beyond_the_map_is_global(
    size: tuple[int, int], kernel: int | None, streams: int
) -> None:
    for ours, expected in both(size, kernel, streams, torch.float64):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)
    q, pairs = random_inputs(*size, streams, torch.float64)
    torch.testing.assert_close(
        attention(q, pairs, kernel), dense_attention(q, pairs, None), rtol=1e-10, atol=1e-10
    )


@pytest.mark.parametrize("size", [(3, 100), (100, 3), (4, 6)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_a_kernel_beyond_one_side_sees_all_of_that_side(size: tuple[int, int]) -> None:
    for ours, expected in both(size, 5, 2, torch.float64):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


def seen(h: int, w: int, kernel: int, streams: int) -> Tensor:
    """Weights `[h, w, streams·h·w]` under uniform logits: values are one-hot in their position."""
    identity = torch.eye(streams * h * w)
    values = identity.reshape(streams, h, w, 1, streams * h * w)
    q, keys = torch.zeros(1, h, w, 1, 4), torch.randn(streams, h, w, 1, 4)
    pairs = [(keys[i : i + 1], values[i : i + 1]) for i in range(streams)]
    return attention(q, pairs, kernel)[0, :, :, 0]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [(8, 9), (20, 17)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_every_query_sees_the_same_number_of_keys(
    size: tuple[int, int], kernel: int, streams: int
) -> None:
    weights = seen(*size, kernel, streams)
    assert ((weights > 0).sum(-1) == streams * kernel**2).all()
    expected = torch.full_like(weights[weights > 0], 1 / (streams * kernel**2))
    torch.testing.assert_close(weights[weights > 0], expected)


def test_windows_are_pushed_inside_at_the_borders() -> None:
    """By hand for a 5×5 window on 20×18 tokens: NATTEN never pads."""
    weights = seen(20, 18, 5, 1).unflatten(-1, (20, 18)) > 0
    windows = {
        (0, 0): (range(5), range(5)),
        (1, 2): (range(5), range(5)),
        (2, 3): (range(5), range(1, 6)),
        (9, 8): (range(7, 12), range(6, 11)),
        (17, 15): (range(15, 20), range(13, 18)),
        (18, 16): (range(15, 20), range(13, 18)),
        (19, 17): (range(15, 20), range(13, 18)),
        (19, 0): (range(15, 20), range(5)),
        (7, 17): (range(5, 10), range(13, 18)),
        (8, 7): (range(6, 11), range(5, 10)),
    }
    for (row, column), (rows, columns) in windows.items():
        expected = torch.zeros(20, 18, dtype=torch.bool)
        expected[rows.start : rows.stop, columns.start : columns.stop] = True
        assert torch.equal(weights[row, column], expected), (row, column)


def test_parts_of_a_batch_without_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tiled, "_COPIED", 1)
    q, streams = random_inputs(16, 9, 2, torch.float64, batch=3)
    with torch.no_grad(), use_backend("tiled"):
        found = attention(q, streams, 5)
        torch.testing.assert_close(found, dense_attention(q, streams, 5))


def test_tiles_do_not_mix_the_batch_or_the_heads() -> None:
    q, pairs = random_inputs(20, 19, 2, torch.float64, batch=3, heads=4)
    whole = attention(q, pairs, 5)
    for b, n in ((0, 0), (1, 3), (2, 2)):
        part = [tuple(x[b : b + 1, :, :, n : n + 1] for x in pair) for pair in pairs]
        alone = attention(q[b : b + 1, :, :, n : n + 1], part, 5)
        torch.testing.assert_close(whole[b : b + 1, :, :, n : n + 1], alone)


@torch.no_grad()
@pytest.mark.parametrize("kernel", [5, None])
def test_in_bf16(kernel: int | None, backend: str) -> None:
    """Rounded inputs give the rounded result: 2^-8 of values of at most 4, a few times over."""
    q, pairs = random_inputs(12, 9, 2, torch.bfloat16, d=16)
    q, pairs = q.detach(), [(k.detach(), v.detach()) for k, v in pairs]
    exact = dense_attention(q.double(), [(k.double(), v.double()) for k, v in pairs], kernel)
    ours = attention(q, pairs, kernel)
    assert ours.dtype == torch.bfloat16
    torch.testing.assert_close(ours.double(), exact, rtol=0.03, atol=0.03)


@pytest.mark.parametrize("kernel", [5, None])
def test_queries_in_float32_meet_values_in_bf16(kernel: int | None, backend: str) -> None:
    """As under autocast in training: the result and all gradients are there."""
    if backend == "flex":
        pytest.skip("FlexAttention has no gradients on a CPU")
    q, pairs = random_inputs(12, 9, 2, torch.float32, d=16)
    low = [(k, v.bfloat16()) for k, v in pairs]
    out = attention(q, low, kernel)
    assert out.dtype == torch.bfloat16
    expected = dense_attention(q, pairs, kernel)
    torch.testing.assert_close(out.float(), expected, rtol=0.03, atol=0.03)
    inputs = [q, *(x for pair in pairs for x in pair)]
    direction = torch.randn_like(expected)
    ours = torch.autograd.grad(out.float(), inputs, direction)
    for a, b in zip(ours, torch.autograd.grad(expected, inputs, direction), strict=True):
        assert (a - b).norm() < 0.03 * b.norm()


def test_the_device_decides() -> None:
    attend = make_attention(32, 32, 7, 1, torch.device("cpu"))
    assert type(attend) is BACKENDS["tiled"] and backend_in_use() is None
    with use_backend("flex"):
        assert type(make_attention(32, 32, 7, 1, torch.device("cpu"))) is BACKENDS["flex"]
    with pytest.raises(ValueError, match=r"unknown attention backend 'fast'; known are tiled, "):
        use_backend("fast").__enter__()


def test_natten_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "natten", None)
    has_kernels.cache_clear()
    assert not has_kernels()
    has_kernels.cache_clear()
    with (
        use_backend("natten"),
        pytest.raises(ValueError, match=r"pip install natten"),
    ):
        make_attention(32, 32, 7, 1, torch.device("cpu"))


def test_an_old_natten_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    for na2d, wanted in ((lambda q, k, v, kernel_size: q, False),
                         (lambda q, k, v, kernel_size, return_lse: q, True)):  # fmt: skip
        has_kernels.cache_clear()
        natten = SimpleNamespace(HAS_LIBNATTEN=True, na2d=na2d)
        monkeypatch.setitem(sys.modules, "natten", natten)
        assert has_kernels() == wanted
    has_kernels.cache_clear()


def test_flex_attention_has_a_graph_for_every_batch_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond a number (eight by default) PyTorch would go on without, with all tokens' scores."""
    from networks.attention import flex

    graphs, compile = [], torch.compile

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> object:
        graphs.append(graph)
        return graph.forward

    torch._dynamo.reset()
    few = torch._dynamo.config.patch(recompile_limit=2, accumulated_recompile_limit=2)
    flex._compiled.cache_clear()
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compile(f, backend=backend, **kw))
    monkeypatch.setattr(flex, "_attend", lambda q: flex._compiled())
    attend = flex.FlexNeighbourhood(9, 8, 5, 1, torch.device("cpu"))
    with torch.no_grad(), few:
        for batch in range(1, 5):
            x = torch.randn(batch, 9, 8, 1, 16)
            torch.testing.assert_close(attend(x, [(x, x)]), dense_attention(x, [(x, x)], 5))
    assert len(graphs) == 4
    flex._compiled.cache_clear()
    torch._dynamo.reset()
