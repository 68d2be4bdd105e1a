"""What each solver takes beside its denoiser: time of an evaluation, share of the denoiser's.

    python -m benchmarks.solver_cost --name solver-cost

A network of a preset with random weights stands for the unconditional denoiser of zero-shot
solvers. Clocks around it, and around the way back through it where a solver differentiates,
leave what the solver does itself: operators, draws, moves. Prints a table, writes
results/NAME-<device>.json.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor
from tqdm import tqdm

import zero_shot  # noqa: F401  makes its names known
from benchmarks.naming import name_option
from degradation import (
    Draws,
    Family,
    GaussianNoise,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    Problem,
)
from metrics.evaluate import seconds_now
from networks import Denoiser, make_config
from networks.precision import DTYPES
from networks.presets import PRESETS
from runtime.allocation import keep_memory
from runtime.environment import environment
from runtime.files import plain, replacing
from runtime.tables import table
from samplers import CountingDenoiser, Solver, make_solver, solver_names

RESULTS = Path(__file__).parent / "results"
FAMILIES: dict[str, tuple[Family, Any]] = {
    "mask": (MissingPatches(), None),
    "random matrix": (MatrixDegradation(), None),
    "blur, stride 4": (MotionBlur(), 4),
}
REPEATS = 2

# So few steps that a run is short. `daps` has five evaluations to a Langevin run of 100 steps, as
# by default; `daps` with inner=exact and `pnpdm` fewer to an exact step than by default, so their
# shares are larger here.
STEPS: dict[str, dict[str, str]] = {
    "mmse": {},
    "mgps": {"num_steps": "4"},
    "pnpdm": {"num_steps": "4", "iterations": "2"},
    "mcgdiff": {"num_steps": "3", "particles": "2"},
}
FEW = {"num_steps": "2"}
EXACT = {"inner": "exact", "ode_steps": "2"}


class Clocked:
    """Takes the time of a denoiser, and of the way back through it."""

    def __init__(self, denoiser: Denoiser, device: torch.device):
        self.denoiser, self.device = denoiser, device
        self.seconds = 0.0

    def __call__(self, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        start = seconds_now(self.device)
        estimate = self.denoiser(x, sigma, problem)
        self.seconds += seconds_now(self.device) - start
        if estimate.requires_grad:
            estimate.register_hook(lambda gradient: self._turn(-1))
            x.register_hook(lambda gradient: self._turn(1))
        return estimate

    def _turn(self, sign: int) -> None:
        """The way back begins (-1) or ends (1)."""
        self.seconds += sign * seconds_now(self.device)


def cases(names: Sequence[str]) -> dict[str, Solver]:
    """Solvers of few steps by title, `daps` with both of its inner steps."""
    found = {}
    for name in names:
        options = STEPS.get(name, FEW)
        found[name] = make_solver(name, options)
        if name == "daps":
            found["daps, inner=exact"] = make_solver(name, options | EXACT)
    return found


def measure(
    solver: Solver, denoiser: Denoiser, problem: Problem, precision: torch.dtype
) -> dict[str, Any]:
    """One run: evaluations, milliseconds of the denoiser and of the solver for each of them."""
    device = problem.y.device
    draws = Draws(range(len(problem)), device)
    noise = draws.normal(problem.degradation.image_shape, "latent")
    clock = Clocked(denoiser, device)
    counter = CountingDenoiser(clock, len(problem))
    start = seconds_now(device)
    with torch.no_grad(), torch.autocast(device.type, precision, precision != torch.float32):
        solver(counter, noise, problem, draws)
    other = seconds_now(device) - start - clock.seconds
    return {
        "evaluations": counter.calls, "backward_passes": counter.backward_passes,
        "denoiser_ms": 1e3 * clock.seconds / counter.calls,
        "solver_ms": 1e3 * other / counter.calls, "share": other / clock.seconds,
    }  # fmt: skip


def rows(
    denoiser: Denoiser, solvers: Mapping[str, Solver], batch: int, precision: torch.dtype
) -> list[dict[str, Any]]:
    """A row for each solver and family, the shorter of two runs, after one that warms up."""
    device = next(denoiser.parameters()).device
    shape, found = denoiser.config.image_shape, []
    for family, (drawn, structure) in FAMILIES.items():
        operator = drawn.sample(shape, structure, range(batch), device)
        draws = Draws(range(batch), device)
        clean = draws.normal(shape, "clean")
        problem = GaussianNoise(0.05).measure(operator, clean, draws)
        for name, solver in tqdm(solvers.items(), family):
            if not found:
                measure(solver, denoiser, problem, precision)
            runs = [measure(solver, denoiser, problem, precision) for _ in range(REPEATS)]
            best = min(runs, key=lambda run: run["denoiser_ms"] + run["solver_ms"])
            found.append({"family": family, "solver": name, **best})
    return found


def cost_table(rows: Iterable[Mapping[str, Any]]) -> str:
    """Milliseconds of an evaluation that are the solver's, and their share of the denoiser's."""
    by_solver: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_solver.setdefault(row["solver"], []).append(row)
    cells = []
    for name, own in by_solver.items():
        denoiser = sum(row["denoiser_ms"] for row in own) / len(own)
        shares = (f"{row['solver_ms']:.1f} ms, {100 * row['share']:.1f} %" for row in own)
        cells.append([name, f"{denoiser:.0f} ms", *shares])
    return table(["solver", "denoiser", *FAMILIES], cells)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--preset", type=click.Choice(list(PRESETS)), default="FFHQ64")
@click.option("--batch", type=click.IntRange(1), default=4, help="Images restored at once.")
@click.option("--precision", type=click.Choice(list(DTYPES)), default="bf16")
@click.option(
    "--solver", "names", type=click.Choice(solver_names()), multiple=True,
    help="Only these; may be repeated.",
)  # fmt: skip
@name_option
def main(preset: str, batch: int, precision: str, names: Sequence[str], name: str | None) -> None:
    """Time that solvers take beside their denoiser; on the GPU if there is one."""
    keep_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    torch.manual_seed(0)
    denoiser = Denoiser(make_config(preset, "unconditional")).to(device)
    denoiser.eval().requires_grad_(False)
    denoiser.cast_linear(DTYPES[precision])  # as commands do
    solvers = cases(names or solver_names())
    found = rows(denoiser, solvers, batch, DTYPES[precision])
    print(cost_table(found))
    if name is None:
        return
    record = {
        "preset": preset, "batch": batch, "precision": precision, "rows": found,
        "options": {name: asdict(solver) for name, solver in solvers.items()},  # type: ignore
        "threads": torch.get_num_threads(), "environment": environment(),
    }  # fmt: skip
    with replacing(RESULTS / f"{name}-{device.type}.json") as path:
        path.write_text(json.dumps(plain(record), indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
