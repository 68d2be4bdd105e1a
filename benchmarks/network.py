"""Speed and memory of a network: forward pass, training step, sampling, against the plain path.

`python -m benchmarks.network --name network` prints a table and writes
results/network-<device>.json. Every row is measured in a process of its own, whose peak memory it
shows. The plain path is dense masked attention, complex transforms, stored pseudo-inverses, norms
and gates by their formulas, PyTorch's own matrix products, eager (tests/plain_*.py). The ceiling is
that of a product of large matrices on the same machine, the faster one of PyTorch's own and of the
network's linear maps.
"""

import dataclasses
import functools
import json
import multiprocessing
import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from benchmarks.naming import name_option
from degradation import (
    Draws,
    LinearOperator,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    Problem,
)
from networks import Denoiser, NetworkConfig, layers, make_config, products
from networks import invfusion as network
from networks.attention import BACKENDS, use_backend
from networks.attention.tiled import GlobalAttention
from networks.dropout import seeded
from networks.flops import count_operations
from networks.precision import DTYPES
from networks.presets import PRESETS
from networks.products import linear
from runtime.allocation import keep_memory
from runtime.environment import environment
from runtime.errors import one_sentence_errors
from runtime.files import replacing
from runtime.tables import table
from samplers import Heun

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from plain_attention import DenseNeighbourhood
from plain_layers import plain_gate, plain_norm
from plain_network import plain_problem
from plain_operators import PlainBlur, PlainMask, PlainMatrix

RESULTS = Path(__file__).parent / "results"
FAMILIES = {
    "none": (MissingPatches(), None),  # a network without feature layers sees only H†y
    "mask": (MissingPatches(), None),
    "matrix": (MatrixDegradation(), None),
    "blur-2": (MotionBlur(), 2),
    "blur-4": (MotionBlur(), 4),
    "blur-8": (MotionBlur(), 8),
}
STAGES = ("forward", "step", "sampling")
PATHS = ("compiled", "eager", "plain")
COMPONENTS = ("operator", "attention", "linear", "norm", "conditioning")
_SECONDS, _REPEATS = 12.0, 4


@dataclasses.dataclass(frozen=True)
class Cell:
    """One row of the table."""

    preset: str
    divide: int
    batch: int
    family: str
    precision: str
    stage: str
    path: str
    steps: int


