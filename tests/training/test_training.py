"""Training: schedules, the loss, the order of samples, checkpoints, and the loop around them."""

import dataclasses
import itertools
import json
import math
from collections.abc import Callable, Iterator
from itertools import islice, pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from datautils.photos import Photos
from degradation import Draws, Family, MatrixDegradation, MotionBlur, Problem, RandomDegradation
from networks import Denoiser, load_weights, make_config, read_summary
from runtime import distributed
from runtime.errors import DivergedError
from training import checkpoint, loop
from training.checkpoint import (
    Progress,
    find_checkpoint,
    flatten_state,
    list_checkpoints,
    load_parts,
    save_checkpoint,
    unflatten_state,
)
from training.config import TrainConfig
from training.curves import draw_curves
from training.data import SampleOrder
from training.log import read_log
from training.loop import Heldout, train
from training.loss import DenoisingLoss, MMSELoss, draw_sigma
from training.schedule import ema_decay, learning_rate, update_average
from training.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 4


# ---- schedules -----------------------------------------------------------------------------------


def rate(images: int, progress: float = 0.0, **options: float | None) -> float:
    settings: dict = {"lr": 3.0, "batch": 8, "ramp": 0, "decay": None, "cooldown": 0.0}
    return learning_rate(images, progress, **settings | options)


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
    ("progress", "expected"), [(0, 3), (0.6, 3), (0.7, 2.25), (0.8, 1.5), (0.9, 0.75), (1, 0)]
)
def test_learning_rate_falls_linearly_to_zero_in_the_cooldown(progress, expected):
    assert rate(8, progress, cooldown=0.4) == pytest.approx(expected, abs=1e-12)


def test_learning_rate_is_never_negative():
    assert rate(8, 1.5, cooldown=0.4) == 0


def test_ramp_decay_and_cooldown_multiply():
    both = rate(3200, 0.8, ramp=6400, decay=100, cooldown=0.4)
    assert both == pytest.approx(3 * 0.5 * 0.5 * 0.5, rel=1e-12)


def test_old_weights_count_half_after_a_halflife():
    decay = ema_decay(10**9, batch=8, halflife=800, ramp=0.05)
    assert decay**100 == pytest.approx(0.5, rel=1e-12)


def test_halflife_is_at_most_a_share_of_the_images_seen():
    early = ema_decay(1000, batch=8, halflife=800, ramp=0.05)
    assert early == pytest.approx(0.5 ** (8 / 50), rel=1e-12)
    assert ema_decay(16_000, batch=8, halflife=800, ramp=0.05) == pytest.approx(0.5**0.01)
    assert ema_decay(1000, batch=8, halflife=800, ramp=0) == pytest.approx(0.5**0.01)


def test_average_moves_in_place_by_one_minus_decay():
    average, weights = [torch.ones(3), torch.zeros(2, 2)], [torch.zeros(3), torch.full((2, 2), 8.0)]
    places = [tensor.data_ptr() for tensor in average]
    update_average(iter(average), iter(weights), 0.75)
    assert [tensor.data_ptr() for tensor in average] == places
    torch.testing.assert_close(average, [torch.full((3,), 0.75), torch.full((2, 2), 2.0)])
    assert weights[0].eq(0).all()


# ---- the loss ------------------------------------------------------------------------------------


def test_log_sigma_is_normal():
    logs = draw_sigma(Draws(range(20_000)), -0.8, 1.6).log().double()
    quantiles = torch.distributions.Normal(-0.8, 1.6).cdf(logs).sort().values
    uniform = (torch.arange(20_000) + 0.5) / 20_000
    assert (quantiles - uniform).abs().max() < 1.63 / math.sqrt(20_000)  # Kolmogorov, 1 %


def test_a_share_of_the_sigmas_is_that_of_the_mmse_estimate():
    draws = Draws(range(20_000))
    plain, mixed = draw_sigma(draws, -0.8, 1.6), draw_sigma(draws, -0.8, 1.6, mmse_share=0.3)
    chosen = mixed == 100
    assert chosen.double().mean().item() == pytest.approx(0.3, abs=4 * math.sqrt(0.21 / 20_000))
    assert torch.equal(mixed[~chosen], plain[~chosen])
    # Those chosen are no special ones: their own σ would have had the same law.
    gap = plain[chosen].log().mean() - plain[~chosen].log().mean()
    assert abs(gap) < 4 * 1.6 / math.sqrt(20_000 * 0.21)


