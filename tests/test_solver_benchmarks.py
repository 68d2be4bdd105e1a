"""What the benchmarks of solvers measure and refuse, and that of scaling counts."""

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from helpers import gaussian
from torch import Tensor

from benchmarks import network, scaling, solver_cost, solver_quality
from degradation import Draws, Mask, MissingPatches, Problem
from networks import Denoiser, GaussianMixture, make_config, save_weights
from networks.flops import count_operations
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
    rows = solver_quality.rows(net, {"MissingPatches": MissingPatches()}, ["euler"], 4)
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


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where benchmarks write, with a trained network, one of images alone, and a prior."""
    for folder in ("benchmarks/results", "docs"):
        (tmp_path / folder).mkdir(parents=True)
    monkeypatch.setattr(solver_quality, "ROOT", tmp_path)
    monkeypatch.setattr(solver_cost, "RESULTS", tmp_path / "benchmarks/results")
    monkeypatch.setattr(solver_quality, "STEPS", (4, 8))
    for name, conditioning in (("net", "invfusion"), ("plain", "unconditional")):
        net = Denoiser(make_config("tiny", conditioning))
        save_weights(tmp_path / f"{name}.safetensors", net, {})
    save_weights(tmp_path / "mse.safetensors", Denoiser(make_config("tiny")), {"mse_train": True})
    prior = GaussianMixture.gaussian(torch.zeros(768), torch.eye(768), (3, 16, 16))
    save_weights(tmp_path / "prior.safetensors", prior, {})
    (tmp_path / "text.md").write_text("no weights")
    return tmp_path


def written(home: Path) -> list[str]:
    return sorted(p.name for p in home.rglob("*") if p.suffix in (".json", ".png"))


@pytest.mark.parametrize("name", [(), ("--name=mine",)])
def test_files_are_written_under_a_name_alone(home: Path, name: tuple[str, ...]) -> None:
    result = CliRunner().invoke(
        solver_quality.main,
        [f"--net={home}/net.safetensors", "--family=Box", "--images=2", "--sampler=ddnm", *name],
    )
    assert result.exit_code == 0, result.output
    assert result.output.count("ddnm") == 2
    result = CliRunner().invoke(
        solver_cost.main,
        ["--preset=tiny", "--batch=1", "--precision=fp32", "--solver=dpm", *name],
    )
    assert result.exit_code == 0, result.output
    device = "cuda" if torch.cuda.is_available() else "cpu"
    assert written(home) == ([f"mine-{device}.json", "mine.json", "mine.png"] if name else [])


def test_weights_are_kept_in_the_precision_that_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = []

    def rows(denoiser: Denoiser, *arguments: Any) -> list[dict[str, Any]]:
        seen.append({p.dtype for p in denoiser.parameters()})
        return []

    monkeypatch.setattr(solver_cost, "rows", rows)
    for precision in ("bf16", "fp32"):
        arguments = ["--preset=tiny", f"--precision={precision}", "--solver=dpm"]
        assert CliRunner().invoke(solver_cost.main, arguments).exit_code == 0
    assert torch.bfloat16 in seen[0] and seen[1] == {torch.float32}


@pytest.mark.parametrize(
    ("command", "arguments", "told"),
    [
        ("solver_quality", ["--net=nowhere"], "there is no weights file nowhere"),
        ("solver_quality", ["--net={home}/text.md"], "text.md is no safetensors file"),
        ("solver_quality", ["--net={home}/prior.safetensors"], "holds an analytic prior"),
        ("solver_quality", ["--net={home}/plain.safetensors"], "is an unconditional denoiser"),
        ("solver_quality", ["--net={home}/mse.safetensors"], "was trained for the one-step"),
        ("solver_quality", ["--net={home}/net.safetensors", "--family=Bax"], "is it Box"),
        ("solver_quality", ["--net={home}/net.safetensors", "--images=0"], "'--images'"),
        ("solver_quality", ["--net={home}/net.safetensors", "--name=a/b"], "'--name'"),
        ("solver_quality", ["--net=x", "--sampler=euler", "--sampler=euler"], "given twice"),
        ("solver_cost", ["--batch=0"], "'--batch'"),
        ("solver_cost", ["--name="], "'--name'"),
        ("network", ["--preset=nope"], "'--preset'"),
        ("network", ["--divide=0"], "'--divide'"),
        ("network", ["--divide=3"], "width 128 is no multiple of 12"),
        ("network", ["--batch=0"], "'--batch'"),
        ("network", ["--steps=1"], "'--steps'"),
        ("network", ["--threads=0"], "'--threads'"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(
    home: Path, command: str, arguments: list[str], told: str
) -> None:
    module = {"solver_quality": solver_quality, "solver_cost": solver_cost, "network": network}
    given = [argument.format(home=home) for argument in arguments]
    result = CliRunner().invoke(module[command].main, given)
    assert result.exit_code == 2, result.output
    assert told in result.stderr.splitlines()[-1]
    assert written(home) == []


def test_what_a_run_needs_is_counted_without_values():
    """Windows and tiles included; a backward pass is twice the arithmetic of a forward pass."""
    found = scaling.count("tiny", torch.float32)
    linear = count_operations(make_config("tiny")).linear / 1e9
    assert found["forward_gflop"] == pytest.approx(linear, rel=0.05)  # with what mixes features
    assert 2.5 < found["training_gflop"] / found["forward_gflop"] < 3.5
    assert found["mib_an_image"] > 0
