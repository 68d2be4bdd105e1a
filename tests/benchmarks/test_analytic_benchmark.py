"""What `benchmarks/posterior.py` measures, on samples whose errors are known."""

import math

import pytest
import torch
from helpers import gaussian

from benchmarks.posterior import (
    FLOOR,
    Run,
    exact_run,
    image_errors,
    image_problems,
    image_sampler,
    interval,
    mixture_rows,
    solve,
)
from networks import GaussianMixture, posterior

SHAPE = (3, 8, 8)


@pytest.fixture(scope="module")
def exact() -> GaussianMixture:
    root = gaussian(1, 192, 192) / 14
    prior = GaussianMixture.from_covariances([1.0], gaussian(1, 192, seed=1), root @ root.mT, SHAPE)
    return posterior(prior, image_problems(prior, 0.1, ["MissingPatches"])["MissingPatches"])


def test_exact_samples_have_no_errors(exact):
    errors = image_errors(exact_run(exact, 4000, "test"), exact)
    assert errors["mean"] == pytest.approx(1 / math.sqrt(4000), rel=0.3)
    assert errors["psnr_loss"] < 0.01 and errors["covariance"] < 0.3
    assert errors["spread"] == pytest.approx(1, abs=0.01)
    for level in (50, 90, 95):
        assert errors[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.01)


def test_errors_are_those_that_were_made(exact):
    x, mean = exact_run(exact, 4000, "test").x, exact.mean()
    narrow = image_errors(Run(mean + (x - mean) / 2, 0, 0, 0.0), exact)
    assert narrow["spread"] == pytest.approx(0.5, abs=0.01)
    assert narrow["covariance"] == pytest.approx(0.75, abs=0.03)
    covered = math.erf(1.6449 / 2 / math.sqrt(2))  # by half the interval of 90 %
    assert narrow["coverage_90"] == pytest.approx(covered, abs=0.01)
    trace = float(exact.covariance()[0].trace())
    moved = image_errors(Run(x + math.sqrt(trace / 192), 0, 0, 0.0), exact)
    assert moved["mean"] == pytest.approx(1, abs=0.05)
    assert moved["psnr_loss"] == pytest.approx(10 * math.log10(2), abs=0.2)


def test_an_oracle_reaches_the_floor_and_counts_its_evaluations():
    rows = {row["sampler"]: row for row in mixture_rows(8, 2, 400, ["heun", "ddrm"])}
    distance = {name: row["sliced_wasserstein"][2]["mean"] for name, row in rows.items()}
    assert distance["heun"] < 2 * distance[FLOOR] < 0.2 * distance["ddrm"] < distance["prior"]
    assert rows["heun"]["evaluations"] == 63 and rows["ddrm"]["evaluations"] == 25
    assert rows["heun"]["sliced_wasserstein"][4]["count"] == 2


def test_zero_shot_samplers_get_the_denoiser_of_the_prior(exact):
    prior = GaussianMixture.gaussian(torch.zeros(192), torch.eye(192), SHAPE)
    problem = image_problems(prior, 0.1, ["MissingPatches"])["MissingPatches"]
    for name, expected in (("heun", "exact"), ("ddnm", "prior")):
        asked = set()
        known = {
            "prior": lambda *args, asked=asked: asked.add("prior") or prior(*args),
            "exact": lambda *args, asked=asked: asked.add("exact") or exact(*args),
        }
        solve(image_sampler(name), known["prior"], known["exact"], problem, 4)
        assert asked == {expected}


def test_families_that_do_not_fit_are_left_out(capsys):
    prior = GaussianMixture.gaussian(torch.zeros(192), torch.eye(192), SHAPE)
    found = image_problems(prior, 0.0, [])
    assert {"MissingPatches", "MotionBlur", "Hadamard", "Colourisation"} <= set(found)
    assert not {"NoDegradation", "RandomDegradation", "FixedMask"} & set(found)
    assert "FixedMask" in capsys.readouterr().out


def test_the_interval_is_that_of_student():
    found = interval([1.0, 2.0, 3.0, 6.0])  # deviation √(14/3), and 3.182 for 3 degrees of freedom
    assert found["mean"] == 3.0 and found["count"] == 4
    assert found["half_width"] == pytest.approx(3.1824 * math.sqrt(14 / 3) / 2, rel=1e-4)