@pytest.mark.parametrize(("share", "expected"), [(0.0, 0.0), (1.0, 1.0)])
def test_a_share_of_none_or_all_is_exact(share, expected):
    sigma = draw_sigma(Draws(range(1000)), -0.8, 1.6, mmse_share=share, mmse_sigma=7.0)
    assert sigma.eq(7).double().mean() == expected


def test_sigma_of_a_sample_depends_on_its_seed_alone():
    batch = draw_sigma(Draws([5, 6, 7]), -0.8, 1.6, mmse_share=0.5)
    alone = draw_sigma(Draws([6]), -0.8, 1.6, mmse_share=0.5)
    torch.testing.assert_close(batch[1], alone[0])


@pytest.fixture
def skipping() -> Denoiser:
    """A new network, which is its skip connection, with an uncertainty that varies with σ."""
    denoiser = Denoiser(make_config("tiny"))
    torch.nn.init.normal_(denoiser.logvar.linear.weight, std=0.1)
    return denoiser


def test_loss_is_the_weighted_error_with_learned_uncertainty(skipping):
    images, noise = torch.randn(2, 3, 3, 16, 16)
    sigma = torch.tensor([0.1, 1.0, 30.0])
    u = skipping.log_variance(sigma).detach()
    assert u.std() > 0.1
    problem = Problem.without_measurement(3, (3, 16, 16))
    loss = DenoisingLoss(skipping)(images, sigma, noise, problem)
    for i, s in enumerate(sigma.tolist()):
        noisy = images[i].numpy() + s * noise[i].numpy()
        error = 0.5**2 / (s**2 + 0.5**2) * noisy - images[i].numpy()
        weight = (s**2 + 0.5**2) / (s * 0.5) ** 2
        expected = np.mean(weight / math.exp(u[i]) * error**2 + u[i].item())
        assert loss[i].item() == pytest.approx(expected, rel=1e-5)


# ---- the order of samples ------------------------------------------------------------------------


