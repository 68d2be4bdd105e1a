"""Neighbourhood attention against a dense masked softmax, and the windows it looks through."""

import pytest
import torch
from torch import Tensor

from networks.attention import attention

# Up to 16×16 tokens are one tile; the larger maps are cut into 8×8 tiles of queries.
SMALL = [(6, 5), (16, 16), (9, 13)]
TILED = [(20, 27), (32, 32), (17, 40)]


def window_start(i: int, n: int, kernel: int) -> int:
    """First index of the window of position i: centred, pushed inside at the borders (NATTEN)."""
    kernel = min(kernel, n)
    return min(max(i - kernel // 2, 0), n - kernel)


def axis_mask(n: int, kernel: int) -> Tensor:
    """Which positions of an axis each position sees, bool `[n, n]`."""
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        start = window_start(i, n, kernel)
        mask[i, start : start + min(kernel, n)] = True
    return mask


def dense_mask(h: int, w: int, kernel: int | None) -> Tensor:
    """Which tokens each token sees, bool `[h·w, h·w]`."""
    if kernel is None:
        return torch.ones(h * w, h * w, dtype=torch.bool)
    rows, columns = axis_mask(h, kernel), axis_mask(w, kernel)
    return (rows[:, None, :, None] & columns[None, :, None, :]).reshape(h * w, h * w)


def dense_attention(q: Tensor, streams: list[tuple[Tensor, Tensor]], kernel: int | None) -> Tensor:
    """The definition: one softmax over the masked logits of all streams, `[B, h, w, n, d]`."""
    h, w = q.shape[1:3]
    hidden = ~dense_mask(h, w, kernel)
    logits = [
        torch.einsum("bind,bjnd->bnij", q.flatten(1, 2), k.flatten(1, 2)).masked_fill(
            hidden, -torch.inf
        )
        for k, _ in streams
    ]
    weights = torch.cat(logits, -1).softmax(-1)
    values = torch.cat([v.flatten(1, 2) for _, v in streams], 1)
    return torch.einsum("bnij,bjnd->bind", weights, values).unflatten(1, (h, w))


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
    inputs = [q, *(x for pair in pairs for x in pair)]
    outputs = [f(q, pairs, kernel) for f in (attention, dense_attention)]
    direction = torch.randn_like(outputs[0])
    gradients = [torch.autograd.grad(out, inputs, direction) for out in outputs]
    return [(outputs[0], outputs[1]), *zip(*gradients, strict=True)]


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("kernel", [3, 7])
@pytest.mark.parametrize("size", SMALL + TILED, ids=lambda s: f"{s[0]}x{s[1]}")
def test_neighbourhood_is_the_masked_softmax(
    size: tuple[int, int], kernel: int, streams: int
) -> None:
    for ours, expected in both(size, kernel, streams, torch.float64):
        torch.testing.assert_close(ours, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("streams", [1, 2])
@pytest.mark.parametrize("size", [(12, 9), (20, 27)], ids=lambda s: f"{s[0]}x{s[1]}")
def test_neighbourhood_in_float32(size: tuple[int, int], streams: int) -> None:
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


def test_tiles_do_not_mix_the_batch_or_the_heads() -> None:
    q, pairs = random_inputs(20, 19, 2, torch.float64, batch=3, heads=4)
    whole = attention(q, pairs, 5)
    for b, n in ((0, 0), (1, 3), (2, 2)):
        part = [tuple(x[b : b + 1, :, :, n : n + 1] for x in pair) for pair in pairs]
        alone = attention(q[b : b + 1, :, :, n : n + 1], part, 5)
        torch.testing.assert_close(whole[b : b + 1, :, :, n : n + 1], alone)
