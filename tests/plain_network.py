"""The problem handed to a network in the plainest form: operators of `plain_operators`, features as
images. With `plain_attention` it is the network that the fast one is timed against."""

from typing import Any

from torch import Tensor

from degradation import Problem
from degradation.features import ImageFeatures


class _PlainOperator:
    """One of `plain_operators`, on single images too; without noise."""

    diagonalisable = True

    def __init__(self, operator: Any):
        self.operator, self.image_shape = operator, operator.image_shape

    def H(self, x: Tensor) -> Tensor:
        return self.operator.H(x) if x.ndim == 5 else self.operator.H(x[:, None])[:, 0]

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        return self.operator.H_pinv(y) if y.ndim == 3 else self.operator.H_pinv(y[:, None])[:, 0]


class PlainProblem(Problem):
    """Measurements of images x by a plain operator; nothing is kept from one call to the next."""

    def __init__(self, operator: Any, x: Tensor):
        plain: Any = _PlainOperator(operator)
        super().__init__(plain, plain.H(x))

    def pinv(self) -> Tensor:
        return self.degradation.H_pinv(self.y)

    def features(self, patch: int) -> ImageFeatures:
        return ImageFeatures(self.degradation, self.y, self.noise_level, patch)