def order(count: int, size: int = 10, batch: int = 4, seed: int = 0, step: int = 0) -> list[int]:
    """The first `count` data set indices of this process."""
    steps = islice(SampleOrder(size, batch, seed, step), -(-count // batch) + 1)
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
    alone = list(islice(SampleOrder(10, 8, 0), 6))
    monkeypatch.setattr(distributed, "world_size", lambda: processes)
    shares = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(islice(SampleOrder(10, 8, 0), 6)))
    together = zip(*shares, strict=True)
    assert [[i for part in step for i in part] for step in together] == alone


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_starting_at_a_step_continues_the_same_order(step):
    assert order(20, step=step) == order(20 + 4 * step)[4 * step :]


# ---- checkpoints ---------------------------------------------------------------------------------


State = tuple[nn.Module, nn.Module, torch.optim.Adam]


def state(seed: int, width: int = 3, steps: int = 2) -> State:
    """A model, an average and an optimiser that has made some steps."""
    torch.manual_seed(seed)
    model, average = nn.Linear(width, 2), nn.Linear(width, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(steps):
        advance(model, optimizer)
    return model, average, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, model.in_features)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def parts(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": flatten_state(optimizer.state_dict()["state"]),
    }


def load_checkpoint(folder: Path, *into: Any) -> tuple[Progress, list[str]]:
    """Load the newest sound checkpoint into (model, average, optimiser)."""
    model, average, optimizer = into
    path, progress, warnings = find_checkpoint(folder)
    loaded = load_parts(path)
    model.load_state_dict(loaded["model"])
    average.load_state_dict(loaded["average"])
    entries = unflatten_state(loaded["optimizer"])
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return progress, warnings


def save(folder: Path, images: int, seed: int = 0, keep: int = 9, keep_every: int = 0) -> State:
    saved = state(seed)
    progress = Progress(images=images, step=images)
    save_checkpoint(folder, progress, parts(*saved), keep, keep_every)
    return saved


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path) -> None:
    """Change one byte in the middle, so that the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checkpoint_comes_back_bit_for_bit(tmp_path):
    saved = state(0)
    progress = Progress(
        images=96, step=12, seconds=1.5, skipped=3, skipped_in_a_row=1, scaler={"scale": 8.0},
        meters=[[0.1, 1 / 3, 2.0, 2.0, 2.0]],
    )  # fmt: skip
    save_checkpoint(tmp_path, progress, parts(*saved), keep=1)
    loaded = state(1, steps=0)
    assert load_checkpoint(tmp_path, *loaded) == (progress, [])
    for old, new in zip(saved, loaded, strict=True):
        torch.testing.assert_close(old.state_dict(), new.state_dict(), rtol=0, atol=0)
    assert loaded[2].state_dict()["state"][0]["exp_avg_sq"].ne(0).all()
    for model, _, optimizer in (saved, loaded):
        advance(model, optimizer)
    assert torch.equal(saved[0].weight, loaded[0].weight)


@pytest.mark.parametrize("name", ["model", "average", "optimizer"])
@pytest.mark.parametrize("harm", [damage, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, name, harm):
    older, _, _ = save(tmp_path, 8, seed=0)
    save(tmp_path, 16, seed=1)
    newest = list_checkpoints(tmp_path)[-1]
    harm(newest / f"{name}.safetensors")
    loaded = state(2, steps=0)
    progress, warnings = load_checkpoint(tmp_path, *loaded)
    assert progress.images == 8
    assert torch.equal(loaded[0].weight, older.weight)
    assert len(warnings) == 1 and str(newest) in warnings[0] and name in warnings[0]


@pytest.mark.parametrize("text", ["", "{", "{}", "null"])
def test_a_damaged_record_of_a_checkpoint_is_passed_over(tmp_path, text):
    save(tmp_path, 8)
    save(tmp_path, 16)
    (list_checkpoints(tmp_path)[-1] / "state.json").write_text(text)
    progress, warnings = load_checkpoint(tmp_path, *state(2))
    assert progress.images == 8 and len(warnings) == 1


def test_counters_are_under_the_checksum_too(tmp_path):
    save(tmp_path, 8)
    save(tmp_path, 16)
    record = list_checkpoints(tmp_path)[-1] / "state.json"
    changed = record.read_text().replace('"step": 16', '"step": 17')
    assert changed != record.read_text()
    record.write_text(changed)
    progress, warnings = load_checkpoint(tmp_path, *state(2))
    assert progress.step == 8 and len(warnings) == 1


def test_no_sound_checkpoint_is_refused(tmp_path):
    save(tmp_path, 8)
    damage(list_checkpoints(tmp_path)[0] / "model.safetensors")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no sound checkpoint"):
            load_checkpoint(folder, *state(1))


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch, files):
    save(tmp_path, 8)
    write, written = checkpoint.save_file, []

    def failing(tensors: dict[str, Tensor], path: Path) -> None:
        if len(written) == files:
            raise OSError("disk full")
        written.append(path)
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", failing)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 16)
    assert names(tmp_path) == ["000000000008"]


def test_what_a_killed_save_left_is_ignored_and_replaced(tmp_path, monkeypatch):
    save(tmp_path, 8)
    with monkeypatch.context() as patch:  # as if the process had been killed before the rename
        patch.setattr(checkpoint.os, "replace", lambda *paths: (_ for _ in ()).throw(OSError()))
        patch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(OSError):
            save(tmp_path, 16)
    assert len(names(tmp_path)) == 2
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000000008"]
    assert load_checkpoint(tmp_path, *state(1))[0].images == 8
    save(tmp_path, 16)
    assert names(tmp_path) == ["000000000008", "000000000016"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    counts = [8, 900, 16_000, 10**12 - 1]
    for images in counts:
        save(tmp_path, images, keep=keep)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == counts[-keep:]


def test_a_damaged_newer_checkpoint_does_not_crowd_out_the_one_just_written(tmp_path):
    save(tmp_path, 8)
    save(tmp_path, 16)
    damage(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    save(tmp_path, 12, keep=1)  # after going on from 8
    assert load_checkpoint(tmp_path, *state(1))[0].images == 12


def test_a_checkpoint_of_the_same_count_is_replaced(tmp_path):
    save(tmp_path, 8, seed=0)
    model, _, _ = save(tmp_path, 8, seed=1)
    loaded = state(2)
    load_checkpoint(tmp_path, *loaded)
    assert torch.equal(loaded[0].weight, model.weight) and names(tmp_path) == ["000000000008"]


def test_a_checkpoint_of_another_architecture_is_refused_in_a_sentence(tmp_path):
    save(tmp_path, 8)
    with pytest.raises(ValueError, match="another architecture") as error:
        make_trainer(settings()).resume(tmp_path)
    assert "\n" not in str(error.value) and "000000000008" in str(error.value)


# ---- the loop ------------------------------------------------------------------------------------


def settings(**overrides: object) -> TrainConfig:
    plain = {
        "preset": "tiny", "degradation": "RandomDegradation", "batch": BATCH, "duration": 6 * BATCH,
        "lr": 2e-3, "ramp": 2 * BATCH, "cooldown": 0.5, "mmse_share": 0.3, "ema_halflife": 8,
        "ema_ramp": 0.0, "noise_level": 0.05, "precision": "fp32", "log_every": BATCH,
        "checkpoint_every": BATCH, "workers": 0,
    }  # fmt: skip
    return TrainConfig(**plain | overrides)


def make_trainer(config: TrainConfig, family: Family | None = None) -> Trainer:
    torch.manual_seed(config.seed)
    return Trainer(config, Denoiser(make_config("tiny")), family or RandomDegradation(), CPU)


def photos(size: int = 10) -> Photos:
    return Photos(16, "train", size=size)


def run(folder: Path, config: TrainConfig, validate: Callable | None = None) -> Trainer:
    """Train in a folder, from its newest checkpoint if it has one."""
    trainer = make_trainer(config)
    if (folder / "checkpoints").exists():
        trainer.resume(folder / "checkpoints")
    folder.mkdir(exist_ok=True)
    train(trainer, photos(), folder, Heldout(psnr=validate))
    return trainer


def assert_same_state(a: Trainer, b: Trainer) -> None:
    pairs = [
        (a.loss_module, b.loss_module),
        (a.average, b.average),
        (a.optimizer, b.optimizer),
    ]
    assert a.scaler.state() == b.scaler.state()
    for one, other in pairs:
        torch.testing.assert_close(one.state_dict(), other.state_dict(), rtol=0, atol=0)


def weights(trainer: Trainer) -> list[Tensor]:
    return [p.detach().clone() for p in trainer.denoiser.parameters()]


class PowerCutError(Exception):
    pass


def cut_after(images: int) -> Callable[[Callable], dict[str, float]]:
    """A validation, done after every step, in which the run ends."""
    calls = iter(range(0, images, BATCH))

    def validate(denoiser: Callable) -> dict[str, float]:
        if next(calls, None) is None:
            raise PowerCutError
        return {}

    return validate


@pytest.mark.parametrize(
    "options",
    [{}, {"precision": "bf16"}, {"precision": "fp16"}, {"batch_gpu": 2}],
    ids=str,
)
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, options):
    config = settings(validate_every=BATCH, **options)
    whole = run(tmp_path / "whole", config)
    for images in (2 * BATCH, 2 * BATCH):  # two power cuts
        with pytest.raises(PowerCutError):
            run(tmp_path / "cut", config, cut_after(images))
    resumed = run(tmp_path / "cut", config)
    assert whole.progress.images == resumed.progress.images == config.duration
    assert whole.progress.step == resumed.progress.step == 6
    assert_same_state(whole, resumed)
    new = weights(make_trainer(config))
    assert all(not torch.equal(a, b) for a, b in zip(weights(whole)[:3], new[:3], strict=True))


def test_the_clock_goes_on_after_a_resume(tmp_path):
    run(tmp_path, settings(duration=2 * BATCH))
    before = read_log(tmp_path)[-1]["seconds"]
    run(tmp_path, settings(duration=3 * BATCH))
    assert read_log(tmp_path)[-1]["seconds"] >= before > 0


def test_a_finished_run_is_not_trained_further(tmp_path):
    first = run(tmp_path, settings())
    again = run(tmp_path, settings())
    assert (again.progress.images, again.progress.step) == (6 * BATCH, 6)
    assert all(torch.equal(a, b) for a, b in zip(weights(first), weights(again), strict=True))
    assert (tmp_path / "weights.safetensors").exists()


def test_the_seed_decides_the_weights(tmp_path):
    config = settings(duration=2 * BATCH)
    first, same = (run(tmp_path / name, config) for name in "ab")
    assert_same_state(first, same)
    # From the same initial weights, so that only the draws of training differ.
    other = make_trainer(config)
    other.config = settings(duration=2 * BATCH, seed=1)
    (tmp_path / "c").mkdir()
    train(other, photos(), tmp_path / "c")
    assert any(not torch.equal(a, b) for a, b in zip(weights(first), weights(other), strict=True))


def given_to_the_loss(config: TrainConfig, steps: int = 1) -> list[tuple]:
    """(clean images, σ, noise, problem, augment labels) of every call in some steps."""
    trainer, calls = make_trainer(config), []
    trainer.loss.register_forward_pre_hook(lambda module, arguments: calls.append(arguments))
    for images, _ in batches(steps):
        trainer.step(images, torch.arange(BATCH), 0.0)
    return calls


def test_the_settings_reach_the_loss():
    plain = settings(P_mean=math.log(3), P_std=1e-9, mmse_share=0.0, noise_level=0.3)
    ((images, sigma, _, problem, augmented),) = given_to_the_loss(plain)
    torch.testing.assert_close(images, next(batches(1))[0] / 127.5 - 1)
    torch.testing.assert_close(sigma, torch.full((BATCH,), 3.0))
    torch.testing.assert_close(problem.noise_level, torch.full((BATCH,), 0.3))
    assert problem.class_labels.tolist() == [0, 1, 2, 3]
    assert augmented is None
    ((_, sigma, _, problem, *_),) = given_to_the_loss(settings(mmse_share=1.0, label_dropout=1.0))
    assert sigma.eq(100).all() and problem.class_labels.eq(-1).all()


def test_augmented_images_are_measured_and_the_network_is_told():
    options = settings(augment=0.5, mmse_share=0.0, noise_level=0.0)
    ((images, _, _, problem, labels),) = given_to_the_loss(options)
    plain = next(batches(1))[0] / 127.5 - 1
    changed = labels.ne(0).any(1)
    assert changed.any() and labels.shape == (BATCH, 9)
    for i in range(BATCH):
        assert torch.equal(images[i], plain[i]) == (not changed[i])
    torch.testing.assert_close(problem.y, problem.degradation.H(images))


def test_mmse_training_is_at_sigma_100_with_a_plain_loss():
    trainer = make_trainer(settings(mse_train=True, noise_level=0.1))
    assert isinstance(trainer.loss_module, MMSELoss)
    ((_, sigma, _, problem, *_),) = given_to_the_loss(settings(mse_train=True, noise_level=0.1))
    assert sigma.eq(100).all() and problem.noise_level.eq(torch.tensor(0.1)).all()


def test_every_step_and_every_image_has_draws_of_its_own():
    calls = given_to_the_loss(settings(mmse_share=0.0), steps=3)
    noises = torch.cat([noise.flatten(1) for _, _, noise, *_ in calls])
    products = noises @ noises.T / noises.shape[1] - torch.eye(3 * BATCH)
    assert products.abs().max() < 5 * math.sqrt(2 / noises.shape[1])
    assert len({s.item() for _, sigma, *_ in calls for s in sigma}) == 3 * BATCH


def perturbed(trainer: Trainer) -> Trainer:
    """With weights all of which take part: a new network's last layers are zero."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for p in trainer.denoiser.parameters():
            p.add_(0.03 * torch.randn(p.shape, generator=generator))
    return trainer


