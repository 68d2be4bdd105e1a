"""EDM preconditioning around the network, and the learned uncertainty of the training loss."""

import math

import torch
from torch import Tensor, nn

from degradation import Problem
from networks.invfusion import InvFusion, NetworkConfig


class LogVariance(nn.Module):
    """u(σ), the learned log-variance of the loss: 128 random features and a linear map (EDM2)."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int = 128):
        super().__init__()
        self.register_buffer("freqs", 2 * math.pi * torch.randn(channels))
        self.register_buffer("phases", 2 * math.pi * torch.rand(channels))
        self.linear = nn.Linear(channels, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def forward(self, c_noise: Tensor) -> Tensor:
        """c_noise `[B]` to u `[B]`."""
        features = math.sqrt(2) * torch.cos(c_noise[:, None] * self.freqs + self.phases)
        return self.linear(features).squeeze(-1)


class Denoiser(nn.Module):
    """D(x, σ; H, y) ≈ E[x0 | x, y] with x = x0 + σ·ε (EDM, Table 1; paper, Eq. 6).

    The output is c_skip·x + c_out·F. `consistent` networks instead correct the smoothest image x_s
    that explains y, which stands for H†y in their input too: c_skip·x + (1 − c_skip)·x_s + c_out·F.
    Without noise they end in the projection x + H†(y − Hx): E[x0 | x, y] lies in {x: Hx = y}, so
    that step can only bring an estimate nearer to it.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.net = InvFusion(config)
        self.logvar = LogVariance()

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x `[B, C, h, w]`, sigma a number or `[B]`; returns `[B, C, h, w]` in float32."""
        return self._estimate(x, sigma, problem, augment_labels)[0]

    def components(
        self,
        x: Tensor,
        sigma: Tensor | float,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """The estimate and the raw principal components `[B, K, C, h, w]` of its error (NPPC)."""
        estimate, rest = self._estimate(x, sigma, problem, augment_labels)
        return estimate, rest.unflatten(1, (-1, self.config.image_shape[0]))

    def log_variance(self, sigma: Tensor) -> Tensor:
        """u(σ) `[B]` of the loss λ(σ)/e^u·‖D − x0‖² + u (EDM2, section 2.2)."""
        return self.logvar(sigma.float().log() / 4)

    def _estimate(
        self, x: Tensor, sigma: Tensor | float, problem: Problem, augment_labels: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        config, x = self.config, x.float()
        sigma = torch.as_tensor(sigma, dtype=torch.float32, device=x.device).expand(len(x))
        scale = sigma[:, None, None, None]
        data = config.sigma_data
        total = (scale.square() + data**2).sqrt()
        c_skip, c_out, c_in = (data / total).square(), scale * data / total, 1 / total
        start = problem.smooth() if config.consistent else problem.pinv()
        inputs = c_in * x
        if config.in_mult == 2:
            inputs = torch.cat((inputs, start.float()), 1)
        out = self.net(inputs, sigma.log() / 4, problem, augment_labels).float()
        mean, rest = out.tensor_split([config.image_shape[0]], 1)
        estimate = c_skip * x + c_out * mean
        if config.consistent:
            estimate = estimate + (1 - c_skip) * start
            exact = (problem.noise_level == 0)[:, None, None, None]
            estimate = torch.where(exact, problem.project(estimate), estimate)
        return estimate, rest
