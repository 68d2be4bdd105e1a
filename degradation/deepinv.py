"""Our operators as physics of deepinv (https://deepinv.github.io), for its samplers and losses."""

import importlib
from functools import cache
from typing import Any

from torch import Tensor

from degradation.base import LinearOperator


def to_deepinv(operator: LinearOperator) -> Any:
    """A `deepinv.physics.LinearPhysics` with A, A_adjoint and A_dagger of an operator.

    A maps as many images as there are operators, or a whole multiple (block after block),
    `[n, C, h, w]`, to `[n, C', h', w']` where the measurement is a picture, else to `[n, M]`.
    A_dagger is H† at noise level 0. Raises ImportError if deepinv is not installed.
    """
    return _physics_class()(operator)


@cache
def _physics_class() -> type:
    """Made where it is needed: deepinv takes a second to import, and is optional."""
    try:
        base: Any = importlib.import_module("deepinv.physics").LinearPhysics
    except (ImportError, RuntimeError) as error:  # what a torchvision for another torch raises
        raise ImportError(
            "to_deepinv needs the package deepinv (pip install 'deepinv>=0.5') and a torchvision "
            f"that fits this torch; importing it said: {error}"
        ) from error

    class OperatorPhysics(base):
        """A x = Hx with H of InvFusion."""

        def __init__(self, operator: LinearOperator):
            self.operator = operator  # first: the constructor below moves the module
            super().__init__(img_size=operator.image_shape, device=operator.rows.device)

        def A(self, x: Tensor, **kwargs: Any) -> Tensor:
            operator = self._of(len(x))
            y = operator.H(x)
            picture = operator.measurement_image(y)
            return y if picture is None else picture

        def A_adjoint(self, y: Tensor, **kwargs: Any) -> Tensor:
            return self._of(len(y)).H_adjoint(y.flatten(1))

        def A_dagger(self, y: Tensor, **kwargs: Any) -> Tensor:
            return self._of(len(y)).H_pinv(y.flatten(1))

        def _of(self, n: int) -> LinearOperator:
            times, rest = divmod(n, len(self.operator))
            if rest or not times:
                raise ValueError(f"{n} images for {len(self.operator)} operators")
            return self.operator if times == 1 else self.operator.expand(times)

        def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
            """`.to(...)` of a module moves the operator as well."""
            super()._apply(fn, *args, **kwargs)
            self.operator = self.operator.to(self._device_holder.device)
            return self

    return OperatorPhysics
