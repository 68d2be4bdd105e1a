"""Perceptual distances of pairs of images: LPIPS (Zhang et al. 2018) and ST-LPIPS (Ghildyal 2022).

Both compare the features of an image after five stages of a network, weighted by heads that were
fitted to what people saw. LPIPS takes them of ImageNet's AlexNet or VGG16; the shift-tolerant one
blurs where AlexNet drops samples, and was trained so.
"""

import functools
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from metrics.detectors import use_float32
from metrics.download import cached_weights, packaged
from metrics.pixel import to_float
from runtime.files import read_tensors

_SHIFT, _SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of images in [-1, 1]

# The window of a pooling, 0 for none; then convolutions, each followed by a ReLU: their channels,
# side, stride and padding.
Stage = tuple[int, list[tuple[int, int, int, int]]]
_ALEXNET: list[Stage] = [
    (0, [(64, 11, 4, 2)]),
    (3, [(192, 5, 1, 2)]),
    (3, [(384, 3, 1, 1)]),
    (0, [(256, 3, 1, 1)]),
    (0, [(256, 3, 1, 1)]),
]
_VGG16: list[Stage] = [
    (2 if i else 0, [(channels, 3, 1, 1)] * n)
    for i, (channels, n) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)])
]


class Source(NamedTuple):
    """Where the weights of a distance come from."""

    stages: Sequence[Stage]
    package: str
    file: str  # inside the package: the heads, and of ST-LPIPS the network too
    network: str | None = None  # else the address of its file


_MODELS = "https://download.pytorch.org/models"
PERCEPTUAL = {
    "lpips": Source(
        _ALEXNET, "lpips", "weights/v0.1/alex.pth", f"{_MODELS}/alexnet-owt-7be5be79.pth"
    ),
    "lpips_vgg": Source(_VGG16, "lpips", "weights/v0.1/vgg.pth", f"{_MODELS}/vgg16-397923af.pth"),
    "st_lpips": Source(_ALEXNET, "stlpips_pytorch", "weights/vST0.0/alex_shift_tolerant.pth"),
}


class Perceptual(nn.Module):
    """The distance of uint8 images `[B, 3, h, w]` from others: float64 `[B]`, at least 0.

    tolerant: pooling takes every sample, and [1, 2, 1]/4 blurs before half of them are dropped.
    """

    def __init__(self, stages: Sequence[Stage], tolerant: bool):
        super().__init__()
        self.stages, self.tolerant = stages, tolerant
        self.convolutions, self.heads = nn.ModuleList(), nn.ParameterList()
        last = 3
        for _, convolutions in stages:
            for channels, side, stride, padding in convolutions:
                stride = 1 if tolerant else stride
                self.convolutions.append(nn.Conv2d(last, channels, side, stride, padding))
                last = channels
            self.heads.append(torch.zeros(1, last, 1, 1))

    def load(self, network: Mapping[str, Tensor], heads: Mapping[str, Tensor]) -> None:
        """Take in weights by the names of their packages. Raises KeyError or RuntimeError."""
        state = {f"heads.{i}": heads[f"lin{i}.model.1.weight"] for i in range(len(self.heads))}
        pattern = re.compile(r".*(?:features|slice\d)\.(\d+)\.(weight|bias)")
        found = [match for match in map(pattern.fullmatch, network) if match]
        layers = sorted({int(match[1]) for match in found})
        for match in found:
            state[f"convolutions.{layers.index(int(match[1]))}.{match[2]}"] = network[match[0]]
        self.load_state_dict(state)

    def features(self, images: Tensor) -> list[Tensor]:
        """After each stage, of floats in [-1, 1], scaled to norm 1 at each position."""
        shift, scale = (images.new_tensor(v).view(1, 3, 1, 1) for v in (_SHIFT, _SCALE))
        x, layers, found = (images - shift) / scale, iter(self.convolutions), []
        for pool, convolutions in self.stages:
            if pool:
                x = F.max_pool2d(x, pool, 1 if self.tolerant else 2)
                x = _blurred(x) if self.tolerant else x
            for _, _, stride, _ in convolutions:
                x = next(layers)(x)
                x = F.relu(_blurred(x) if self.tolerant and stride > 1 else x)
            found.append(x / (x.norm(dim=1, keepdim=True) + 1e-10))
        return found

    @torch.no_grad()
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        device = self.heads[0].device
        with torch.autocast(device.type, enabled=False):
            pairs = zip(*(self.features(to_float(x.to(device))) for x in (first, second)),
                        self.heads, strict=True)  # fmt: skip
            layers = [(head * (a - b).square()).sum(1).mean((1, 2)) for a, b, head in pairs]
        return torch.stack(layers).sum(0).double()


def _blurred(x: Tensor) -> Tensor:
    """Every second sample of what [1, 2, 1]/4 blurs, with two more reflected at each border."""
    line = x.new_tensor([0.25, 0.5, 0.25])
    kernel = torch.outer(line, line).expand(x.shape[1], 1, 3, 3)
    return F.conv2d(F.pad(x, (2, 2, 2, 2), "reflect"), kernel, stride=2, groups=x.shape[1])


@functools.cache
def perceptual(name: str, device: torch.device) -> Perceptual:
    """A distance of `PERCEPTUAL` with its weights. Raises ValueError where they cannot be had."""
    use_float32(device)
    source = PERCEPTUAL[name]
    path = packaged(source.package, source.file, name)
    heads, _ = read_tensors(path)
    network = heads
    if source.network:
        path = cached_weights(source.network, "put it there")
        network, _ = read_tensors(path)
    distance = Perceptual(source.stages, tolerant=source.network is None)
    try:
        distance.load(network, heads)
    except (KeyError, RuntimeError) as error:
        raise ValueError(f"{path} does not hold the weights of {name}") from error
    return distance.eval().requires_grad_(False).to(device)
