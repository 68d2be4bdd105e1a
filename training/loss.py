"""The training losses: denoising with learned uncertainty (EDM2, 2.2; paper, Eq. 6), MMSE."""

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
    """λ/e^u · ‖D(x0 + σε, σ; H, y) − x0‖² + u(σ) per value, with λ(σ) = 1/c_out²."""

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def forward(
        self,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss `[B]`, a mean over values; images and unit noise `[B, C, h, w]`, sigma `[B]`.

        augment_labels: what `Augment` did to the images, `[B, 9]`.
        """
        noisy = images + sigma[:, None, None, None] * noise
        estimate = self.denoiser(noisy, sigma, problem, augment_labels)
        error = (estimate - images).square().flatten(1).mean(1)
        weight = self.denoiser.output_scale(sigma).square().reciprocal()
        log_variance = self.denoiser.log_variance(sigma)
        return weight / log_variance.exp() * error + log_variance


class MMSELoss(DenoisingLoss):
    """‖D(σε, σ; H, y) − x0‖² per value, the input without the image: training of E[x0 | y] alone.

    The noise level is that of the sampler `MMSE`, σ = 100 (`draw_sigma` with an mmse_share of 1).
    """

    def forward(
        self,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss `[B]`, arguments as in `DenoisingLoss`."""
        estimate = self.denoiser(sigma[:, None, None, None] * noise, sigma, problem, augment_labels)
        error = (estimate - images).square().flatten(1).mean(1)
        # Parallel training waits for a gradient of every parameter, the idle uncertainty's too.
        return error + 0 * self.denoiser.log_variance(sigma)
