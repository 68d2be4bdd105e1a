"""Time of the operators against the plain forms that the tests compare them with.

`python -m benchmarks.operators` prints a table, writes results/operators-<device>.json beside it.
On a GPU the time is also compared with that of moving the bytes once each way.
"""

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from degradation import DenseMatrix, Draws, MatrixDegradation, MissingPatches, MotionBlur
from degradation.motion import motion_kernels
from degradation.randomness import compile_draws
from networks.features import FeatureMap, ImageFeatures, MaskedFeatures, mix
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plain_operators import PlainBlur, PlainMask, PlainMatrix

SHAPE = (3, 64, 64)
BATCH, STACK = 8, 32
RESULTS = Path(__file__).parent / "results"
_REPEATS, _SECONDS = 15, 3.0


def seconds(work: Callable[[], Any], device: torch.device) -> float:
    """The shortest of several runs, after one that warms up."""
    _timed(work, device)
    times: list[float] = []
    while len(times) < _REPEATS and sum(times) < _SECONDS:
        times.append(_timed(work, device))
    return min(times)


def _timed(work: Callable[[], Any], device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def round_trip(operator: Any, x: Tensor) -> Callable[[], Tensor]:
    """H and then H†."""
    return lambda: operator.H_pinv(operator.H(x))


def matrix_rows(device: torch.device) -> list[dict[str, Any]]:
    """Building MatrixDegradation for a batch: drawing, factorising, both."""
    seeds = list(range(BATCH))
    counts = Draws(seeds).integers(2, 128, (1,), "rows")[:, 0].to(device)

    def plain_draw() -> Tensor:
        matrix = torch.nn.functional.normalize(torch.randn(BATCH, 128, 3 * 64 * 64), dim=-1)
        return matrix.to(device) * (torch.arange(128, device=device) < counts[:, None])[..., None]

    matrix = plain_draw()
    plain = seconds(lambda: PlainMatrix(matrix, SHAPE), device)
    ours = seconds(lambda: DenseMatrix(matrix, SHAPE), device)
    both_plain = seconds(lambda: PlainMatrix(plain_draw(), SHAPE), device)

    def build() -> DenseMatrix:
        return MatrixDegradation().sample(SHAPE, None, seeds, device)

    eager = seconds(build, device)
    compile_draws()
    compiled = seconds(build, device)
    large = matrix.numel() * matrix.element_size()
    operator = build()
    kept = sum(getattr(operator, n).numel() * getattr(operator, n).element_size()
               for n in operator.tensors)  # fmt: skip
    return [
        _row("factorise 8 matrices", plain, ours),
        _row("draw and factorise, eager", both_plain, eager),
        _row("draw and factorise, drawing compiled", both_plain, compiled)
        | {"plain_mib": 2 * large / 2**20, "mib": kept / 2**20},
    ]


def stack_rows(device: torch.device) -> list[dict[str, Any]]:
    """H and H† of a stack of features."""
    seeds, x = list(range(BATCH)), torch.randn(BATCH, STACK, *SHAPE, device=device)
    move = seconds(lambda: x.clone(), device)
    rows = []
    for stride in (2, 4, 8):
        kernel = motion_kernels(Draws(seeds), (32, 32), smooth=float(stride)).to(device)
        ours = MotionBlur().sample(SHAPE, stride, seeds, device)
        plain = PlainBlur(kernel, stride, SHAPE)
        rows.append(
            _row(
                f"blur, stride {stride}: H, H†",
                seconds(round_trip(plain, x), device),
                seconds(round_trip(ours, x), device),
                2 * move,
            )
        )
    mask = MissingPatches().sample(SHAPE, None, seeds, device)
    plain_mask = PlainMask(mask.mask, SHAPE)
    matrix = MatrixDegradation().sample(SHAPE, None, seeds, device)
    basis = matrix.large
    plain_matrix = PlainMatrix(basis, SHAPE)
    for name, plain, ours in (
        ("mask: H, H†", plain_mask, mask),
        ("matrix: H, H†", plain_matrix, matrix),
    ):
        times = (seconds(round_trip(operator, x), device) for operator in (plain, ours))
        rows.append(_row(name, *times, 2 * move))
    return rows


def layer_row(device: torch.device) -> dict[str, Any]:
    """H, T and H† of a mask on the tokens of the first level of FFHQ64; plain: as images."""
    mask = MissingPatches().sample(SHAPE, None, list(range(BATCH)), device)
    y = mask.H(torch.randn(BATCH, *SHAPE, device=device))
    tokens = torch.randn(BATCH, 32, 32, 384, device=device)
    weight, bias = torch.randn(STACK, STACK + 1, device=device), torch.randn(STACK, device=device)
    level = torch.zeros(BATCH, device=device)

    def layer(features: FeatureMap) -> Tensor:
        mixed = mix(features.H(tokens), features.y, weight, bias)
        return features.H_pinv(torch.nn.functional.gelu(mixed))

    plain = ImageFeatures(mask, y, level, 2)
    ours = MaskedFeatures(mask.mask, mask.unflatten(y), level, 2)
    return _row(
        "mask: feature layer",
        seconds(lambda: layer(plain), device),
        seconds(lambda: layer(ours), device),
    )


def kernel_row() -> dict[str, Any]:
    """64 motion kernels of 64×64 images on one core; plain: one by one."""
    seeds = list(range(64))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    together = seconds(lambda: motion_kernels(Draws(seeds), (32, 32), smooth=2.0), cpu)
    one_by_one = seconds(
        lambda: [motion_kernels(Draws([seed]), (32, 32), smooth=2.0) for seed in seeds], cpu
    )
    torch.set_num_threads(threads)
    return _row("64 motion kernels, one core", one_by_one, together)


def _row(name: str, plain: float, ours: float, move: float | None = None) -> dict[str, Any]:
    return {"name": name, "plain_ms": 1e3 * plain, "ms": 1e3 * ours,
            "copies": None if move is None else ours / move}  # fmt: skip


def main() -> None:
    """Measure on the GPU if there is one."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = [*matrix_rows(device), *stack_rows(device), layer_row(device), kernel_row()]
    cells = [[r["name"], r["plain_ms"], r["ms"], r["plain_ms"] / r["ms"], r["copies"]]
             for r in rows]  # fmt: skip
    print(table(["", "plain ms", "ms", "times faster", "time of a copy each way"], cells))
    with replacing(RESULTS / f"operators-{device.type}.json") as path:
        record = {
            "image_shape": SHAPE, "batch": BATCH, "stack": STACK,
            "threads": torch.get_num_threads(), "rows": rows, "environment": environment(),
        }  # fmt: skip
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
