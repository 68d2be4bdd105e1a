"""The training loop: resuming, what reaches the loss, skipped steps, compiling."""

import math

import pytest
import torch
from runs import (
    BATCH,
    PowerCutError,
    assert_same_state,
    batches,
    cut_after,
    make_trainer,
    photos,
    run,
    settings,
    weights,
)
from torch import Tensor

from degradation import Draws, MatrixDegradation, MotionBlur, Problem
from networks import Denoiser, LevelConfig, NetworkConfig
from runtime.errors import DivergedError
from training.config import TrainConfig
from training.log import read_log
from training.loop import train
from training.loss import MMSELoss, draw_sigma
from training.trainer import Trainer


@pytest.mark.parametrize(
    "options",
    [{"precision": "fp16"}, {"precision": "bf16", "batch_gpu": 2}],
    ids=str,
)
def test_a_resumed_run_ends_bit_for_bit_like_an_uninterrupted_one(tmp_path, options):
    config = settings(validate_every=BATCH, **options)
    whole = run(tmp_path / "whole", config)
    with pytest.raises(PowerCutError):
        run(tmp_path / "cut", config, cut_after(2 * BATCH))
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
    torch.testing.assert_close(problem.levels, torch.full((BATCH,), 0.3))
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
    trainer = make_trainer(settings(objective="mmse", noise_level=0.1))
    assert isinstance(trainer.loss_module, MMSELoss)
    ((_, sigma, _, problem, *_),) = given_to_the_loss(settings(objective="mmse", noise_level=0.1))
    assert sigma.eq(100).all() and problem.levels.eq(torch.tensor(0.1)).all()


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
    count, scale = moments["step"].item(), trainer.scaler.get_scale()
    broken = break_gradients(trainer)
    trainer.step(*batch, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    trainer.check_skips()
    assert trainer.progress.skipped == skipped + 1 and moments["step"].item() == count
    assert trainer.progress.step == step + 1
    assert trainer.progress.images == BATCH * (step + 1)
    assert trainer.scaler.get_scale() == (scale / 2 if precision == "fp16" else 1)

    broken.remove()
    trainer.step(*batch, 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    assert trainer.progress.skipped == skipped + 1 and moments["step"].item() == count + 1


def test_a_norm_beyond_float32_is_skipped_too():
    trainer = make_trainer(settings(clip=1.0))
    batch = next(batches(1))
    trainer.step(*batch, 0.0)
    before = weights(trainer)
    last = list(trainer.denoiser.parameters())[-1]
    hook = last.register_hook(lambda gradient: torch.full_like(gradient, 1e25))
    trainer.step(*batch, 0.0)
    assert all(torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))
    trainer.check_skips()
    assert trainer.progress.skipped == 1
    hook.remove()
    trainer.step(*batch, 0.0)
    assert any(not torch.equal(a, b) for a, b in zip(before, weights(trainer), strict=True))


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


# ---- compiled ------------------------------------------------------------------------------------


def test_a_compiled_run_learns_the_same(monkeypatch):
    """One graph for each structure, dropout, new operators and new classes included. The graphs run
    as they are, but for dropout's: tests/networks/test_compile.py has the compiler's."""
    compile_with, graphs = Denoiser.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    monkeypatch.setattr(Denoiser, "compile", lambda self: compile_with(self, backend=backend))
    level = LevelConfig(depth=1, width=24, kernel=5, d_head=8, dropout=0.1)
    network = NetworkConfig((3, 16, 16), 2, (level,), num_classes=3, mapping_width=16)
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
