"""Dense matrices of linear maps, and the laws that operators are held to."""

import math
import multiprocessing
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from degradation import LinearOperator
from runtime import distributed
from training.checkpoint import save_checkpoint
from training.trainer import Trainer

ONE_LEVEL = {"levels": [{"depth": 1, "width": 48, "kernel": 5, "d_head": 16}]}
"""What makes the preset tiny smaller: a graph of it is compiled in half the time."""


def sent(value: Any) -> Any:
    """What another process receives of a value. Raises EOFError if it cannot be sent."""
    receiver, sender = multiprocessing.Pipe(duplex=False)

    def send() -> None:
        with sender:
            sender.send(value)

    thread = threading.Thread(target=send)  # a pipe holds little: somebody has to receive
    thread.start()
    received = receiver.recv()
    thread.join()
    return received


def gaussian(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Standard normal numbers from a generator of their own."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


def precision(op: LinearOperator) -> torch.dtype:
    return op.s.dtype


def measurements(op: LinearOperator) -> int:
    """Number M of measurement rows."""
    return op.rows.shape[1]


def matrix(
    linear: Callable[[Tensor], Tensor], batch: int, shape: Sequence[int], dtype: torch.dtype
) -> Tensor:
    """Dense `[B, m, n]` of a map of stacks `[B, n, *shape]`, n the number of values of `shape`."""
    n = math.prod(shape)
    basis = torch.eye(n, dtype=dtype).view(1, n, *shape).expand(batch, n, *shape)
    return linear(basis).flatten(2).mT


def dense(op: LinearOperator) -> Tensor:
    """H as matrices `[B, M, C·h·w]`."""
    return matrix(op.H, len(op), op.image_shape, precision(op))


def dense_pinv(op: LinearOperator, noise_level: float | Tensor = 0.0) -> Tensor:
    """H† as matrices `[B, C·h·w, M]`."""

    def pinv(y: Tensor) -> Tensor:
        return op.H_pinv(y, noise_level)

    return matrix(pinv, len(op), (measurements(op),), precision(op))


def regularised_inverse(H: Tensor, noise_level: Tensor) -> Tensor:
    """Hᵀ(HHᵀ + σ²I)⁻¹ in float64: `[B, M, n]` matrices and levels `[B]` to `[B, n, M]`."""
    H = H.double()
    regular = H @ H.mT + noise_level.double().view(-1, 1, 1).square() * torch.eye(H.shape[1])
    return torch.linalg.solve(regular, H).mT


def assert_near(actual: Tensor, expected: Tensor, tol: float) -> None:
    """For every image the error is at most `tol` of the norm of what is expected."""
    assert actual.shape == expected.shape
    actual, expected = actual.double().flatten(1), expected.double().flatten(1)
    error, scale = (actual - expected).norm(dim=1), expected.norm(dim=1)
    assert (error <= tol * scale).all(), f"relative errors {(error / scale).tolist()}"


def assert_penrose(H: Tensor, pinv: Tensor, tol: float) -> None:
    """The four identities that define the Moore-Penrose pseudo-inverse of matrices `[B, M, n]`."""
    assert_near(H @ (pinv @ H), H, tol)
    assert_near(pinv @ (H @ pinv), pinv, tol)
    assert_near((H @ pinv).mT, H @ pinv, tol)
    assert_near((pinv @ H).mT, pinv @ H, tol)


def images(op: LinearOperator, *stack: int, seed: int = 1) -> Tensor:
    return gaussian(len(op), *stack, *op.image_shape, seed=seed, dtype=precision(op))


def data(op: LinearOperator, *stack: int, seed: int = 2) -> Tensor:
    return gaussian(len(op), *stack, measurements(op), seed=seed, dtype=precision(op))


def check_laws(op: LinearOperator, seed: int, tol: float) -> None:
    """Adjoint and Penrose identities on random images and measurements."""
    x, y = images(op, seed=seed), data(op, seed=seed + 1)

    def close(a: Tensor, b: Tensor, scale: Tensor) -> None:
        assert (a - b).abs().max() <= tol * scale.norm().clamp(min=1)

    Hx, pinv = op.H(x), op.H_pinv(y)
    close((Hx * y).sum(), (x * op.H_adjoint(y)).sum(), x.norm() * y.norm())
    close(op.H(op.H_pinv(Hx)), Hx, x)
    close(op.H_pinv(op.H(pinv)), pinv, pinv)
    u, v = images(op, seed=seed + 2), data(op, seed=seed + 3)
    close((op.H_pinv(op.H(u)) * x).sum(), (u * op.H_pinv(Hx)).sum(), x.norm() * u.norm())
    close((op.H(op.H_pinv(v)) * y).sum(), (v * op.H(pinv)).sum(), y.norm() * v.norm())


def write_checkpoint(trainer: Trainer, folder: Path) -> None:
    """The state of a trainer, as a run would write it; every process of a group has to ask."""
    progress, parts = trainer.state()
    if distributed.rank() == 0:
        save_checkpoint(folder, progress, parts, keep=9)
    distributed.barrier()
