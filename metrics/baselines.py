"""A restoration that needs no training, to compare a trained network with."""

import torch
from torch import Tensor

from degradation import Problem


def constant_fill(problem: Problem) -> Tensor:
    """The image of one colour that explains y best, projected onto y, `[B, C, h, w]`.

    The colour is the least-squares fit c of y ≈ H(c·1); for a mask it is the mean visible colour.
    """
    channels, h, w = problem.degradation.image_shape
    unit = torch.eye(channels).to(problem.y)[..., None, None].expand(-1, -1, h, w)
    plain = unit[None].expand(len(problem), *unit.shape)
    measured = problem.degradation.H(plain).double()  # [B, C, M]
    gram, target = measured @ measured.mT, measured @ problem.y.double()[..., None]
    # A colour that was not measured at all stays grey.
    colour = (torch.linalg.pinv(gram, hermitian=True) @ target).clamp(-1, 1)  # [B, C, 1]
    return problem.project(colour.to(problem.y)[..., None].expand(-1, -1, h, w))
