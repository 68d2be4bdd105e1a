"""Counter-based random numbers: the published generator, independence of the batch, and laws."""

import math

import numpy as np
import pytest
import scipy.stats
import torch

from degradation import Draws, derive_seed, randomness
from degradation.randomness import philox

P_VALUE = 1e-3  # the seeds are fixed, so a pass stays a pass; a wrong law gives far below 1e-9


def follows(sample, distribution) -> bool:
    return scipy.stats.kstest(np.asarray(sample.flatten()), distribution).pvalue > P_VALUE


def words(text: str) -> list[torch.Tensor]:
    return [torch.tensor(int(word, 16)) for word in text.split()]


# The generator


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ("0 0 0 0", "0 0", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox_gives_the_published_vectors(counter, key, expected):
    assert philox(words(counter), words(key)) == words(expected)


def python_philox(counter, key):
    """Philox-4x32-10 in Python's unbounded integers."""
    c0, c1, c2, c3 = counter
    for i in range(10):
        k0, k1 = (key[0] + i * 0x9E3779B9) % 2**32, (key[1] + i * 0xBB67AE85) % 2**32
        p0, p1 = c0 * 0xD2511F53, c2 * 0xCD9E8D57
        c0, c1, c2, c3 = p1 >> 32 ^ c1 ^ k0, p1 % 2**32, p0 >> 32 ^ c3 ^ k1, p0 % 2**32
    return [c0, c1, c2, c3]


def test_philox_in_tensors_is_philox_in_unbounded_integers():
    generator = torch.Generator().manual_seed(0)
    state = torch.randint(2**32, (300, 6), generator=generator)
    result = torch.stack(philox(state[:, :4].unbind(1), state[:, 4:].unbind(1)), 1)
    assert result.tolist() == [python_philox(row[:4], row[4:]) for row in state.tolist()]


def test_numbers_are_the_same_in_every_version_of_the_project():
    draws = Draws([0, 123456789012345])
    uniform = [[3488473, 5011099, 15983971], [6943987, 10134859, 2234569]]
    normal = [[-0.5337284, 1.6900440, 0.0491834], [-1.0542012, -0.8080540, -1.1528481]]
    assert (draws.uniform((3,), "pinned") * 2**24).tolist() == uniform
    torch.testing.assert_close(
        draws.normal((3,), "pinned"), torch.tensor(normal), rtol=0, atol=2e-6
    )


# What a number depends on


@pytest.mark.parametrize("kind", ["uniform", "normal"])
@pytest.mark.parametrize("count", [1, 2, 3, 5, 4096, 150_001])
def test_a_longer_shape_extends_a_shorter_one(kind, count):
    # Long draws are made in blocks whose size depends on the batch.
    draws = Draws([3, 4, 5])
    long = getattr(draws, kind)((200_000,), "a")
    assert torch.equal(getattr(draws, kind)((count,), "a"), long[:, :count])
    assert torch.equal(getattr(draws, kind)((count, 1, 1), "a").flatten(1), long[:, :count])


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_blocks_of_a_long_draw_join_without_a_seam(kind):
    # Three seeds take two blocks, one seed takes one.
    batch = getattr(Draws([3, 4, 5]), kind)((200_000,), "a")
    alone = getattr(Draws([4]), kind)((200_000,), "a")
    torch.testing.assert_close(alone[0], batch[1], rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_numbers_depend_on_their_own_seed_alone(kind):
    seeds = [derive_seed("seeds", i) for i in range(40)]
    batch = getattr(Draws(seeds), kind)((3, 5, 7), "a")
    assert batch.shape == (40, 3, 5, 7)
    assert batch.dtype == torch.float32
    torch.testing.assert_close(getattr(Draws(seeds[::-1]), kind)((3, 5, 7), "a").flip(0), batch)
    for i in (0, 7, 39):
        torch.testing.assert_close(
            getattr(Draws(seeds[i : i + 1]), kind)((3, 5, 7), "a")[0], batch[i]
        )


def test_seeds_may_be_any_iterable_of_integers():
    expected = Draws([4, 5, 6]).normal((4,), "a")
    for seeds in (range(4, 7), (4, 5, 6), torch.tensor([4, 5, 6]), np.arange(4, 7)):
        assert len(Draws(seeds)) == 3
        assert torch.equal(Draws(seeds).normal((4,), "a"), expected)


def test_empty_shapes():
    assert Draws([1, 2]).normal((), "a").shape == (2,)
    assert Draws([1, 2]).normal((3, 0), "a").shape == (2, 3, 0)
    assert Draws([]).normal((3,), "a").shape == (0, 3)


def test_all_bits_of_a_seed_matter():
    seeds = [0, *(1 << bit for bit in range(63)), (1 << 63) - 1]
    assert len(Draws(seeds).uniform((2,), "a").unique(dim=0)) == len(seeds)


@pytest.mark.parametrize("kind", ["uniform", "normal"])
def test_streams_differ(kind):
    draws = Draws([0])
    values = torch.cat([getattr(draws, kind)((4000,), name) for name in ("a", "b", "ab", "a/1")])
    correlation = torch.corrcoef(values) - torch.eye(4)
    assert correlation.abs().max() < 5 / math.sqrt(4000)


@pytest.mark.parametrize("power", [1, 2])  # squares: Box-Muller pairs share a radius
def test_neighbouring_seeds_are_uncorrelated(power):
    values = Draws(range(150)).normal((2000,), "a").pow(power)
    correlation = torch.corrcoef(values) - torch.eye(150)
    assert correlation.abs().max() < 6 / math.sqrt(2000)
    assert abs(correlation.sum() / 150) < 5 / math.sqrt(2000)  # 150 * 149 correlations


@pytest.mark.parametrize("power", [1, 2])
def test_neighbouring_positions_are_uncorrelated(power):
    values = Draws([11]).normal((200_000,), "a")[0].pow(power)
    values = (values - values.mean()) / values.std()
    for lag in (1, 2, 3, 4, 5, 8, 64):
        assert abs((values[lag:] * values[:-lag]).mean()) < 4.5 / math.sqrt(200_000), lag


# Laws


@pytest.mark.parametrize(
    ("kind", "law"), [("uniform", scipy.stats.uniform), ("normal", scipy.stats.norm)]
)
def test_law_along_positions_and_along_seeds(kind, law):
    along = getattr(Draws([derive_seed(1)]), kind)((200_000,), "a")
    assert follows(along, law.cdf)
    across = getattr(Draws(range(20_000)), kind)((4,), "a")
    for position in range(4):
        assert follows(across[:, position], law.cdf)


def test_moments_of_the_normal():
    x = Draws(range(8)).normal((100_000,), "a").double()
    for power, moment in ((1, 0), (2, 1), (3, 0), (4, 3), (6, 15)):
        values = x**power
        assert abs(values.mean() - moment) < 4.5 * values.std() / math.sqrt(x.numel()), power
    assert 4.3 < x.abs().max() < 6.8  # tails: 4.9 is expected of 800,000


def test_moments_of_the_uniform():
    u = Draws(range(4)).uniform((100_000,), "a").double()
    assert abs(u.mean() - 1 / 2) < 4 * math.sqrt(1 / 12 / u.numel())
    assert abs(u.var() - 1 / 12) < 4 * math.sqrt(1 / 180 / u.numel())


def test_the_extreme_words_stay_inside_the_open_interval_and_finite():
    extremes = [torch.tensor([0, 2**32 - 1])] * 4
    u = randomness._to_uniform(extremes)
    assert (u > 0).all() and (u < 1).all()
    assert randomness._to_normal(extremes).isfinite().all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (2, 128), (5, 5), (0, 6), (-2, 2)])
