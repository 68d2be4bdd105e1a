"""RED-diff: the measurement fitted under a regulariser by denoising."""

import torch
from torch import Tensor

from samplers.base import Run, bounded, register
from zero_shot.base import ZeroShot, column, ddpm_grid


@register("reddiff")
class REDDiff(ZeroShot):
    """Mardani et al., "A variational perspective on solving inverse problems ...", ICLR 2024.

    Algorithm 1. Adam (`lr`, betas 0.9 and 0.99) moves an image μ, from H†y on, down the
    noise levels of DDPM by the gradient of ½·mean (y − Hμ)², over the rows that exist, plus λσ·mean
    of μ·(ε̂ − z), over the pixels, where ε̂ is the noise that the denoiser finds in μ + σz and λ is
    `weight`. It seeks a mode: samples differ little. With noise H† is regularised by its level.
    """

    title = "RED-diff"

    num_steps: int = bounded(1000, 1, 1000)
    lr: float = bounded(0.1, 1e-9, 1e3)
    weight: float = bounded(0.25, 0, 1e6)

    def evaluations(self) -> int:
        return self.num_steps

    @torch.no_grad()
    def sample(self, run: Run, noise: Tensor) -> Tensor:
        problem, operator = run.problem, run.problem.degradation
        rows = column(operator.rows.sum(1).clamp(min=1))
        x = problem.pinv().to(noise).clone()
        adam = torch.optim.Adam([x], lr=self.lr, betas=(0.9, 0.99))
        for step, sigma in enumerate(reversed(ddpm_grid(self.num_steps))):
            z = run.rng.randn_like(x)
            estimate = run.estimate(x + sigma * z, sigma)
            prior_slope = self.weight * (x - estimate) / operator.numel  # λσ·(ε̂ − z)
            data_slope = operator.H_adjoint(problem.residual(x)) / rows
            x.grad = (prior_slope - data_slope).to(x)
            adam.step()
        return x
