"""What `benchmarks/solver_cost.py` and `benchmarks/solver_quality.py` measure."""

from typing import Any

import pytest
import torch
from helpers import gaussian
from torch import Tensor

from benchmarks import solver_cost, solver_quality
from degradation import Draws, Mask, Problem
from networks import Denoiser, make_config
from samplers import CountingDenoiser, make_solver, solver_names

SHAPE = (3, 4, 4)


class Time:
    """Seconds that pass where a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self, device: torch.device) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(solver_cost, "seconds_now", clock)
    return clock


class Halve(torch.autograd.Function):
    """x/2, which takes 3 seconds, and 5 on the way back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, time: Time) -> Tensor:
        ctx.time = time
        time.now += 3
        return x / 2

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        ctx.time.now += 5
        return gradient / 2, None


class SlowMask(Mask):
    """Which takes a tenth of a second to measure."""

    time: Time

    def H(self, x: Tensor) -> Tensor:
        self.time.now += 0.1
        return super().H(x)


@pytest.mark.parametrize(
    ("name", "evaluations", "backward_passes", "seconds"),
    [("ddnm", 2, 0, 3), ("dps", 2, 2, 8), ("mcgdiff", 5, 0, 3), ("mgps", 4, 2, 5.5)],
)
def test_clocks_part_the_solver_from_its_denoiser(
    time: Time, name: str, evaluations: int, backward_passes: int, seconds: float
) -> None:
    op = SlowMask((gaussian(2, 1, 4, 4) > 0).float(), SHAPE)
    op.time = time
    problem = Problem(op, gaussian(2, 48, dtype=torch.float32), 0.1)
    solver = solver_cost.cases([name])[name]
    row = solver_cost.measure(
        solver, lambda x, sigma, given: Halve.apply(x, time), problem, torch.float32
    )
    count = {"mcgdiff": 3}.get(name, evaluations)  # its particles are evaluated together
    assert (row["evaluations"], row["backward_passes"]) == (evaluations, backward_passes)
    assert row["denoiser_ms"] == pytest.approx(1e3 * seconds * count / evaluations)
    measured = {"ddnm": 2, "dps": 2, "mcgdiff": 0, "mgps": 2}[name]
    assert row["solver_ms"] == pytest.approx(100 * measured / evaluations)
    assert row["share"] == pytest.approx(row["solver_ms"] / row["denoiser_ms"])


def test_every_solver_has_a_short_run() -> None:
    net = Denoiser(make_config("tiny", "unconditional")).eval().requires_grad_(False)
    solvers = solver_cost.cases(solver_names())
    rows = solver_cost.rows(net, solvers, 2, torch.bfloat16)
    assert {row["family"] for row in rows} == set(solver_cost.FAMILIES)
    assert {row["solver"] for row in rows} == {*solver_names(), "daps, inner=exact"}
    assert all(1 <= row["evaluations"] <= 20 for row in rows)
    assert solver_cost.cost_table(rows).count("%") == len(rows)


def test_samplers_take_about_the_evaluations_that_are_asked_for() -> None:
    op = Mask((gaussian(1, 1, 4, 4) > 0).float(), SHAPE)
    problem = Problem(op, op.H(gaussian(1, *SHAPE, dtype=torch.float32)))
    for name in solver_quality.SAMPLERS:
        for steps in solver_quality.steps_of(name)[:2]:
            counter = CountingDenoiser(lambda x, sigma, given: x / 2)
            noise = gaussian(1, *SHAPE, dtype=torch.float32)
            solver_quality.solver_of(name, steps)(counter, noise, problem, Draws([0]))
            assert counter.calls in (steps - 1, steps)
    assert make_solver("heun", {"num_steps": "8"}) == solver_quality.solver_of("heun", 16)


def test_quality_of_a_network(tmp_path) -> None:
    net = Denoiser(make_config("tiny")).eval().requires_grad_(False)
    rows = solver_quality.rows(net, ["MissingPatches"], ["euler"], 4)
    assert [row["evaluations"] for row in rows] == [1, *solver_quality.STEPS]
    assert all(row["psnr"] > 0 and row["detail"] >= 0 for row in rows)
    assert solver_quality.quality_table(rows).count("MissingPatches") == len(rows)
    solver_quality.draw(tmp_path / "quality.png", rows)
    assert (tmp_path / "quality.png").stat().st_size > 5000


def test_detail_is_relative_to_the_photos() -> None:
    x = torch.randint(0, 255, (2, 3, 8, 8), dtype=torch.uint8)
    assert solver_quality.edges(x[:, :, :, :1] + 0 * x) < solver_quality.edges(x)
    assert solver_quality.edges(torch.full_like(x, 7)) == 0
    step = torch.zeros(1, 1, 2, 2)
    step[..., 1] = 3
    assert solver_quality.edges(step) == 6
