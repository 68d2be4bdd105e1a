"""Zero-shot samplers against recorded runs of an independent implementation.

What they check is also checked by the originals' equations, in `test_zero_shot_originals.py`."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from exact_gaussian import Replay, recorded_denoiser
from torch import Tensor
from zero_shot_cases import each_level

from degradation import DenseMatrix, LinearOperator, Mask, NullOperator, Problem
from zero_shot import DDNM, DDRM, DPS, PiGDM


class Recorded:
    """The recorded runs, with their denoiser."""

    def __init__(self, records: dict[str, Any]):
        self.records, meta = records, records["meta"]
        self.denoiser = recorded_denoiser(meta)
        self.noise, self.bank = meta["noise"], records["bank"]

    def problem(self, family: str, noise_level: float) -> Problem:
        entry = self.records["degradations"][family]
        y = (entry["y_noisy0_1"] if noise_level else entry["y"])[:, 0]
        op: LinearOperator
        if family == "matrix":
            op = DenseMatrix(entry["tensors"]["deg_matrix"], (3, 8, 8))
        elif family == "none":
            op, y = NullOperator(2, (3, 8, 8)), 0 * y[:, :1]
        else:
            op = Mask(entry["tensors"]["deg_mask"][:, 0], (3, 8, 8))
        return Problem(op, y, noise_level)

    def out(self, sampler: str, family: str, noise_level: float) -> Tensor:
        run = self.records["runs"][f"{sampler}/{family}/noise{noise_level}"]
        assert run["num_steps"] == 20
        return run["out"]


@pytest.fixture
def recorded(golden: Callable[[str], Any]) -> Recorded:
    return Recorded(golden("samplers"))


each_family = pytest.mark.parametrize("family", ["matrix", "patches", "box", "none"])


def near(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)


@each_family
@each_level
def test_ddnm_replays_the_recorded_runs(recorded, family, noise_level):
    problem, rng = recorded.problem(family, noise_level), Replay(recorded.bank)
    theirs = recorded.out("project", family, noise_level)
    near(DDNM(20, released=True)(recorded.denoiser, recorded.noise, problem, rng), theirs)
    assert rng.calls == 20
    ours = DDNM(20)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    assert (ours - theirs).abs().max() > 0.05  # its noise has the whole variance


class TwoDraws:
    """Draws of the recorded DDRM runs: the second of every step, negative, in the range of Hᵀ."""

    def __init__(self, bank: Tensor, op: LinearOperator):
        self.bank, self.op, self.calls = bank, op, 0

    def randn_like(self, x: Tensor) -> Tensor:
        free, seen = self.bank[self.calls], -self.bank[self.calls + 1]
        self.calls += 2
        return free + self.op.V(self.op.Vt(seen - free))


@each_family
def test_ddrm_replays_the_recorded_runs(recorded, family):
    problem = recorded.problem(family, 0.0)
    rng = TwoDraws(recorded.bank, problem.degradation)
    out = DDRM(20)(recorded.denoiser, recorded.noise, problem, rng)
    near(out, recorded.out("ddrm", family, 0.0))
    assert rng.calls == 40


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
def test_ddrm_with_noise_keeps_what_is_measured(recorded, family):
    """The recorded runs end on zero in the measured directions; ours near y."""
    problem, op = recorded.problem(family, 0.1), recorded.problem(family, 0.1).degradation
    theirs = recorded.out("ddrm", family, 0.1)
    rng = TwoDraws(recorded.bank, op)
    ours = DDRM(20)(recorded.denoiser, recorded.noise, problem, rng)
    assert op.Vt(theirs).abs().max() < 1e-5
    error = (problem.residual(ours).square().sum() / op.rows.sum()).sqrt()
    assert 0.01 < error < 0.25  # the level of the noise is 0.1
    assert op.Vt(ours).abs().max() > 0.5


@each_family
def test_pigdm_replays_the_recorded_runs(recorded, family):
    problem = recorded.problem(family, 0.0)
    out = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    near(out, recorded.out("pigdm", family, 0.0))


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
def test_pigdm_with_noise_replays_without_our_variance(recorded, family):
    """There H†y/(1 + σₙ²), whatever the noise level of x; here H† is regularised by σₙ/r."""
    problem = recorded.problem(family, 0.1)
    theirs = recorded.out("pigdm", family, 0.1)
    ours = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    assert (ours - theirs).abs().max() > 0.05
    op, plain = problem.degradation, problem.degradation.H_pinv
    op.H_pinv = lambda y, level=0.0: plain(y) / (1 + 0.1**2)
    out = PiGDM(20, eta=0)(recorded.denoiser, recorded.noise, problem, Replay(recorded.bank))
    near(out, theirs)


class AllRows:
    """An operator whose rows are all said to exist."""

    @property
    def rows(self) -> Tensor:
        return torch.ones(len(self), 1, dtype=torch.bool)  # type: ignore[arg-type]


class AllRowsOfMask(AllRows, Mask):
    pass


class AllRowsOfMatrix(AllRows, DenseMatrix):
    pass


@pytest.mark.parametrize("family", ["matrix", "patches", "box"])
@each_level
def test_dps_replays_the_recorded_runs_as_one_image(recorded, family, noise_level):
    """There the norm is that of the batch, and of rows that do not exist, which have noise too:
    here the batch is one image of six channels, and all rows exist."""
    problem = recorded.problem(family, noise_level)
    op: LinearOperator = problem.degradation
    if isinstance(op, Mask):
        op = AllRowsOfMask(op.mask.expand(2, 3, 8, 8).reshape(1, 6, 8, 8), (6, 8, 8))
    else:
        rows = recorded.records["degradations"][family]["tensors"]["deg_matrix"]
        op = AllRowsOfMatrix(torch.block_diag(*rows)[None], (6, 8, 8))

    def denoiser(x, sigma, given):
        return recorded.denoiser(x.view(2, 3, 8, 8), sigma, given).view(x.shape)

    one = Problem(op, problem.y.reshape(1, -1), noise_level)
    rng = Replay(recorded.bank.view(-1, 1, 6, 8, 8))
    out = DPS(20, released=True)(denoiser, recorded.noise.view(1, 6, 8, 8), one, rng)
    near(out.view(2, 3, 8, 8), recorded.out("dps", family, noise_level))
