"""The sliced Wasserstein distance between two sets of samples."""

from torch import Tensor

from degradation import Draws


def sliced_wasserstein(a: Tensor, b: Tensor, slices: int = 500) -> float:
    """The mean over random directions of the 1-Wasserstein distance of two sets `[n, D]`.

    Projected onto a line, that is the mean distance of the samples in their order (Bonneel et al.,
    "Sliced and Radon Wasserstein barycenters of measures", 2015, with p = 1). The directions are
    the same in every call. Raises ValueError for sets of different shapes.
    """
    if a.shape != b.shape or a.ndim != 2:
        raise ValueError(
            f"expected two sets [n, D] of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    directions = Draws(range(slices)).normal(a.shape[1:], "directions").to(a)
    directions = directions / directions.norm(dim=1, keepdim=True)
    first, second = ((x @ directions.mT).sort(0).values for x in (a, b))
    return (first - second).abs().mean().item()
