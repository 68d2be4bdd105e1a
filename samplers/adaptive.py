"""Severity-adaptive sampling: an image that is nearly known starts at a lower noise level."""

from typing import cast

import torch
from torch import Tensor

from degradation import Draws
from samplers.base import OnGrid, Run, Sampler, bounded, make_sampler, register
from samplers.mmse import MMSE

_UNKNOWN = 1.0  # squared error per value of images in [-1, 1], at most


@register("adaptive")
class Adaptive(Sampler):
    """The sampler `of` from x̂ + √c·σ̂·noise on, at its lowest level σ that is at least √(1 + c)·σ̂.

    After Fabian et al., "Adapt and diffuse" (2024), in pixels. x̂ is the one-step MMSE estimate. σ̂²
    is its squared error per value, which one more evaluation predicts for each image: the error has
    the covariance s²·∂D/∂x (Tweedie), so for unit noise n its trace is s·⟨n, D(x̂ + s·n; s) − x̂⟩ on
    average. s = `probe` is a level that networks are trained for. Where the error varies by more
    than s, too little is seen.

    c = `spread`. The paper has 1.2, which fits an error like white noise. That of an image lies
    mostly in few directions. A start with less noise than they have makes samples of too little
    variance, so c is much larger here.
    """

    of: str = "dpm"
    num_steps: int = 20
    spread: float = bounded(300.0, 1e-3, 1e6)
    probe: float = bounded(3.0, 1e-3, 1e3)

    def __post_init__(self) -> None:
        super().__post_init__()
        inner = type(self.sampler)
        # A zero-shot sampler tells the denoiser nothing of y: its estimate would be of any image.
        if getattr(inner, "start", None) is not OnGrid.start or inner.tell is not Sampler.tell:
            raise ValueError(f"Adaptive option of={self.of} must be heun, euler, dpm or deis")

    @property
    def sampler(self) -> OnGrid:
        """What goes on from the start."""
        return cast(OnGrid, make_sampler(self.of, {"num_steps": self.num_steps}))

    def evaluations(self) -> int:
        return self.sampler.evaluations() + 2

    def sample(self, run: Run, noise: Tensor) -> Tensor:
        sampler, grid = self.sampler, self.sampler.grid()
        estimate, variance = self.severity(run, noise)
        wanted = ((1 + self.spread) * variance).sqrt()
        enough = torch.tensor(grid[:-1]).to(wanted) >= wanted[:, None]
        first = (enough.sum(1) - 1).clamp(min=0)
        x = torch.empty_like(estimate)
        for index in first.unique().tolist():
            rows = (first == index).nonzero()[:, 0]
            spread = (grid[index] ** 2 - variance[rows]).clamp(min=0).sqrt().view(-1, 1, 1, 1)
            part = sampler.begin(run.denoiser, run.problem[rows], cast(Draws, run.rng)[rows])
            x[rows] = sampler.descend(part, estimate[rows] + spread * noise[rows], grid[index:])
        return x

    def severity(self, run: Run, noise: Tensor) -> tuple[Tensor, Tensor]:
        """The MMSE estimate `[B, C, h, w]` and its predicted squared error per value `[B]`."""
        sigma = MMSE().sigma
        estimate, unit = run.estimate(sigma * noise, sigma), run.rng.randn_like(noise)
        response = run.estimate(estimate + self.probe * unit, self.probe) - estimate
        variance = self.probe * (unit * response).flatten(1).mean(1)
        # A network may answer one n with 0 or less. Then as much is open as without y.
        return estimate, torch.where(variance > 0, variance, _UNKNOWN)