def test_integers_are_uniform_with_both_ends(low, high):
    values = Draws(range(60)).integers(low, high, (1000,), "a")
    assert values.dtype == torch.int64
    assert values.min() == low and values.max() == high
    counts = np.bincount(values.flatten() - low)
    assert scipy.stats.chisquare(counts).pvalue > P_VALUE or low == high


# Rows and calls


def test_rows_equal_rows_drawn_alone():
    seeds, counts = [7, 8, 9, 10], [3, 0, 5, 1]
    rows = Draws(seeds).normal_rows(torch.tensor(counts), 7, 50, "matrix")
    assert rows.shape == (4, 7, 50)
    for seed, count, own in zip(seeds, counts, rows, strict=True):
        alone = Draws([seed]).normal_rows(torch.tensor([6]), 6, 50, "matrix")[0]
        torch.testing.assert_close(own[:count], alone[:count], rtol=0, atol=0)
        assert own[count:].eq(0).all()


def test_rows_do_not_depend_on_how_many_are_drawn_at_a_time(monkeypatch):
    draws, counts = Draws([7, 8, 9, 10]), torch.tensor([3, 0, 5, 1])
    together = draws.normal_rows(counts, 6, 50, "matrix")
    monkeypatch.setattr(randomness, "_block", lambda device: 60)  # several parts, several blocks
    assert together.any() and torch.equal(draws.normal_rows(counts, 6, 50, "matrix"), together)


def test_rows_are_independent_normal_streams():
    rows = Draws([1, 2]).normal_rows(torch.tensor([30, 20]), 30, 3000, "matrix")
    rows = torch.cat((rows[0], rows[1, :20]))
    assert follows(rows, scipy.stats.norm.cdf)
    correlation = torch.corrcoef(rows) - torch.eye(50)
    assert correlation.abs().max() < 6 / math.sqrt(3000)


def test_each_call_of_randn_like_is_a_stream_of_its_own():
    x = torch.zeros(2, 3, 20, 20)
    draws = Draws([1, 2])
    first, second = draws.randn_like(x), draws.randn_like(x)
    correlation = torch.corrcoef(torch.stack((first.flatten(), second.flatten())))[0, 1]
    assert abs(correlation) < 5 / math.sqrt(x.numel())
    assert follows(torch.cat((first, second)), scipy.stats.norm.cdf)


def test_calls_of_randn_like_replay_for_any_batch_and_what_is_drawn_between():
    x = torch.zeros(3, 1, 4, 4)
    draws, again, alone = Draws([1, 2, 3]), Draws([1, 2, 3]), Draws([2])
    for _ in range(3):
        expected = draws.randn_like(x)
        again.normal((5,), "something else")
        assert torch.equal(again.randn_like(x), expected)
        torch.testing.assert_close(alone.randn_like(x[:1])[0], expected[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_randn_like_has_the_precision_of_its_argument(dtype):
    drawn = Draws([1]).randn_like(torch.zeros(1, 8, dtype=dtype))
    assert drawn.dtype == dtype
    torch.testing.assert_close(drawn, Draws([1]).randn_like(torch.zeros(1, 8)).to(dtype))


# Derived seeds


def test_derived_seeds_are_a_hash_of_their_parts():
    parts = [(), (0,), (1, 2), (2, 1), (12,), ("12",), ("1", "2"), ("1, 2",), (1, "2"), (1, 2, 0)]
    seeds = [derive_seed(*p) for p in parts]
    assert len(set(seeds)) == len(parts)
    assert derive_seed(1, 2) == seeds[2] == 5142973159532490859
    many = torch.tensor([derive_seed(0, step, i) for step in range(100) for i in range(100)])
    assert len(many.unique()) == 10_000
    assert many.min() >= 0
    assert follows(many.double() / 2**63, "uniform")
