"""The training losses: denoising with learned uncertainty (EDM2, 2.2; paper, Eq. 6), rivals."""

from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from degradation import Draws, Problem
from networks import Denoiser
from samplers.nppc import orthogonal
from training.config import TrainConfig
from zero_shot import Unrolled


def draw_sigma(draws: Draws, P_mean: float, P_std: float, mmse_share: float = 0.0) -> Tensor:
    """Noise levels `[B]`: ln σ ~ N(P_mean, P_std²), but 100 for a share of the samples."""
    sigma = (draws.normal((), "sigma") * P_std + P_mean).exp()
    return torch.where(draws.uniform((), "sigma/mmse") < mmse_share, 100.0, sigma)


class Told(NamedTuple):
    """What the denoiser is told besides the noisy image."""

    problem: Problem
    augment_labels: Tensor | None


class DenoisingLoss(nn.Module):
    """λ/e^u · ‖D(x0 + σε, σ; H, y) − x0‖² + u(σ) per value, with λ(σ) = 1/c_out²."""

    step = 0  # of the run, as the trainer says
    weighted = True  # by the learned uncertainty; else the loss is the error itself
    sees_image = True  # the input has the image; else it is σε alone

    def __init__(self, denoiser: Denoiser):
        super().__init__()
        self.denoiser = denoiser

    def levels(self, draws: Draws, config: TrainConfig) -> Tensor:
        """The noise level of each sample of a step, `[B]`."""
        return draw_sigma(draws, config.P_mean, config.P_std, config.mmse_share)

    def noise(self, draws: Draws) -> Tensor:
        """What `forward` takes as noise."""
        return draws.normal(self.denoiser.config.image_shape, "noise")

    def forward(
        self,
        images: Tensor,
        sigma: Tensor,
        noise: Tensor,
        problem: Problem,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Loss `[B]`, a mean over values; images and unit noise `[B, C, h, w]`, sigma `[B]`.

        augment_labels: what `augment` did to the images, `[B, 9]`.
        """
        error = self.error(images, sigma, noise, Told(problem, augment_labels))
        log_variance = self.denoiser.log_variance(sigma)
        if not self.weighted:
            # Parallel training waits for a gradient of every parameter, the idle uncertainty's too.
            return error + 0 * log_variance
        weight = self.denoiser.output_scale(sigma).square().reciprocal()
        return weight / log_variance.exp() * error + log_variance

    def error(self, images: Tensor, sigma: Tensor, noise: Tensor, told: Told) -> Tensor:
        """The error `[B]` whose weight is learned, arguments as those of `forward`."""
        x = sigma[:, None, None, None] * noise
        x = images + x if self.sees_image else x
        return (self.denoiser(x, sigma, *told) - images).square().flatten(1).mean(1)


class MMSELoss(DenoisingLoss):
    """‖D(σε, σ; H, y) − x0‖² per value, at σ = 100 as the sampler `MMSE`: E[x0 | y] alone."""

    weighted = sees_image = False

    def levels(self, draws: Draws, config: TrainConfig) -> Tensor:
        return draw_sigma(draws, config.P_mean, config.P_std, mmse_share=1.0)


class InDILoss(DenoisingLoss):
    """|D(x_t, t; y) − x0| per value, x_t = (1 − t)x0 + t·H†y + t·ε·n (InDI, with ε = 0.01).

    t is uniform in (0, 1], but 1 for a share `mmse_share` of the samples. The paper of InvFusion
    states none of these choices.
    """

    epsilon = 0.01
    weighted = False

    def levels(self, draws: Draws, config: TrainConfig) -> Tensor:
        """The times t `[B]`."""
        chosen = draws.uniform((), "sigma/mmse") < config.mmse_share
        return torch.where(chosen, 1.0, 1 - draws.uniform((), "sigma"))

    def error(self, images: Tensor, sigma: Tensor, noise: Tensor, told: Told) -> Tensor:
        """sigma: the times."""
        time = sigma[:, None, None, None]
        mixed = images + time * (told.problem.pinv() - images + self.epsilon * noise)
        return (self.denoiser(mixed, sigma, *told) - images).abs().flatten(1).mean(1)


class UnrolledLoss(DenoisingLoss):
    """Mean squared error of what `Unrolled` restores, trained end to end: 10 steps, one network.

    The paper (D.5) starts from an unconditional network (`init`) and says no more. Here the levels
    are those of the sampler, the noise of every step is kept as in sampling, and gradients pass
    through all steps: ten times the activations, for which there is `recompute`.
    """

    sampler = Unrolled()
    weighted = False

    def noise(self, draws: Draws) -> Tensor:
        """Of the start and of every step, `[B, 11, C, h, w]`."""
        shape = self.denoiser.config.image_shape
        return draws.normal((self.sampler.num_steps + 1, *shape), "noise")

    def error(self, images: Tensor, sigma: Tensor, noise: Tensor, told: Told) -> Tensor:
        start, *drawn = noise.unbind(1)
        rng = SimpleNamespace(randn_like=lambda x: drawn.pop())
        denoiser = partial(self.denoiser, augment_labels=told.augment_labels)
        restored = self.sampler(denoiser, start, told.problem, rng)
        return (restored - images).square().flatten(1).mean(1)


class NPPCLoss(MMSELoss):
    """Error of the MMSE estimate, and principal components of its error e = x0 − x̂ (NPPC).

    L_μ + λ·r(32)·L_w + 0.1·λ·r(64)·L_σ, r(m) = min(steps/m, 1)², and L_μ is that of `MMSELoss`. No
    gradient passes through e. With ē = e/‖e‖ and orthogonal components w̃_k = ‖w̃_k‖·w_k,
        L_w = Σ_k (1 − ⟨w_k, ē⟩²), L_σ = Σ_k (‖w̃_k‖² − sg⟨w_k, e⟩²)²/s².
    Authors' code has s = ‖e‖², which weighs small errors more, so that the variances come out too
    small, by half or more where few directions hold most of them. Here s = sg Σ_k ‖w̃_k‖², but at
    least ‖e‖²/10. The paper leaves λ open: 0.02 beside a mean over values. Jitter gives the zeros
    of a new head a direction. It is a hundredth of a grey level: with 1e-8, as released, the first
    gradients are a thousand times as long as the later ones, and Adam remembers them.
    """

    weight = 0.02
    jitter = 1e-4

    def noise(self, draws: Draws) -> Tensor:
        """Of the input and, as jitter, of each component, `[B, 1 + K, C, h, w]`."""
        config = self.denoiser.config
        return draws.normal((config.out_mult, *config.image_shape), "noise")

    def error(self, images: Tensor, sigma: Tensor, noise: Tensor, told: Told) -> Tensor:
        x = sigma[:, None, None, None] * noise[:, 0]
        estimate, raw = self.denoiser.components(x, sigma, *told)
        error = (images - estimate).flatten(1)
        components = orthogonal(raw + self.jitter * noise[:, 1:]).flatten(2)
        known = error.detach()
        along = (F.normalize(components, dim=2) * F.normalize(known)[:, None]).sum(2).square()
        energy, variances = known.square().sum(1, keepdim=True), components.square().sum(2)
        scale = torch.maximum(variances.detach().sum(1, keepdim=True), energy / 10 + 1e-8)
        loss_w = (1 - along).sum(1)
        loss_sigma = ((variances - along.detach() * energy) / scale).square().sum(1)
        rest = self._warm(32) * loss_w + 0.1 * self._warm(64) * loss_sigma
        return error.square().mean(1) + self.weight * rest

    def _warm(self, steps: int) -> float:
        return min(self.step / steps, 1) ** 2


LOSSES: dict[str, type[DenoisingLoss]] = {
    "denoising": DenoisingLoss,
    "mmse": MMSELoss,
    "indi": InDILoss,
    "unrolled": UnrolledLoss,
    "nppc": NPPCLoss,
}
"""What each objective of a run minimises."""