def gradients(trainer: Trainer) -> tuple[list[Tensor], float]:
    """The gradients that reach the optimiser in one step, and the loss."""
    taken: list[Tensor] = []
    step = trainer.optimizer.step

    def capture() -> None:
        taken.extend(p.grad.clone() for p in trainer.denoiser.parameters())
        step()

    trainer.optimizer.step = capture  # type: ignore[method-assign]
    images = torch.stack([photos()[i][0] for i in range(8)])
    loss = trainer.step(images, torch.full((8,), -1), 0.0)
    return taken, loss.item()


@pytest.mark.parametrize("family", [MotionBlur(), MatrixDegradation()])
def test_parts_of_a_batch_give_the_gradients_of_the_whole(family):
    whole, loss = gradients(perturbed(make_trainer(settings(batch=8), family)))
    assert all(gradient.any() for gradient in whole)
    for size in (1, 4):
        config = settings(batch=8, batch_gpu=size)
        parts, same = gradients(perturbed(make_trainer(config, family)))
        assert same == pytest.approx(loss, rel=1e-5)
        for one, other in zip(whole, parts, strict=True):
            assert (one - other).norm() <= 1e-5 * one.norm() + 1e-7


def fixed_loss(trainer: Trainer) -> float:
    """The loss on the training images at noise that does not change."""
    images = torch.stack([photos(4)[i][0] for i in range(4)]).repeat(8, 1, 1, 1) / 127.5 - 1
    draws = Draws(range(32))
    noise = draws.normal((3, 16, 16), "held noise")
    problem = Problem.without_measurement(32, (3, 16, 16))
    sigma = draw_sigma(draws, -0.8, 1.6)
    with torch.no_grad():
        return trainer.loss_module(images, sigma, noise, problem).mean().item()