def configuration(cell: Cell) -> NetworkConfig:
    """The preset, its widths divided; heads of half the channels where it is."""
    config = make_config(cell.preset, "blind" if cell.family == "none" else "invfusion")
    if cell.divide == 1:
        return config
    levels = tuple(
        dataclasses.replace(level, width=level.width // cell.divide, d_head=level.d_head // 2)
        for level in config.levels
    )
    return dataclasses.replace(config, levels=levels)


def device() -> torch.device:
    """The GPU if there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def problems(cell: Cell, operator: LinearOperator, clean: Tensor) -> Callable[[], Problem]:
    """The problem that a call is given: of the plain path, the plain operator's."""
    if cell.path != "plain":
        return lambda: Problem(operator, operator.H(clean))
    family, structure = FAMILIES[cell.family]
    seeds, shape = range(cell.batch), operator.image_shape
    plain: Any
    if isinstance(family, MotionBlur):
        plain = PlainBlur(family.kernels(shape, structure, seeds).to(clean), structure, shape)
    elif isinstance(family, MatrixDegradation):
        plain = PlainMatrix(operator.large, shape)  # type: ignore[attr-defined]
    else:
        plain = PlainMask(operator.mask, shape)  # type: ignore[attr-defined]
    return lambda: plain_problem(plain, clean)


def workload(cell: Cell, denoiser: Denoiser, operator: LinearOperator) -> Callable[[], Any]:
    """What is timed. A problem lasts for a whole sampling run, and for one training step."""
    place = device()
    clean = torch.randn(cell.batch, *operator.image_shape, device=place)
    sigma = torch.full((cell.batch,), 2.0, device=place)
    autocast = functools.partial(
        torch.autocast, place.type, torch.bfloat16, enabled=cell.precision == "bf16"
    )
    problem = problems(cell, operator, clean)

    if cell.stage == "step":
        denoiser.train()
        optimizer = torch.optim.Adam(denoiser.parameters(), 1e-4, fused=True)

        seeds = torch.arange(cell.batch, device=place)

        def step() -> None:
            with autocast(), seeded(denoiser, seeds):
                estimate = denoiser(clean + 2 * torch.randn_like(clean), sigma, problem())
            (estimate - clean).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        return step

    known = problem()

    @torch.no_grad()
    def sample() -> None:
        with autocast():
            draws = Draws(range(cell.batch), place)
            Heun(num_steps=cell.steps)(denoiser, clean, known, draws)

    @torch.no_grad()
    def forward() -> None:
        with autocast():
            denoiser(clean, sigma, known)

    denoiser.eval().requires_grad_(False)
    if cell.path != "plain":
        denoiser.cast_linear(DTYPES[cell.precision])
    return sample if cell.stage == "sampling" else forward


def measure(cell: Cell, threads: int) -> dict[str, Any]:
    """The row of a cell, measured in this process."""
    keep_memory()
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    place = device()
    config = configuration(cell)
    denoiser = Denoiser(config).to(place)
    with torch.no_grad():
        for parameter in denoiser.parameters():  # no branch is the identity
            if not parameter.any():
                parameter.normal_(0, 0.02)
    family, structure = FAMILIES[cell.family]
    operator = family.sample(config.image_shape, structure, range(cell.batch), place)
    operations = count_operations(config, None if cell.family == "none" else operator)
    with plain_layers() if cell.path == "plain" else nullcontext():
        work = workload(cell, denoiser, operator)
        compiling = 0.0
        if cell.path == "compiled":
            denoiser.compile()
            compiling = timed(work, place)
        forget_peak(place)
        seconds = shortest(work, place)
        peak = peak_memory(place)
        shares = component_shares(work, place) if cell.path == "eager" else {}
    calls = {"forward": 1, "step": 3, "sampling": 2 * cell.steps - 1}[cell.stage]
    tflop = calls * cell.batch * operations.total / 1e12
    return dataclasses.asdict(cell) | {
        "seconds": seconds,
        "images_per_second": cell.batch / seconds,
        "tflop": tflop,
        "tflop_per_second": tflop / seconds,
        "gflop_an_image": {k: v / 1e9 for k, v in dataclasses.asdict(operations).items()},
        "peak_mib": peak,
        "compile_seconds": compiling,
        "shares": shares,
    }


@contextmanager
def plain_layers() -> Iterator[None]:
    """Dense masked attention, norms and gates by their formulas, PyTorch's own products."""
    BACKENDS["dense"] = DenseNeighbourhood
    lean = layers.gated_gelu, layers.rms_normalise, products._HAS_KERNELS
    layers.gated_gelu, layers.rms_normalise, products._HAS_KERNELS = plain_gate, plain_norm, False
    try:
        with use_backend("dense"):
            yield
    finally:
        layers.gated_gelu, layers.rms_normalise, products._HAS_KERNELS = lean


def timed(work: Callable[[], Any], place: torch.device) -> float:
    """Seconds of one call."""
    _wait(place)
    start = time.perf_counter()
    work()
    _wait(place)
    return time.perf_counter() - start


def shortest(work: Callable[[], Any], place: torch.device) -> float:
    """Seconds of the fastest of several calls, after one that warms up."""
    times = [timed(work, place)]
    while (len(times) <= _REPEATS and sum(times) < _SECONDS) or len(times) < 2:
        times.append(timed(work, place))
    return min(times[1:])


def _wait(place: torch.device) -> None:
    if place.type == "cuda":
        torch.cuda.synchronize(place)


def forget_peak(place: torch.device) -> None:
    """Start to look for the peak of memory here: what a compiler needed does not count."""
    if place.type == "cuda":
        torch.cuda.reset_peak_memory_stats(place)
    elif Path("/proc/self/clear_refs").exists():
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory(place: torch.device) -> float:
    """MiB: of tensors on a GPU, of the whole process on a CPU."""
    if place.type == "cuda":
        return torch.cuda.max_memory_allocated(place) / 2**20
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return next(int(line.split()[1]) for line in status.read_text().splitlines()
                if line.startswith("VmHWM")) / 1024  # fmt: skip


def component_shares(work: Callable[[], Any], place: torch.device) -> dict[str, float]:
    """Shares of the time in which forward passes are inside each component, eager.

    A backward pass and an optimiser's step are in none of them.
    """
    spent = dict.fromkeys(COMPONENTS, 0.0)
    inside: list[str] = []

    def watch(name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            if inside:  # a projection inside another component belongs to that
                return call(*args, **kwargs)
            inside.append(name)
            _wait(place)
            start = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                _wait(place)
                spent[name] += time.perf_counter() - start
                inside.pop()

        return watched

    replaced: list[tuple[Any, str, Any]] = [
        (network.FeatureDegradation, "forward", "operator"),
        (products.Linear, "forward", "linear"),
        (network, "linear", "linear"),
        (network.AdaRMSNorm, "forward", "norm"),
        (network.InvFusion, "conditioning", "conditioning"),
        *((backend, "__call__", "attention") for backend in (*BACKENDS.values(),)),
        (GlobalAttention, "__call__", "attention"),
    ]
    originals = [(owner, name, getattr(owner, name)) for owner, name, _ in replaced]
    for owner, name, component in replaced:
        setattr(owner, name, watch(component, getattr(owner, name)))
    try:
        total = timed(work, place)
    finally:
        for owner, name, call in originals:
            setattr(owner, name, call)
    return {name: seconds / total for name, seconds in spent.items()}


def product_speeds(dtype: torch.dtype, threads: int) -> dict[str, float]:
    """TFLOP/s of the product of two large matrices, by PyTorch ("matmul") and as a linear map."""
    keep_memory()
    torch.set_num_threads(threads)
    place = device()
    n = 8192 if place.type == "cuda" else 4096
    a, b = (torch.randn(n, n, device=place).to(dtype) for _ in range(2))
    ways = {"matmul": lambda: a @ b, "linear": lambda: linear(a, b)}
    return {name: 2 * n**3 / shortest(call, place) / 1e12 for name, call in ways.items()}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(function, *arguments).result()


def show(rows: Sequence[dict[str, Any]], ceilings: dict[str, float]) -> str:
    """The table."""
    plain = {_place(r): r["seconds"] for r in rows if r["path"] == "plain"}
    header = ["stage", "precision", "operator", "path", "s", "images/s", "TFLOP/s", "of ceiling",
              "times plain", "peak MiB", "compile s", "operator share", "attention", "linear",
              "norm", "conditioning"]  # fmt: skip
    cells = [
        [r["stage"], r["precision"], r["family"], r["path"], r["seconds"], r["images_per_second"],
         r["tflop_per_second"], r["tflop_per_second"] / ceilings[r["precision"]],
         plain[_place(r)] / r["seconds"] if _place(r) in plain else None, round(r["peak_mib"]),
         r["compile_seconds"] or None,
         *(r["shares"].get(name) for name in COMPONENTS)]
        for r in rows
    ]  # fmt: skip
    return table(header, cells)


def _place(row: dict[str, Any]) -> tuple:
    return tuple(
        row[name] for name in ("preset", "divide", "batch", "family", "precision", "stage")
    )


def _choice(values: Sequence[str]) -> Callable[..., list[str]]:
    def parse(ctx: click.Context, parameter: click.Parameter, text: str) -> list[str]:
        chosen = text.split(",")
        for name in chosen:
            if name not in values:
                raise click.BadParameter(f"'{name}' is none of {', '.join(values)}")
        return chosen

    return parse


@click.command()
@click.option("--preset", type=click.Choice(list(PRESETS)), default="FFHQ64", show_default=True)
@click.option(
    "--divide", type=click.IntRange(1), default=1, show_default=True,
    help="Divide the widths by this.",
)  # fmt: skip
@click.option("--batch", type=click.IntRange(1), default=8, show_default=True)
@click.option("--families", default=",".join(FAMILIES), callback=_choice(list(FAMILIES)))
@click.option("--precisions", default="fp32,bf16", callback=_choice(["fp32", "bf16"]))
@click.option("--stages", default="forward", callback=_choice(STAGES))
@click.option("--paths", default=",".join(PATHS), callback=_choice(PATHS))
@click.option(
    "--steps", type=click.IntRange(2), default=32, show_default=True,
    help="Heun steps of a sampling run.",
)  # fmt: skip
@click.option(
    "--threads", type=click.IntRange(1), default=torch.get_num_threads(), help="CPU threads."
)
@name_option
def main(
    preset: str,
    divide: int,
    batch: int,
    families: list[str],
    precisions: list[str],
    stages: list[str],
    paths: list[str],
    steps: int,
    threads: int,
    name: str | None,
) -> None:
    """Measure on the GPU if there is one."""
    cells = [
        Cell(preset, divide, batch, family, precision, stage, path, steps)
        for stage in stages
        for precision in precisions
        for family in families
        for path in paths
    ]
    with one_sentence_errors():
        for cell in cells:
            configuration(cell)
    speeds = {name: alone(product_speeds, DTYPES[name], threads) for name in precisions}
    ceilings = {precision: max(of.values()) for precision, of in speeds.items()}
    print("products of large matrices, TFLOP/s:", json.dumps(speeds))
    rows: list[dict[str, Any]] = []
    for cell in cells:
        rows.append(alone(measure, cell, threads))
        print(f"{cell.stage} {cell.precision} {cell.family} {cell.path}:"
              f" {rows[-1]['seconds']:.3f} s", flush=True)  # fmt: skip
    print(show(rows, ceilings))
    if name is None:
        return
    with replacing(RESULTS / f"{name}-{device().type}.json") as path:
        record = {
            "threads": threads,
            "ceiling_tflop_per_second": ceilings,
            "products_tflop_per_second": speeds,
            "rows": rows,
            "environment": environment(),
        }
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
