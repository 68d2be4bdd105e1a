"""Learning rate, average of the weights, and the order of samples."""

import math
from itertools import islice

import pytest
import torch

from runtime import distributed
from training.config import TrainConfig
from training.data import sample_order
from training.schedule import ema_decay, learning_rate

# ---- schedules -----------------------------------------------------------------------------------


def rate(images: int, fraction: float = 0.0, **options: float | None) -> float:
    settings: dict = {"lr": 3.0, "batch": 8, "ramp": 0, "decay": None, "cooldown": 0.0}
    return learning_rate(TrainConfig(**settings | options), images, fraction)


@pytest.mark.parametrize(
    ("images", "expected"), [(0, 0), (250, 0.75), (1000, 3), (1001, 3), (10**9, 3)]
)
def test_learning_rate_rises_linearly_and_stays(images, expected):
    assert rate(images, ramp=1000) == pytest.approx(expected, rel=1e-12)


def test_learning_rate_without_a_ramp_is_full_at_once():
    assert rate(0) == 3 and rate(8) == 3


@pytest.mark.parametrize(
    ("images", "expected"), [(8, 3), (800, 3), (1600, 3 / math.sqrt(2)), (3200, 1.5), (80_000, 0.3)]
)
def test_learning_rate_decays_as_an_inverse_square_root_of_steps(images, expected):
    assert rate(images, decay=100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("fraction", "expected"), [(0, 3), (0.6, 3), (0.7, 2.25), (0.8, 1.5), (0.9, 0.75), (1, 0)]
)
def test_learning_rate_falls_linearly_to_zero_in_the_cooldown(fraction, expected):
    assert rate(8, fraction, cooldown=0.4) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_is_never_negative():
    assert rate(8, 1.5, cooldown=0.4) == 0


def test_ramp_decay_and_cooldown_multiply():
    both = rate(3200, 0.8, ramp=6400, decay=100, cooldown=0.4)
    assert both == pytest.approx(3 * 0.5 * 0.5 * 0.5, rel=1e-12)


def decay(images: int, ramp: float = 0.05) -> float:
    return ema_decay(TrainConfig(batch=8, ema_halflife=800, ema_ramp=ramp), images)


def test_old_weights_count_half_after_a_halflife():
    assert decay(10**9) ** 100 == pytest.approx(0.5, rel=1e-12)


def test_halflife_is_at_most_a_share_of_the_images_seen():
    assert decay(1000) == pytest.approx(0.5 ** (8 / 50), rel=1e-12)
    assert decay(16_000) == pytest.approx(0.5**0.01)
    assert decay(1000, ramp=0) == pytest.approx(0.5**0.01)


# ---- the order of samples ------------------------------------------------------------------------


def order(count: int, size: int = 10, batch: int = 4, seed: int = 0, step: int = 0) -> list[int]:
    """The first `count` data set indices of this process."""
    steps = islice(sample_order(size, batch, seed, step), -(-count // batch) + 1)
    return [index for indices in steps for index in indices][:count]


@pytest.mark.parametrize("batch", [1, 4, 10, 23])
def test_every_epoch_is_a_permutation(batch):
    epochs = torch.tensor(order(40, batch=batch)).view(4, 10)
    assert epochs.sort(1).values.eq(torch.arange(10)).all()
    assert len({tuple(epoch.tolist()) for epoch in epochs}) == 4


def test_order_does_not_depend_on_the_batch_size_but_on_the_seed():
    assert order(40, batch=4) == order(40, batch=23)
    assert order(40, seed=0) != order(40, seed=1)


@pytest.mark.parametrize("processes", [2, 4])
def test_processes_share_the_samples_of_one_process(monkeypatch, processes):
    alone = list(islice(sample_order(10, 8, 0), 6))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(islice(sample_order(10, 8, 0), 6)))
    together = zip(*shares, strict=True)
    assert [[i for part in step for i in part] for step in together] == alone


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_starting_at_a_step_continues_the_same_order(step):
    assert order(20, step=step) == order(20 + 4 * step)[4 * step :]
