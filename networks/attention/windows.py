"""Where the window of a query begins."""

from torch import Tensor


def window_start(position: Tensor, n: int, kernel: int) -> Tensor:
    """First index of the window of `kernel` positions around a position on an axis of n."""
    return (position - kernel // 2).clamp(0, n - kernel)
