"""Priors whose estimates are known in closed form: yardsticks for trained networks."""

from typing import Self

import torch
from torch import Tensor

from degradation import Problem


class GaussianPrior:
    """x0 ~ N(mean, covariance) over images flattened to D = C·h·w values, in float64."""

    def __init__(self, mean: Tensor, covariance: Tensor, image_shape: tuple[int, int, int]):
        self.mean, self.covariance = mean.double(), covariance.double()
        self.image_shape = image_shape

    @classmethod
    def fit(cls, images: Tensor, ridge: float = 1e-6) -> Self:
        """Sample mean and covariance of images `[n, C, h, w]` in [-1, 1]; ridge is added to the
        variances, so that fewer images than values do no harm."""
        x = images.flatten(1).double()
        mean = x.mean(0)
        centred = x - mean
        covariance = centred.T @ centred / (len(x) - 1)
        covariance.diagonal().add_(ridge)
        channels, h, w = images.shape[1:]
        return cls(mean, covariance, (channels, h, w))

    def posterior_mean(self, problem: Problem) -> Tensor:
        """E[x0 | y] `[B, C, h, w]`: the linear MMSE estimate m + ΣHᵀ(HΣHᵀ + σ²I)⁻¹(y − Hm).

        Solved in the spectral coordinates of H, where the directions that exist are independent.
        Raises ValueError for operators without SVD.
        """
        problem.degradation.check_diagonalisable("the Gaussian's estimate")
        device = problem.y.device
        prior = type(self)(self.mean.to(device), self.covariance.to(device), self.image_shape)
        means = [prior._posterior_mean(problem[[i]]) for i in range(len(problem))]
        return torch.stack(means).to(problem.y)

    def _posterior_mean(self, problem: Problem) -> Tensor:
        operator = problem.degradation.to(torch.float64)
        exists = operator.s[0] > 0
        images = self.covariance.unflatten(0, self.image_shape).movedim(-1, 0)  # Σ symmetric

        def measure(x: Tensor) -> Tensor:
            """diag(s)·Vᵀ of images `[n, C, h, w]` in the existing directions, `[n, r]`."""
            return (operator.s * operator.Vt(x[None])[0])[:, exists]

        cross = measure(images)  # Σ Vs, [D, r]
        columns = measure(cross.T.unflatten(1, self.image_shape))  # sVᵀΣVs, [r, r]
        columns.diagonal().add_(problem.noise_level.double().item() ** 2)
        expected = measure(self.mean.reshape(1, *self.image_shape))[0]
        innovation = operator.Ut(problem.y.double())[0, exists] - expected
        solved = torch.linalg.solve(columns, innovation)
        return (self.mean + cross @ solved).reshape(self.image_shape)
