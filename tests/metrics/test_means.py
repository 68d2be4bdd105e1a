"""Means, their standard errors and their intervals by a bootstrap, of one method and of pairs."""

import math

import numpy as np
import pytest
import scipy.stats

from metrics.means import mean, paired_difference, resampled_means, summaries

PSNR = np.random.default_rng(1).normal(25, 3, 400)


def summary(values: list[float]) -> dict:
    return summaries({"a": values})["a"]


def test_a_summary_of_known_values():
    found = summary([1.0, 2.0, 3.0, 6.0])
    assert found["mean"] == 3.0
    assert found["standard_error"] == pytest.approx(math.sqrt(14 / 3) / 2)
    assert (found["count"], found["infinite"]) == (4, 0)
    assert 1 <= found["low"] < 3 < found["high"] <= 6


def test_exact_matches_are_left_out_and_counted():
    found = summary([20.0, math.inf, 30.0, math.inf, math.inf])
    assert found["mean"] == 25.0
    assert (found["count"], found["infinite"]) == (2, 3)
    assert summary([math.inf, math.inf])["mean"] == math.inf
    assert math.isnan(mean([]))


def test_failures_show_in_all_but_the_count():
    found = summary([1.0, math.nan, 3.0])
    assert all(math.isnan(found[name]) for name in ("mean", "standard_error", "low", "high"))
    assert found["count"] == 3


@pytest.mark.parametrize("values", [[7.0], [math.inf], [7.0, math.inf]])
def test_too_few_values_have_no_error(values):
    found = summary(values)
    assert all(math.isnan(found[name]) for name in ("standard_error", "low", "high"))
    assert found["count"] == sum(map(math.isfinite, values))


def test_intervals_are_those_of_scipy():
    found = summary(PSNR.tolist())
    expected = scipy.stats.bootstrap(
        (PSNR,), np.mean, n_resamples=20_000, method="percentile", rng=0
    ).confidence_interval
    assert (found["low"], found["high"]) == pytest.approx(expected, abs=0.03)
    width = 2 * 1.96 * found["standard_error"]
    assert found["high"] - found["low"] == pytest.approx(width, rel=0.05)


def test_columns_share_their_images_and_calls_their_seed():
    values = np.stack([PSNR, 2 * PSNR], 1)
    found = resampled_means(values)
    assert np.allclose(found[:, 1], 2 * found[:, 0], rtol=1e-12)
    assert np.array_equal(found, resampled_means(values))


def test_images_that_are_left_out_are_left_out_of_each_resample():
    values = np.concatenate([PSNR, np.full(400, np.inf)])
    found = summary(values.tolist())
    alone = summary(PSNR.tolist())
    assert found["mean"] == pytest.approx(alone["mean"])
    assert found["low"] == pytest.approx(alone["low"], abs=0.05)


def test_pairs_are_compared_image_by_image():
    better = PSNR + np.random.default_rng(2).normal(0.1, 0.3, 400)
    found = paired_difference(better.tolist(), PSNR.tolist())
    assert found.mean == pytest.approx((better - PSNR).mean())
    assert 0 < found.low < found.mean < found.high < 0.15  # ± 2 · 0.3 / √400
    alone = summary(better.tolist())
    assert found.high - found.low < (alone["high"] - alone["low"]) / 5
    back = paired_difference(PSNR.tolist(), better.tolist())
    assert (back.low, back.high) == pytest.approx((-found.high, -found.low))


def test_pairs_with_an_exact_match_are_left_out():
    found = paired_difference([1.0, math.inf, 5.0, math.inf], [0.0, 3.0, 2.0, math.inf])
    assert found.mean == 2.0 and (found.low, found.high) == (1.0, 3.0)
    assert math.isnan(paired_difference([math.inf], [1.0]).mean)
    assert math.isnan(paired_difference([math.nan, 1.0], [1.0, 1.0]).mean)
    with pytest.raises(ValueError, match="equally many"):
        paired_difference([1.0], [1.0, 2.0])
