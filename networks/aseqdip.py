"""ASeqDIP: an untrained network is fitted to one measurement (Alkhouri et al., NeurIPS 2024)."""

import math
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degradation import Draws, Problem, derive_seed
from networks.layers import WithoutInitialisation

_WIDTH, _SCALES = 32, 4


@dataclass(frozen=True)
class ASeqDIP:
    """Autoencoding sequential deep image prior: `ASeqDIP()(problem, noise, draws)` → images.

    From u = H†y, K = `outer` times: N = `inner` steps of Adam on ‖Hf(u) − y‖² + λ‖f(u) − u‖² (λ =
    `weight`, both mean squares), then u ← f(u), which is the result. The last iterate is returned;
    the authors' scripts keep the one nearest to the truth. Weights and Adam go on from step to
    step. The defaults are the paper's; its scripts have others for some operators.

    f is a U-Net of four halvings, weights drawn from N(0, 0.02²). It ends in a linear layer:
    images are in [-1, 1]. Every image has a network of its own, drawn by its seed, and is fitted
    alone, so it does not depend on the batch. The mean over y is one over the measurements that
    exist. Raises ValueError for an option out of range.
    """

    outer: int = 2000
    inner: int = 2
    weight: float = 1.0
    lr: float = 1e-4

    def __post_init__(self) -> None:
        for name in ("outer", "inner"):
            if getattr(self, name) < 1:
                raise ValueError(f"aseqdip: {name}={getattr(self, name)} must be at least 1")
        if not 0 <= self.weight < math.inf:
            raise ValueError(f"aseqdip: weight={self.weight} must be a number of at least 0")
        if not 0 < self.lr < math.inf:
            raise ValueError(f"aseqdip: lr={self.lr} must be a number above 0")

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        """Images `[B, C, h, w]`, one for each problem; the noise plays no part."""
        seeds, images = draws.seeds.tolist(), list[Tensor]()
        for i, seed in enumerate(seeds):
            # An evaluation fills a batch up with its last image.
            repeated = i and seed == seeds[i - 1] and torch.equal(problem.y[i], problem.y[i - 1])
            images.append(images[-1] if repeated else self._fit(problem[i : i + 1], seed))
        return torch.cat(images)

    @torch.enable_grad()
    def _fit(self, problem: Problem, seed: int) -> Tensor:
        rows, u = problem.degradation.rows, problem.pinv().float()
        network = _drawn(u.shape[1], seed).to(u.device)
        optimizer = torch.optim.Adam(network.parameters(), self.lr, fused=True)
        for _ in range(self.outer):
            for _ in range(self.inner):
                image = network(u)
                error = torch.where(rows, problem.residual(image), 0).square().sum()
                loss = error / rows.sum().clamp(min=1) + self.weight * (image - u).square().mean()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            with torch.no_grad():
                u = network(u)
        return u


class _UNet(nn.Module):
    """Images `[B, C, h, w]` to images of any size."""

    def __init__(self, channels: int):
        super().__init__()
        widths = [_WIDTH * 2**i for i in range(_SCALES + 1)]
        self.down = nn.ModuleList(_two(a, b) for a, b in pairwise([channels, *widths]))
        self.up = nn.ModuleList(_two(fine + coarse, fine) for fine, coarse in pairwise(widths))
        self.last = nn.Conv2d(_WIDTH, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        finer: list[Tensor] = []
        for block in self.down:
            x = block(F.avg_pool2d(x, 2, ceil_mode=True) if finer else x)
            finer.append(x)
        for block, skip in zip(reversed(self.up), reversed(finer[:-1]), strict=True):
            x = block(torch.cat((skip, F.interpolate(x, skip.shape[2:])), 1))
        return self.last(x)


def _two(before: int, after: int) -> nn.Module:
    """Two convolutions; normalised in groups, which a single pixel has too."""

    def one(channels: int) -> tuple[nn.Module, ...]:
        convolution = nn.Conv2d(channels, after, 3, padding=1)
        return convolution, nn.GroupNorm(8, after), nn.LeakyReLU(0.2)

    return nn.Sequential(*one(before), *one(after))


def _drawn(channels: int, seed: int) -> _UNet:
    with WithoutInitialisation():  # torch's own generator is left alone
        network = _UNet(channels)
    generator = torch.Generator().manual_seed(derive_seed(seed, "aseqdip"))
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.normal_(layer.weight, std=0.02, generator=generator)
            assert layer.bias is not None
            nn.init.zeros_(layer.bias)
    return network
