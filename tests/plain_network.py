"""A network in the plainest form: operators of `plain_operators`, features as images. With
`plain_attention` it is the network that the fast one is timed against."""

from typing import Any

from torch import Tensor

from degradation import LinearOperator, Problem


class PlainOperator(LinearOperator):
    """One of `plain_operators`, on single images too; without noise."""

    def __init__(self, operator: Any):
        self.operator, self.image_shape = operator, operator.image_shape

    def H(self, x: Tensor) -> Tensor:
        return self.operator.H(x) if x.ndim == 5 else self.operator.H(x[:, None])[:, 0]

    def H_pinv(self, y: Tensor, noise_level: float | Tensor = 0.0) -> Tensor:
        return self.operator.H_pinv(y) if y.ndim == 3 else self.operator.H_pinv(y[:, None])[:, 0]


def plain_problem(operator: Any, x: Tensor) -> Problem:
    """Measurements of images x by a plain operator."""
    plain = PlainOperator(operator)
    return Problem(plain, plain.H(x))
