"""Attention by its definition: what every backend is compared with, in results and in time."""

import torch
from torch import Tensor


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


class DenseNeighbourhood:
    """The definition as a backend: masked logits of all tokens, made of (h, w, kernel, ...)."""

    def __init__(self, h: int, w: int, kernel: int, streams: int, device: torch.device):
        self.hidden = ~dense_mask(h, w, kernel).to(device)

    def __call__(self, q: Tensor, streams: list[tuple[Tensor, Tensor]]) -> Tensor:
        logits = [
            torch.einsum("bind,bjnd->bnij", q.flatten(1, 2), k.to(q).flatten(1, 2))
            for k, _ in streams
        ]
        masked = torch.cat([part.masked_fill(self.hidden, -torch.inf) for part in logits], -1)
        values = torch.cat([v.flatten(1, 2) for _, v in streams], 1)
        out = torch.einsum("bnij,bjnd->bind", masked.softmax(-1).to(values.dtype), values)
        return out.unflatten(1, q.shape[1:3])
