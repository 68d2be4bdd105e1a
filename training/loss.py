"""The training losses: denoising with learned uncertainty (EDM2, 2.2; paper, Eq. 6), MMSE."""

import torch
from torch import Tensor, nn

from degradation import Draws, Problem
from networks import Denoiser

_TASK_SPEED = 10.0  # the weights of tasks settle in hundreds of steps rather than thousands


def draw_sigma(
    draws: Draws, P_mean: float, P_std: float, mmse_share: float = 0.0, mmse_sigma: float = 100.0
) -> Tensor:
    """Noise levels `[B]`: ln σ ~ N(P_mean, P_std²), but mmse_sigma for a share of the samples."""
    sigma = (draws.normal((), "sigma") * P_std + P_mean).exp()
    chosen = draws.uniform((), "sigma/mmse") < mmse_share
    return torch.where(chosen, mmse_sigma, sigma)


class DenoisingLoss(nn.Module):
    """λ/e^u · ‖D(x0 + σε, σ; H, y) − x0‖² + u per value, with λ(σ) = 1/c_out².

    With several `tasks` (structures of the operators), u = u(σ) + u_task: an operator whose
    restorations have small errors then weighs as much as one with large errors (Kendall et al.,
    "Multi-task learning using uncertainty to weigh losses", 2018).
    """

    def __init__(self, denoiser: Denoiser, tasks: int = 1):
        super().__init__()
        self.denoiser = denoiser
        self.task = nn.Parameter(torch.zeros(tasks), requires_grad=tasks > 1)

    def forward(
        self,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        problem: Problem,
        task: int = 0,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss `[B]`, a mean over values; images and unit noise `[B, C, h, w]`, sigma `[B]`.

        augment_labels: what `Augment` did to the images, `[B, 9]`.
        """
        noisy = images + sigma[:, None, None, None] * noise
        estimate = self.denoiser(noisy, sigma, problem, augment_labels)
        error = (estimate - images).square().flatten(1).mean(1)
        weight = self.denoiser.output_scale(sigma, problem).square().reciprocal()
        log_variance = self.denoiser.log_variance(sigma) + _TASK_SPEED * self.task[task]
        return weight / log_variance.exp() * error + log_variance


class MMSELoss(nn.Module):
    """‖D(σε, σ; H, y) − x0‖² per value, the input without the image: training of E[x0 | y] alone.

    The noise level is that of the solver `MMSE`, σ = 100 (`draw_sigma` with an mmse_share of 1).
    Nothing is weighted, so there is nothing to balance several `tasks` with: ValueError.
    """

    def __init__(self, denoiser: Denoiser, tasks: int = 1):
        super().__init__()
        if tasks != 1:
            raise ValueError(
                "MMSE training has no weights that could balance tasks: leave them out"
            )
        self.denoiser = denoiser

    def forward(
        self,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        problem: Problem,
        task: int = 0,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss `[B]`, arguments as in `DenoisingLoss`; the task plays no part."""
        estimate = self.denoiser(sigma[:, None, None, None] * noise, sigma, problem, augment_labels)
        error = (estimate - images).square().flatten(1).mean(1)
        # Parallel training waits for a gradient of every parameter, the idle uncertainty's too.
        return error + 0 * self.denoiser.log_variance(sigma)
