"""Features of SqueezeNet 1.1 (Iandola et al. 2016), trained on ImageNet with Caffe.

A small network for Fréchet distances where the Inception network is not at hand. The distance over
these features is SFD, SqueezeNet Fréchet distance: on a scale of its own, and never to be called
FID.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_SIDE = 224  # pixels of the training images
_MEAN = (123.68, 116.779, 103.939)  # RGB in 0..255, subtracted from the training images


class _Fire(nn.Module):
    """A 1×1 convolution to few channels, then 1×1 and 3×3 convolutions side by side."""

    def __init__(self, channels: int, squeezed: int, expanded: int) -> None:
        super().__init__()
        self.squeeze = nn.Conv2d(channels, squeezed, 1)
        self.expand1x1 = nn.Conv2d(squeezed, expanded, 1)
        self.expand3x3 = nn.Conv2d(squeezed, expanded, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.squeeze(x).relu()
        return torch.cat([self.expand1x1(x).relu(), self.expand3x3(x).relu()], dim=1)


class SqueezeNet(nn.Sequential):
    """uint8 images `[B, 3, h, w]` of any size to float32 features `[B, 512]`.

    The parameters have the names of torchvision's `squeezenet1_1().features`. Pooling windows lie
    inside the image (`ceil_mode=False`).
    """

    features = 512

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 64, 3, stride=2),
            nn.ReLU(),
            nn.MaxPool2d(3, stride=2),
            _Fire(64, 16, 64),
            _Fire(128, 16, 64),
            nn.MaxPool2d(3, stride=2),
            _Fire(128, 32, 128),
            _Fire(256, 32, 128),
            nn.MaxPool2d(3, stride=2),
            _Fire(256, 48, 192),
            _Fire(384, 48, 192),
            _Fire(384, 64, 256),
            _Fire(512, 64, 256),
        )

    def forward(self, images: Tensor) -> Tensor:
        """The spatial mean of the last map; images are resized to 224×224 as Pillow does it.

        That is bicubic with a = −1/2, without aliasing, first along the rows and then along the
        columns, each time in whole levels of 0..255.
        """
        x = images.float()
        for shape in ((x.shape[-2], _SIDE), (_SIDE, _SIDE)):
            x = F.interpolate(x, shape, mode="bicubic", antialias=True)
            x = (x + 0.5).floor().clamp(0, 255)
        x = x - x.new_tensor(_MEAN).view(3, 1, 1)
        return super().forward(x).mean(dim=(2, 3))
