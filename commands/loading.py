"""Weights files as the commands that restore and generate take them."""

from pathlib import Path

import torch

from networks import Denoiser, Model, load_weights


def load_frozen(
    path: Path, device: torch.device, precision: torch.dtype, recompute: bool = False
) -> Model:
    """A network whose weights take no gradients, or a prior: solvers differentiate by images alone.

    precision: that of the network's matrix products, to be called under an autocast to it.
    recompute: backward passes repeat the blocks of a network rather than keep their activations.
    Raises ValueError for a prior that is to do so, and what `load_weights` raises.
    """
    denoiser = load_weights(path, device)
    if isinstance(denoiser, Denoiser):
        denoiser.requires_grad_(False)
        denoiser.cast_linear(precision)
        levels = len(denoiser.config.levels)
        denoiser.net.recompute = frozenset(range(levels) if recompute else ())
    elif recompute:
        raise ValueError("--recompute is for networks, and --net names an analytic prior")
    return denoiser
