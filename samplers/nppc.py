"""Principal components of the posterior in one evaluation (NPPC: Nehme et al., NeurIPS 2023)."""

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from degradation import Problem
from samplers.base import register
from samplers.mmse import MMSE


class ComponentDenoiser(Protocol):
    """A network that gives K raw components `[B, K, C, h, w]` beside its estimate."""

    def components(self, x: Tensor, sigma: float, problem: Problem) -> tuple[Tensor, Tensor]: ...


class Components(NamedTuple):
    """What an NPPC network says of each posterior, the largest component first."""

    mean: Tensor
    """The MMSE estimate `[B, C, h, w]`."""
    components: Tensor
    """Orthogonal, `[B, K, C, h, w]`; the norm of each is its standard deviation."""
    deviations: Tensor
    """The standard deviations `[B, K]`, of images in [-1, 1] along a direction of norm 1."""


@register("nppc")
class NPPC(MMSE):
    """The MMSE estimate of a network trained for `nppc`, from the pass that gives its components.

    sigma: the noise level of the input, which is noise alone, as in training.
    """

    title = "NPPC"
    objectives = frozenset({"nppc"})

    def components(
        self, denoiser: ComponentDenoiser, noise: Tensor, problem: Problem
    ) -> Components:
        """Mean, components and standard deviations from unit noise `[B, C, h, w]`.

        Raises ValueError if the network was not trained for them.
        """
        mean, raw = denoiser.components(self.sigma * noise, self.sigma, problem)
        if not raw.shape[1]:
            raise ValueError("the network gives no components: it was not trained for nppc")
        found = orthogonal(raw)
        deviations, order = found.flatten(2).norm(dim=2).sort(descending=True)
        return Components(mean, found[torch.arange(len(order))[:, None], order], deviations)


def orthogonal(raw: Tensor) -> Tensor:
    """Components `[B, K, C, h, w]` without their projections on the ones before (Gram-Schmidt).

    No gradient passes through what is projected on (NPPC, Eq. 3): a component is not turned to
    make room for a later one.
    """
    found: list[Tensor] = []
    units: list[Tensor] = []
    for component in raw.flatten(2).unbind(1):
        for unit in units:
            component = component - (component * unit).sum(1, keepdim=True) * unit
        found.append(component)
        units.append(F.normalize(component.detach()))
    return torch.stack(found, 1).view_as(raw)
