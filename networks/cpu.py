"""Makes networks faster on a CPU. Programs switch it on; no network imports it.

PyTorch hands float32 products to MKL, whose AVX-512 kernels run on its maker's processors only.
Those of oneDNN, which PyTorch brings along, run on all that have it (docs/performance.md).
"""

import ctypes
import os
import warnings
from timeit import timeit

import torch
from torch import Tensor

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # parameters of glibc's mallopt
_LEAST = 2**19  # multiplications: below, the call costs more than the kernel saves
_GAIN = 1.3  # times as fast: less is not worth another's rounding
_overridden: list[torch.library.Library] = []


def tune() -> None:
    """Keep freed memory, and let oneDNN compute products where it is clearly faster than PyTorch.

    Measured once, in about 20 ms, and only on processors with AVX-512. To be called before the
    first tensor is made. On a machine with a GPU only the memory is kept.
    """
    keep_memory()
    if not uses_onednn() and not torch.cuda.is_available() and has_kernels() and _gain() > _GAIN:
        use_onednn()


def keep_memory() -> None:
    """Let Linux hand out freed memory again without clearing it page by page.

    A network's activations are allocated and freed hundreds of times a second; a forward pass on a
    CPU takes about an eighth less time. Does nothing if the C library has no mallopt.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # read by PyTorch at its first allocation
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if os.name == "posix" else None
    if mallopt is not None:
        # Older libraries refuse more than half a heap, 32 MiB.
        if not mallopt(_MMAP_THRESHOLD, 2**30):
            mallopt(_MMAP_THRESHOLD, 2**25)
        mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def has_kernels() -> bool:
    """Whether oneDNN has kernels here that MKL may not use."""
    return (
        torch.backends.mkldnn.is_available()
        and torch.backends.cpu.get_cpu_capability().startswith("AVX512")
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def uses_onednn() -> bool:
    return bool(_overridden)


def use_onednn(wanted: bool = True) -> None:
    """Replace PyTorch's product of two float32 matrices on a CPU, for this process, or undo that.

    Linear maps and their gradients end in that product. Compiled graphs call its form with `out`.
    """
    _overridden.clear()  # with the library goes what it replaced
    if not wanted:
        return
    library = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="(?s).*[Oo]verriding a previously registered")
        library.impl("mm", _mm, "CPU")
        library.impl("mm.out", _mm, "CPU")
    _overridden.append(library)


def _mm(a: Tensor, b: Tensor, *, out: Tensor | None = None) -> Tensor:
    same = a.dtype == b.dtype == torch.float32 and a.ndim == b.ndim == 2
    suits = same and a.shape[1] == len(b) and a.numel() * b.shape[1] >= _LEAST
    if out is not None:
        suits = suits and out.dtype == a.dtype and out.shape == (len(a), b.shape[1])
    if not suits:  # PyTorch's own, by another name
        return torch.addmm(a.new_empty(()), a, b, beta=0, out=out)
    return multiply(a, b) if out is None else out.copy_(multiply(a, b))


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """a · b of matrices by oneDNN."""
    turned = not a.is_contiguous() and b.numel() < a.numel()  # the first of the two is copied
    if turned:
        a, b = b.mT, a.mT
    if not (b.is_contiguous() or b.mT.is_contiguous()):  # with gaps there is no fast kernel
        b = b.contiguous()
    product = torch.ops.mkldnn._linear_pointwise(a.contiguous(), b.mT, None, "none", [], "")
    return product.mT.contiguous() if turned else product


def _gain() -> float:
    """How many times as fast oneDNN multiplies two matrices as PyTorch's own product."""
    a, b = torch.ones(512, 768), torch.ones(768, 512)
    ways = (lambda: torch.mm(a, b)), (lambda: multiply(a, b))
    # In turn, so that both meet the same neighbours.
    seconds = [[timeit(way, number=1) for way in ways] for _ in range(8)]
    theirs, ours = (min(column) for column in zip(*seconds, strict=True))
    return theirs / ours