def test_the_loss_falls_on_a_few_images(tmp_path):
    config = settings(duration=60 * BATCH, checkpoint_every=2**20, cooldown=0.0, mmse_share=0.0)
    trainer = make_trainer(config)
    before = fixed_loss(trainer)
    train(trainer, photos(4), tmp_path)
    assert fixed_loss(trainer) < 0.75 * before


# ---- gradients that are not finite ---------------------------------------------------------------


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.stack([photos()[i][0] for i in range(BATCH)])
    return iter([(images, torch.full((BATCH,), -1))] * count)


def taken(trainer: Trainer) -> int:
    """Steps of the optimiser."""
    entries = list(trainer.optimizer.state.values())
    return int(entries[0]["step"].item()) if entries else 0


def break_gradients(trainer: Trainer) -> torch.utils.hooks.RemovableHandle:
    last = list(trainer.denoiser.parameters())[-1]
    return last.register_hook(lambda gradient: gradient * math.nan)


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_step_without_finite_gradients_is_skipped_and_counted(precision):
    trainer = make_trainer(settings(precision=precision))
    batch = next(batches(1))
    while not taken(trainer):  # in fp16 the first scales of the loss are too large
        trainer.step(*batch, 0.0)
    before, skipped, step = weights(trainer), trainer.progress.skipped, trainer.progress.step
    moments = next(iter(trainer.optimizer.state.values()))
    count, scale = moments["step"].item(), trainer.scaler.scale.item()
    broken = break_gradients(trainer)
    trainer.step(*batch, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    trainer.check_skips()
    assert trainer.progress.skipped == skipped + 1 and moments["step"].item() == count
    assert trainer.progress.step == step + 1
    assert trainer.progress.images == BATCH * (step + 1)
    assert trainer.scaler.scale == (scale / 2 if precision == "fp16" else 1)

    broken.remove()
    trainer.step(*batch, 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    assert trainer.progress.skipped == skipped + 1 and moments["step"].item() == count + 1


def test_a_run_without_finite_gradients_is_given_up():
    trainer = make_trainer(settings(batch=1, max_skipped=7))
    break_gradients(trainer)
    image, label = photos()[0][0][None], torch.tensor([-1])

    def go_on() -> None:
        for _ in range(100):
            trainer.step(image, label, 0.0)

    with pytest.raises(DivergedError, match=r"not finite for \d+ steps in a row.*learning rate"):
        go_on()
    assert trainer.progress.skipped == 14  # the first multiple of 7 after 7


# ---- what a run leaves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Trainer]:
    """A run of six steps with a validation every two."""
    folder = tmp_path_factory.mktemp("finished")
    config = settings(validate_every=2 * BATCH, decay=4)
    return folder, run(folder, config, lambda denoiser: {"MotionBlur": 20.0, "Box": 10.0})


def test_exported_weights_are_the_average(finished):
    folder, trainer = finished
    exported = load_weights(folder / "weights.safetensors")
    torch.testing.assert_close(exported.state_dict(), trainer.average.state_dict(), rtol=0, atol=0)
    assert exported.config == trainer.denoiser.config
    pairs = zip(exported.parameters(), trainer.denoiser.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_exported_weights_say_how_they_were_trained(finished):
    summary = read_summary(finished[0] / "weights.safetensors")
    expected = {
        "images": 6 * BATCH, "steps": 6, "degradation": "RandomDegradation", "noise_level": 0.05,
        "precision": "fp32", "data": "datautils.photos.Photos", "skipped_steps": 0,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected and summary["seconds"] >= 0


def test_average_follows_the_weights_with_the_decay_of_the_schedule():
    trainer = make_trainer(settings())
    expected = [p.double() for p in weights(trainer)]
    for _ in range(3):
        trainer.step(*next(batches(1)), 0.0)
        decay = 0.5 ** (BATCH / 8)
        expected = [
            decay * old + (1 - decay) * new
            for old, new in zip(expected, weights(trainer), strict=True)
        ]
    for average, value in zip(trainer.average.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-7)


def test_every_line_of_the_log_is_json_with_the_numbers_of_a_report(finished):
    text = (finished[0] / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and lines == read_log(finished[0])
    reports = [line for line in lines if "loss" in line]
    assert [line["images"] for line in reports] == [BATCH * i for i in range(1, 7)]
    assert [line["step"] for line in reports] == [1, 2, 3, 4, 5, 6]
    for line in reports:
        assert math.isfinite(line["loss"]) and line["images_per_second"] > 0
        assert line["skipped"] == 0
        assert line["lr"] == pytest.approx(
            learning_rate(
                line["images"], (line["images"] - BATCH) / (6 * BATCH),
                lr=2e-3, batch=BATCH, ramp=2 * BATCH, decay=4, cooldown=0.5,
            )
        )  # fmt: skip
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(lines))


def test_the_log_holds_the_validations_from_the_first_image_on(finished):
    lines = [line for line in read_log(finished[0]) if "heldout_psnr" in line]
    assert [line["images"] for line in lines] == [0, 2 * BATCH, 4 * BATCH, 6 * BATCH]
    assert all(line["heldout_psnr"] == {"MotionBlur": 20.0, "Box": 10.0} for line in lines)


def test_reports_are_means_over_the_steps_between_them(tmp_path):
    run(tmp_path / "each", settings())
    run(tmp_path / "third", settings(log_every=3 * BATCH))
    each = [line["loss"] for line in read_log(tmp_path / "each")]
    third = read_log(tmp_path / "third")
    assert [line["step"] for line in third] == [3, 6]
    means = [sum(each[:3]) / 3, sum(each[3:]) / 3]
    assert [line["loss"] for line in third] == pytest.approx(means, rel=1e-5)


def test_a_run_may_end_by_the_clock(tmp_path, monkeypatch):
    seconds = itertools.count(0, 0.5)  # a look at the clock takes half a second
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    trainer = run(tmp_path, settings(duration=2**30, max_minutes=15 / 60, cooldown=1.0))
    last = [line for line in read_log(tmp_path) if "loss" in line][-1]
    assert 0 < trainer.progress.images < 2**30 and last["images"] == trainer.progress.images
    assert 4 < last["step"] < 30
    assert 0 < last["lr"] < 5e-4  # the cooldown follows the clock too
    assert (tmp_path / "weights.safetensors").exists()
    assert int(list_checkpoints(tmp_path / "checkpoints")[-1].name) == last["images"]


@pytest.mark.parametrize("options", [{"duration": 4 * BATCH}, {"max_minutes": 15 / 60}], ids=str)
def test_a_run_that_ended_and_was_killed_while_it_measured_measures_again(
    tmp_path, monkeypatch, options
):
    seconds = itertools.count(0, 0.5)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    config = settings(**{"duration": 2**30, "checkpoint_every": 2**30} | options)

    def measure(fail: bool) -> Trainer:
        def distances(denoiser: Callable) -> dict[str, dict[str, float]]:
            if fail:
                raise PowerCutError
            return {"Box": {"fd": 1.0}}

        trainer = make_trainer(config)
        if (tmp_path / "checkpoints").exists():
            trainer.resume(tmp_path / "checkpoints")
        train(trainer, photos(), tmp_path, Heldout(distances=distances))
        return trainer

    with pytest.raises(PowerCutError):
        measure(fail=True)
    assert not any("heldout_distance" in line for line in read_log(tmp_path))
    for _ in range(2):  # and once only
        ended = measure(fail=False).progress.images
        lines = [line for line in read_log(tmp_path) if "heldout_distance" in line]
        assert [line["images"] for line in lines] == [ended]
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1


def drawn(folder: Path, lines: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The left and right half of the curves of a log."""
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = draw_curves([folder], folder / "curves.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]


def test_curves_show_losses_and_validations(finished, tmp_path):
    lines = read_log(finished[0])
    psnr, loss = drawn(tmp_path, lines)
    reports = [line for line in lines if "loss" in line]
    values = [line["loss"] for line in reports]
    for line, value in zip(reports, reversed(values), strict=True):
        line["loss"] = value
    same, other = drawn(tmp_path, lines)
    assert np.array_equal(psnr, same) and not np.array_equal(loss, other)
    empty, _ = drawn(tmp_path, reports)  # a run without validation
    assert (empty < 160).sum() < (psnr < 160).sum()


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_folder_without_a_log_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    if text == "":
        assert read_log(tmp_path) == []
        return
    with pytest.raises(ValueError, match="no training run"):
        read_log(tmp_path)


@pytest.mark.parametrize("keep", [1, 2, 4, 6])
def test_only_the_newest_checkpoints_are_kept_whatever_their_number(tmp_path, keep):
    for images in (8, 16, 24, 32, 40):
        save(tmp_path, images, keep=keep)
    found = [int(path.name) for path in list_checkpoints(tmp_path)]
    assert found == [8, 16, 24, 32, 40][-keep:]


# ---- compiled ------------------------------------------------------------------------------------


def test_a_compiled_run_learns_the_same(monkeypatch):
    """One graph for each structure, dropout, new operators and new classes included. The graphs run
    as they are, but for dropout's: tests/networks/test_compile.py has the compiler's."""
    compile_with, graphs = Denoiser.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Denoiser, "compile", lambda self: compile_with(self, backend=backend))
    levels = tuple(dataclasses.replace(level, dropout=0.1) for level in make_config("tiny").levels)
    network = dataclasses.replace(make_config("tiny", num_classes=3), levels=levels)
    images = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8)
    family = MotionBlur((2, 4))
    weights = []
    for compiled in (False, True):
        torch.manual_seed(0)
        config = TrainConfig(batch=4, precision="fp32", compile=compiled, label_dropout=0.5)
        trainer = Trainer(config, Denoiser(network), family, torch.device("cpu"))
        for _ in range(6):
            trainer.step(images, torch.tensor([0, 1, 2, 1]), 0.0)
        weights.append(trainer.denoiser.state_dict())
    torch._dynamo.reset()
    assert len(graphs) == 2  # both strides came
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=1e-4, atol=1e-6)


def test_compile_and_fsdp_are_refused_together():
    with pytest.raises(ValueError, match=r"compile makes one graph of what fsdp gathers"):
        TrainConfig(compile=True, fsdp=True)
    with pytest.raises(ValueError, match=r"recompute=-1.* must be the number of a level, from 0"):
        TrainConfig(recompute=(-1,))
