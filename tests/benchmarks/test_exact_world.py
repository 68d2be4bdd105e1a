"""The benchmark of trained networks in a world whose posteriors are known, at a tiny size."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from exact_gaussian import Generator

from benchmarks import exact_world, report
from networks import Denoiser, posterior, posterior_mean
from samplers import DPM


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "docs").mkdir()
    monkeypatch.setattr(report, "DOCS", tmp_path / "docs")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(exact_world, "CROPS", 400)
    monkeypatch.setattr(exact_world, "ZERO_SHOT", ("ddrm",))
    monkeypatch.setattr(exact_world, "FAMILIES", ("MissingPatches", "Box"))
    monkeypatch.setattr(exact_world, "SETTINGS", replace(exact_world.SETTINGS, batch=4))
    return tmp_path


@pytest.mark.drawn
def test_rows_table_and_picture(small: Path) -> None:
    options = ["--images=64", "--problems=1", "--samples=4", "--way=EPS", "--name=n"]
    options += ["--steps=3", "--eta=1"]
    result = CliRunner().invoke(exact_world.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    record = json.loads((small / "n.json").read_text())
    assert (record["steps"], record["eta"]) == (3, 1)
    rows = record["rows"]
    found = {(row["method"], row["images"]) for row in rows}
    assert found == {("exact samples", 0), ("ddrm", 0), ("EPS", 4), ("EPS", 16), ("EPS", 64)}
    assert len(rows) == 2 * len(found)
    assert all(row["sliced_wasserstein"] > 0 for row in rows)
    assert (small / "docs" / "n.png").is_file()


def test_samples_are_those_of_the_prior() -> None:
    torch.manual_seed(0)
    prior = exact_world.fit_mixture(torch.rand(300, 3, 8, 8).double() * 4 - 2, 2)
    samples = exact_world.prior_samples(prior, 1500)
    images = samples.tensors[0].double().flatten(1)
    assert (images.abs() > 1).any()  # not clipped to the range of pictures
    error = images.mean(0) - prior.sample(exact_world.Draws(list(range(1500)))).flatten(1).mean(0)
    assert error.abs().max() < 5 * (2 / 1500) ** 0.5 * images.std(0).max()
    directions = torch.linalg.eigh(prior.covariance()[0]).eigenvectors[:, -5:]
    wanted = directions.T @ prior.covariance()[0] @ directions
    found = (images @ directions).T.cov()
    assert (found - wanted).abs().max() < 0.2 * wanted.max()  # 5 standard deviations
    few = exact_world.prior_samples(prior, 3)
    assert torch.equal(few[2][0], samples[2][0]) and few[2][1] == -1


def test_ways_differ_in_two_switches() -> None:
    ways = {name: exact_world.network(name, 8, 4).config for name in exact_world.WAYS}
    switches = {n: (c.levels[0].joint, c.fused) for n, c in ways.items()}
    assert switches == exact_world.WAYS
    plain = {replace(c, fused=False, levels=ways["Palette"].levels) for c in ways.values()}
    assert len(plain) == 1


def test_the_exact_denoiser_reaches_the_floor(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is measured of a network is near nothing for the exact conditional denoiser."""
    torch.manual_seed(0)
    prior = exact_world.fit_gaussian(torch.rand(300, 3, 8, 8).double() * 2 - 1)
    ((_, problem), *_) = exact_world.problems_of(prior, 1)
    exact = posterior(prior, problem)

    class Oracle(Denoiser):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def prepare(self, problem: object) -> object:
            return problem

        def forward(self, x: torch.Tensor, sigma: float, problem: object, *_: object):
            return exact(x.double(), sigma, problem).float()

    monkeypatch.setattr("benchmarks.posterior.Draws", lambda seeds: _Noise(len(seeds)))
    run, mmse = exact_world.sampled(Oracle(), DPM(), problem, 200)
    monkeypatch.undo()
    errors = exact_world.errors_of(run, exact)
    floor = exact_world.errors_of(exact_world.exact_run(exact, 200, "floor"), exact)
    assert errors["sliced_wasserstein"] < 1.3 * floor["sliced_wasserstein"]
    assert (mmse - posterior_mean(prior, problem)).abs().max() < 0.02


class _Noise(Generator):
    def __init__(self, count: int):
        super().__init__()
        self.count = count

    def normal(self, shape: tuple[int, ...], stream: str) -> torch.Tensor:
        return torch.randn(self.count, *shape, generator=self.generator)
