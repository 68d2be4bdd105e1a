"""Speed against the plain reference path (`benchmarks.reference_path`), in the same run.

`python -m benchmarks.speed -h` lists the commands.

On the GPU if there is one; on a CPU under Linux. Tables are printed; `--name NAME` also writes
results/NAME.json.
"""

import contextlib
import math
import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch
import torch.nn.functional as F
from torch import Tensor

import zero_shot  # noqa: F401  makes its names known
from benchmarks.memory import products
from benchmarks.operator_sheet import families, structure_of
from benchmarks.reference_path import PlainMatrix, plain_layers, plain_operator
from benchmarks.report import CONTEXT, benchmark
from degradation import Draws, GaussianNoise, LinearOperator, Problem, get_family
from networks import PRESETS, Denoiser, NetworkConfig, cpu, make_config
from networks.dropout import seed_dropout
from networks.precision import DTYPES
from runtime.progress import each, seconds_now
from runtime.tables import table
from samplers import CountingDenoiser, make_sampler, sampler_names

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
FAMILIES = {  # with a structure
    "none": (get_family("MissingPatches"), None),  # a network that sees H†y alone
    "mask": (get_family("MissingPatches"), None),
    "matrix": (get_family("MatrixDegradation"), None),
    **{f"blur-{stride}": (get_family("MotionBlur"), stride) for stride in (2, 4, 8)},
}
PLAIN = ("MissingPatches", "MatrixDegradation", "MotionBlur")  # families with a plain form
SHAPE, BATCH, STACK = (3, 64, 64), 8, 32  # of operators
COMPARED = ("mask", "matrix", "blur-4")
PATHS = ("eager", "compiled", "plain")
SECONDS, REPEATS = 12.0, 8  # of one measurement, at most


def shortest(work: Callable[[], Any]) -> float:
    """Seconds of the fastest of several calls, after one that warms up."""
    times: list[float] = []
    while len(times) < 2 or (len(times) <= REPEATS and sum(times) < SECONDS):
        start = seconds_now(DEVICE)
        work()
        times.append(seconds_now(DEVICE) - start)
    return min(times[1:])


# ---- a network: forward pass and training step


