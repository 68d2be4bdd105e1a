"""Counter-based random numbers: every draw is a function of (seed of the image, stream, position).

The generator is Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3",
SC 2011). It keeps no state, so an image gets the same numbers on every device (normals to
rounding), in any batch, order and number of processes.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Self

import torch
from torch import Tensor

_WORD = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)

Convert = Callable[[list[Tensor]], Tensor]  # of random words


def philox(counter: Sequence[Tensor], key: Sequence[Tensor]) -> list[Tensor]:
    """Philox-4x32: four 32-bit counter words and two key words to four random words.

    All words are int64 tensors with values in [0, 2^32), of shapes that broadcast together.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        # The 64-bit product of two 32-bit words wraps in int64; its halves stay right.
        p0, p1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0 = ((p1 >> 32) & _WORD) ^ c1 ^ k0
        c2 = ((p0 >> 32) & _WORD) ^ c3 ^ k1
        c1, c3 = p1 & _WORD, p0 & _WORD
        k0, k1 = (k0 + _WEYL[0]) & _WORD, (k1 + _WEYL[1]) & _WORD
    return list(torch.broadcast_tensors(c0, c1, c2, c3))


def derive_seed(*parts: int | str) -> int:
    """A seed in [0, 2^63) that is a hash of its parts, such as (run seed, step, sample index)."""
    return _hash(repr(parts)) >> 1


def _hash(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


class Draws:
    """Random numbers of a batch of images, one independent sequence for each seed.

    seeds: B integers in [0, 2^63). A stream is named by a string; in it the number at a position
    is always the same, so asking for a longer shape extends a shorter one.
    """

    def __init__(self, seeds: Iterable[int] | Tensor, device: torch.device | str = "cpu"):
        seeds = torch.as_tensor(
            seeds if isinstance(seeds, Tensor) else list(seeds), dtype=torch.int64
        )
        self.seeds = seeds.reshape(-1).to(device, non_blocking=True)
        self.calls = 0

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: Tensor | slice) -> Self:
        """The numbers of a part of the images, which go on as these would."""
        part = type(self)(self.seeds[index], self.seeds.device)
        part.calls = self.calls
        return part

    def uniform(self, shape: Sequence[int], stream: str) -> Tensor:
        """Uniform numbers in the open interval (0, 1), float32 `[B, *shape]`."""
        return self._draw(shape, stream, _to_uniform)

    def normal(self, shape: Sequence[int], stream: str) -> Tensor:
        """Standard normal numbers (Box-Muller), float32 `[B, *shape]`."""
        return self._draw(shape, stream, _to_normal)

    def integers(self, low: int, high: int, shape: Sequence[int], stream: str) -> Tensor:
        """Uniform integers from low to high, both included, int64 `[B, *shape]`."""
        steps = high - low
        return low + (self.uniform(shape, stream) * (steps + 1)).long().clamp(max=steps)

    def randn_like(self, x: Tensor) -> Tensor:
        """Standard normal numbers in the shape of x `[B, ...]`, a new stream at each call."""
        self.calls += 1
        return self.normal(x.shape[1:], f"randn_like/{self.calls}").to(x)

    def normal_rows(self, counts: Tensor, most: int, width: int, stream: str) -> Tensor:
        """Standard normal rows `[B, most, width]`, the first counts[i] of seed i, the others zero.

        Row r of an image is a sub-stream of its own, so no row depends on how many there are.
        """
        device = self.seeds.device
        rows = torch.zeros(len(self), most, width, device=device)
        exists = torch.arange(most) < counts.cpu()[:, None]
        images, numbers = exists.nonzero(as_tuple=True)  # what does not exist is not drawn
        for part in torch.arange(len(images)).split(max(1, 4 * _block(device) // width)):
            image, row = images[part].to(device), numbers[part].to(device)
            rows[image, row] = _numbers(self.seeds[image], row[:, None], width, stream, _to_normal)
        return rows

    def _draw(self, shape: Sequence[int], stream: str, convert: Convert) -> Tensor:
        row = torch.zeros(1, 1, dtype=torch.int64, device=self.seeds.device)
        numbers = _numbers(self.seeds, row, math.prod(shape), stream, convert)
        return numbers.reshape(len(self), *shape)


def _block(device: torch.device) -> int:
    """Counters worked on at a time, of some hundred bytes each: on a CPU they fit in its cache."""
    return 1 << (17 if device.type == "cpu" else 22)


def _numbers(seeds: Tensor, row: Tensor, count: int, stream: str, convert: Convert) -> Tensor:
    """`[len(seeds), count]` numbers; the counter is (position, row, hash of the stream)."""
    out = torch.empty(len(seeds), count, device=seeds.device)
    if not out.numel():
        return out
    name = _hash(stream)
    low, high = (
        torch.full((), w, dtype=torch.int64, device=seeds.device)  # filled there, not copied
        for w in (name & _WORD, name >> 32)
    )
    k0, k1 = seeds[:, None] & _WORD, (seeds[:, None] >> 32) & _WORD
    total = (count + 3) // 4
    size = max(1, _block(seeds.device) // len(seeds))
    for start in range(0, total, size):
        position = torch.arange(start, min(start + size, total), device=seeds.device)
        part = out[:, 4 * start : 4 * (start + len(position))]
        values = convert(philox([position, row, low, high], (k0, k1))).flatten(1)
        part.copy_(values[:, : part.shape[1]])
    return out


def _to_uniform(words: list[Tensor]) -> Tensor:
    # 23 bits and a half step: exact in float32, never 0 or 1.
    return ((torch.stack(words, -1) >> 9).float() + 0.5) * 2.0**-23


def _to_normal(words: list[Tensor]) -> Tensor:
    pairs = torch.stack(words, -1).unflatten(-1, (2, 2))
    radius = ((pairs[..., 0].float() + 0.5) * 2.0**-32).log_().mul_(-2).sqrt_()
    angle = (pairs[..., 1] >> 8).float() * (2 * math.pi * 2.0**-24)
    return torch.stack((radius * angle.cos(), radius * angle.sin()), -1)
