"""The training loss: denoising with learned uncertainty (EDM2, section 2.2; paper, Eq. 6)."""

import torch
from torch import Tensor, nn

from degradation import Draws, Problem
from networks import Denoiser


def draw_sigma(
    draws: Draws, P_mean: float, P_std: float, mmse_share: float = 0.0, mmse_sigma: float = 100.0
) -> Tensor:
    """Noise levels `[B]`: ln σ ~ N(P_mean, P_std²), but mmse_sigma for a share of the samples."""
    sigma = (draws.normal((), "sigma") * P_std + P_mean).exp()
    chosen = draws.uniform((), "sigma/mmse") < mmse_share
    return torch.where(chosen, mmse_sigma, sigma)


class DenoisingLoss(nn.Module):
    """λ(σ)/e^u · ‖D(x0 + σε, σ; H, y) − x0‖² + u per value, with λ = (σ² + σ_d²)/(σσ_d)²."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(self, images: Tensor, sigma: Tensor, noise: Tensor, problem: Problem) -> Tensor:
        """Loss `[B]`, a mean over values; images and unit noise `[B, C, h, w]`, sigma `[B]`."""
        noisy = images + sigma[:, None, None, None] * noise
        error = (self.denoiser(noisy, sigma, problem) - images).square().flatten(1).mean(1)
        data = self.denoiser.config.sigma_data
        weight = (sigma.square() + data**2) / (sigma * data).square()
        log_variance = self.denoiser.log_variance(sigma)
        return weight / log_variance.exp() * error + log_variance