def configuration(preset: str, divide: int, family: str) -> NetworkConfig:
    """The preset; where its widths are divided, with heads of half the channels."""
    config = make_config(preset, "blind" if family == "none" else "invfusion")
    halved = 1 if divide == 1 else 2
    levels = (
        replace(level, width=level.width // divide, d_head=level.d_head // halved)
        for level in config.levels
    )
    return replace(config, levels=tuple(levels))


def network_for(config: NetworkConfig) -> Denoiser:
    """With random weights; none is zero, because a zero branch has no effect."""
    torch.manual_seed(0)
    denoiser = Denoiser(config).to(DEVICE)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            if not parameter.any():
                parameter.normal_(0, 0.02)
    return denoiser


def workload(
    stage: str, denoiser: Denoiser, operator: LinearOperator, batch: int, dtype: torch.dtype
) -> Callable[[], Any]:
    """What is timed: a forward pass, or a step from the measurement to the optimiser."""
    clean = torch.randn(batch, *denoiser.config.image_shape, device=DEVICE)
    sigma, seeds = torch.full((batch,), 2.0, device=DEVICE), range(batch)
    autocast = torch.autocast(DEVICE.type, dtype, dtype != torch.float32)
    given = Problem(operator, operator.H(clean))
    optimizer = torch.optim.Adam(denoiser.parameters(), 1e-4, fused=True)

    def forward() -> None:
        with torch.no_grad(), autocast:
            denoiser(clean, sigma, given)

    def step() -> None:
        seed_dropout(denoiser, seeds)
        with autocast:
            problem = Problem(operator, operator.H(clean))
            estimate = denoiser(clean + 2 * torch.randn_like(clean), sigma, problem)
        (estimate - clean).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()

    denoiser.train(stage == "step").requires_grad_(stage == "step")
    return step if stage == "step" else forward


def measure(
    stage: str, family: str, path: str, preset: str, divide: int, batch: int, precision: str
) -> dict[str, Any]:
    """The values of a row of the table, measured in this process."""
    cpu.tune()
    config, (drawn, structure) = configuration(preset, divide, family), FAMILIES[family]
    operator = drawn.sample(config.image_shape, structure, range(batch), DEVICE)
    denoiser, compiling = network_for(config), None
    gflop = products(denoiser, operator) / batch / 1e9
    if path == "plain":
        operator = plain_operator(drawn, structure, operator, range(batch))
    elif stage == "forward":
        denoiser.cast_linear(DTYPES[precision])  # as commands do
    with plain_layers() if path == "plain" else contextlib.nullcontext():
        work = workload(stage, denoiser, operator, batch, DTYPES[precision])
        if path == "compiled":
            denoiser.compile()
            start = seconds_now(DEVICE)
            work()
            compiling = seconds_now(DEVICE) - start
        forget_peak()
        seconds = shortest(work)
    tflop = (3 if stage == "step" else 1) * batch * gflop / 1e3
    return {
        "seconds": seconds, "images_per_second": batch / seconds,
        "tflop_per_second": tflop / seconds, "gflop_an_image": gflop,
        "peak_mib": peak_memory(), "compile_seconds": compiling,
    }  # fmt: skip


def forget_peak() -> None:
    """Look for the peak of memory from here on: what a compiler needed does not count."""
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory() -> float:
    """MiB: of tensors on a GPU, of the whole process on a CPU."""
    if DEVICE.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    _, _, peak = Path("/proc/self/status").read_text().partition("VmHWM:")
    return int(peak.split()[0]) / 1024


def product_speeds(precision: str) -> dict[str, float]:
    """TFLOP/s of the product of two large matrices, by PyTorch ("matmul") and by oneDNN."""
    n = 8192 if DEVICE.type == "cuda" else 4096
    a, b = (torch.randn(n, n, device=DEVICE).to(DTYPES[precision]) for _ in range(2))
    ways = {"matmul": lambda: a @ b}
    if DEVICE.type == "cpu" and a.dtype == torch.float32:
        ways["onednn"] = lambda: cpu.multiply(a, b)
    return {name: 2 * n**3 / shortest(call) / 1e12 for name, call in ways.items()}


def alone(function: Callable[..., Any], *arguments: Any) -> Any:
    """The result of a function in a process of its own, whose peak of memory is its own too."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def compare(
    stage: str, families: Sequence[str], paths: Sequence[str], precision: str, **given: Any
) -> tuple[str, dict[str, Any]]:
    """Measure every family on every path; the ceiling is the faster of two large products."""
    speeds = alone(product_speeds, precision)
    given |= {"stage": stage, "precision": precision}
    cells = [given | {"family": family, "path": path} for family in families for path in paths]
    rows = [cell | alone(partial(measure, **cell)) for cell in each(cells, stage, "cells")]
    ceiling = max(speeds.values())
    plain = {row["family"]: row["seconds"] for row in rows if row["path"] == "plain"}
    lines = [
        [row["family"], row["path"], row["seconds"], row["images_per_second"],
         f"{100 * row['tflop_per_second'] / ceiling:.0f} %",
         plain[row["family"]] / row["seconds"] if plain else None,
         round(row["peak_mib"]), row["compile_seconds"]]
        for row in rows
    ]  # fmt: skip
    headers = ["operator", "path", "s", "images/s", "of the ceiling", "times plain", "peak MiB",
               "compiling, s"]  # fmt: skip
    record = {"products_tflop_per_second": {precision: speeds}, "rows": rows}
    return table(headers, lines), record


@torch.no_grad()
def operator_row(name: str, family: Any, x: Tensor, copy: float) -> dict[str, Any]:
    """H and H† of a stack of images `[B, K, C, h, w]` for each operator.

    copy: seconds of copying the stack; copies: those of both maps over those of two copies.
    """
    structure, batch = structure_of(family), len(x)
    ours = family.sample(SHAPE, structure, range(batch), DEVICE)
    y, plain = ours.H(x), None
    forward, inverse = shortest(lambda: ours.H(x)), shortest(lambda: ours.H_pinv(y))
    if name in PLAIN:
        other = plain_operator(family, structure, ours, range(batch))
        plain = 1e3 * shortest(lambda: other.H_pinv(other.H(x)))
    return {
        "family": name, "operator": type(ours).__name__, "structure": structure,
        "measurements": ours.rows.shape[1], "H_ms": 1e3 * forward, "H_pinv_ms": 1e3 * inverse,
        "copies": (forward + inverse) / copy / 2, "plain_ms": plain,
    }  # fmt: skip


@torch.no_grad()
def sampler_rows(
    denoiser: Denoiser, names: Sequence[str], family: str, batch: int, precision: str
) -> list[dict[str, Any]]:
    """A row for each sampler, at default options, on operators of one family: evaluations of an
    image, milliseconds of the network and of the sampler itself for each of them."""
    drawn, structure = FAMILIES[family]
    shape, dtype = denoiser.config.image_shape, DTYPES[precision]
    operator = drawn.sample(shape, structure, range(batch), DEVICE)
    draws = Draws(range(batch), DEVICE)
    problem = GaussianNoise(0.05).measure(operator, draws.normal(shape, "clean"), draws)
    x, given = draws.normal(shape, "noisy"), problem.unconditional()
    with torch.autocast(DEVICE.type, dtype, dtype != torch.float32):
        network = 1e3 * shortest(lambda: denoiser(x, 2.0, given))
    rows = []
    for name in each(names, family, "samplers"):
        draws = Draws(range(batch), DEVICE)
        noise = draws.normal(shape, "latent")
        free = CountingDenoiser(lambda x, sigma, given: 0.9 * x, batch)  # costs nothing
        start = seconds_now(DEVICE)
        make_sampler(name)(free, noise, problem, draws)
        own = 1e3 * (seconds_now(DEVICE) - start) / free.calls
        rows.append({
            "family": family, "sampler": name, "denoiser_ms": network, "evaluations": free.calls,
            "backward_passes": free.backward_passes, "sampler_ms": own, "share": own / network,
        })  # fmt: skip
    return rows


# ---- the commands


@click.group(context_settings=CONTEXT)
def main() -> None:
    """Speed against the plain reference path, in the same run."""


def comparison(function: Callable[..., Any]) -> click.Command:
    """A subcommand with the options of `compare`."""
    options = [
        click.option("--preset", type=click.Choice(list(PRESETS)), default="FFHQ64"),
        click.option("--divide", type=click.IntRange(1), default=1, help="Divide the widths."),
        click.option("--batch", type=click.IntRange(1), default=8),
        click.option("--precision", type=click.Choice(["fp32", "bf16"]), default="fp32"),
        click.option("--family", "families", type=click.Choice(list(FAMILIES)), multiple=True,
                     default=COMPARED, help="May be repeated."),
        click.option("--path", "paths", type=click.Choice(PATHS), multiple=True, default=PATHS,
                     help="May be repeated."),
    ]  # fmt: skip
    for option in reversed(options):
        function = option(function)
    return benchmark(main)(function)


@comparison
def network(**options: Any) -> Any:
    """A forward pass, eager, compiled and plain."""
    return compare("forward", **options)


@comparison
def training(**options: Any) -> Any:
    """A training step: measurement, both passes, optimiser."""
    return compare("step", **options)


@benchmark(main)
def operators() -> Any:
    """H and H† of 32 images of 64×64 for each of 8 operators, and the building of matrices."""
    x = torch.randn(BATCH, STACK, *SHAPE, device=DEVICE)
    copy = shortest(x.clone)
    rows = [operator_row(*named, x, copy) for named in families().items()]
    matrix = F.normalize(torch.randn(BATCH, 128, math.prod(SHAPE), device=DEVICE), dim=-1)
    matrices = get_family("MatrixDegradation")
    building = {  # drawn and factorised; plain, one that is drawn already
        "plain_ms": 1e3 * shortest(lambda: PlainMatrix(matrix, SHAPE)),
        "ms": 1e3 * shortest(lambda: matrices.sample(SHAPE, None, range(BATCH), DEVICE)),
    }
    cells = [
        [r["family"], r["structure"], r["measurements"], r["H_ms"], r["H_pinv_ms"], r["copies"],
         r["plain_ms"] and r["plain_ms"] / (r["H_ms"] + r["H_pinv_ms"])]
        for r in rows
    ]  # fmt: skip
    cells.append(["building matrices", *[None] * 5, building["plain_ms"] / building["ms"]])
    headers = ["family", "structure", "M", "H, ms", "H†, ms", "time of a copy each way",
               "times plain"]  # fmt: skip
    record = {"stack": [BATCH, STACK, *SHAPE], "runs": rows, "building": building}
    return table(headers, cells), record


@benchmark(main)
@click.option("--preset", type=click.Choice(list(PRESETS)), default="FFHQ64")
@click.option("--batch", type=click.IntRange(1), default=4, help="Images restored at once.")
@click.option("--precision", type=click.Choice(list(DTYPES)), default="bf16")
@click.option("--sampler", "names", type=click.Choice(sampler_names("denoising")), multiple=True)
def samplers(preset: str, batch: int, precision: str, names: Sequence[str]) -> Any:
    """Evaluations of a sampler, and its own time beside that of an unconditional network."""
    cpu.tune()
    denoiser = Denoiser(make_config(preset, "unconditional")).to(DEVICE)
    denoiser.eval().requires_grad_(False).cast_linear(DTYPES[precision])
    wanted, rows = names or sampler_names("denoising"), []
    for family in COMPARED:
        rows += sampler_rows(denoiser, wanted, family, batch, precision)
    cells = [
        [r["sampler"], r["family"], r["evaluations"], r["denoiser_ms"], r["sampler_ms"],
         f"{100 * r['share']:.1f} %"]
        for r in rows
    ]  # fmt: skip
    headers = ["sampler", "operator", "NFE", "network, ms", "sampler, ms an NFE", "share"]
    record = {"preset": preset, "batch": batch, "precision": precision, "rows": rows}
    return table(headers, cells), record


if __name__ == "__main__":
    main()
