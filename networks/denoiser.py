"""EDM preconditioning around the network, and the learned uncertainty of the training loss."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from degradation import Problem
from networks.compiling import allow_graphs
from networks.features import FeatureMap
from networks.invfusion import InvFusion, NetworkConfig


class LogVariance(nn.Module):
    """u(σ), the learned log-variance of the loss: random features and a linear map (EDM2)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.empty(channels).normal_())
        self.register_buffer("phases", 2 * math.pi * torch.empty(channels).uniform_())
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise `[B]` to u `[B]`."""
        with torch.autocast(c_noise.device.type, enabled=False):
            features = math.sqrt(2) * torch.cos(c_noise[:, None] * self.freqs + self.phases)
            return self.linear(features).squeeze(-1)


class Inputs(NamedTuple):
    """What a network takes of a problem: it depends on H, y and the noise level alone."""

    owner: nn.Module
    pinv: Tensor | None  # H†y `[B, C, h, w]`, of networks that see it
    features: Sequence[FeatureMap | None]  # what `InvFusion.features` gives


class Denoiser(nn.Module):
    """D(x, σ; H, y) ≈ E[x0 | x, y] with x = x0 + σ·ε (EDM, Table 1; paper, Eq. 6).

    The output is c_skip·x + c_out·F(c_in·x, H†y), the coefficients those of EDM for images of
    standard deviation sigma_data.

    With `fused`, F sees x and y in one image (`Problem.fuse`, EPS), and the output is combined
    with y in the same way, as if its error were white with standard deviation c_out. For images of
    white noise, a network F = 0 gives E[x0 | x, y] so. If y has no noise, the output agrees with
    it, for operators by iterations up to their tolerance.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.net = InvFusion(config)
        self.logvar = LogVariance(config.logvar_channels)

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x `[B, C, h, w]`, sigma a positive number or `[B]`; returns `[B, C, h, w]` in float32.

        Raises ValueError if x, the problem and the network differ in size.
        """
        return self.components(x, sigma, problem, augment_labels)[0]

    def prepare(self, problem: Problem) -> Problem:
        """The problem with H†y and the operator on tokens, computed once for a sampling run."""
        if isinstance(problem.prepared, Inputs) and problem.prepared.owner is self:
            return problem
        pinv = problem.pinv().float() if self.config.in_mult == 2 else None
        return replace(problem, prepared=Inputs(self, pinv, self.net.features(problem)))

    def compile(self, **options: Any) -> None:
        """Compile the network in place: what `torch.compile` makes of one call of it.

        There is one graph for each structure of the operator (with and without gradients); new
        content, noise levels, σ or classes compile nothing. Problems whose H† is found by
        iterations run as before. options: those of `torch.compile`. A compiled denoiser can be
        copied, but not pickled.
        """
        allow_graphs()
        options = {"fullgraph": True, "dynamic": False} | options
        self.net.compiled = torch.compile(InvFusion.transform, **options)

    def cast_linear(self, dtype: torch.dtype) -> None:
        """Keep the weights of the network's linear maps in `dtype`, in place.

        For use under `torch.autocast` to that dtype, which would cast them again at every call:
        the estimates are the same, in less memory and time. It cannot be trained afterwards.
        Those of the feature degradation layers, where part is done in float32, stay as they are.
        """
        for name, layer in self.net.named_modules():
            if isinstance(layer, nn.Linear) and not name.endswith("deg_linear"):
                layer.to(dtype)

    def components(
        self,
        x: Tensor,
        sigma: Tensor | float,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The estimate and the raw principal components `[B, K, C, h, w]` of its error (NPPC)."""
        self._check(x, problem)
        problem = self.prepare(problem)
        x, channels = x.float(), self.config.image_shape[0]
        if isinstance(sigma, Tensor):
            sigma = sigma.to(x.device, torch.float32).expand(len(x))
        else:  # filled on the device: nothing is copied to it
            sigma = torch.full((len(x),), float(sigma), device=x.device)
        seen = _fused(problem, x, sigma) if self.config.fused else x
        total = (sigma.square() + self.config.sigma_data**2).sqrt()[:, None, None, None]
        inputs = seen / total
        if self.config.in_mult == 2:
            inputs = torch.cat((inputs, problem.prepared.pinv), 1)
        features = problem.prepared.features
        out = self.net(inputs, sigma.log() / 4, problem, augment_labels, features).float()
        mean, rest = out.tensor_split([channels], 1)
        c_out = self.output_scale(sigma)
        c_skip = (self.config.sigma_data / total).square()
        estimate = c_skip * x + c_out[:, None, None, None] * mean
        components = rest.unflatten(1, (-1, channels))
        if self.config.fused:
            estimate = _fused(problem, estimate, c_out)
            if components.shape[1]:  # the estimate has no error where y is exact
                known = problem.degradation.H(components)
                level = problem.levels / c_out
                components = components - problem.degradation.H_pinv(known, level)
        return estimate, components

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(σ) `[B]` of the loss λ(σ)/e^u·‖D − x0‖² + u (EDM2, section 2.2)."""
        return self.logvar(sigma.float().log() / 4)

    def output_scale(self, sigma: Tensor) -> Tensor:
        """c_out `[B]`; sigma `[B]`."""
        return sigma * self.config.sigma_data / (sigma.square() + self.config.sigma_data**2).sqrt()

    def _check(self, x: Tensor, problem: Problem) -> None:
        for name, shape in (("x", x.shape[1:]), ("the problem", problem.degradation.image_shape)):
            if tuple(shape) != self.config.image_shape:
                ours = self.config.image_shape
                raise ValueError(f"{name} is of images {tuple(shape)}, but the network of {ours}")
        if len(x) != len(problem):
            raise ValueError(f"x has {len(x)} images, but the problem {len(problem)}")


def _fused(problem: Problem, x: Tensor, sigma: Tensor) -> Tensor:
    with torch.autocast(x.device.type, enabled=False):
        return problem.fuse(x, sigma).float()
