"""Trainers and short runs of the tiny network, as several tests of training make them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from helpers import ONE_LEVEL
from torch import Tensor

from datautils.photos import Photos
from degradation import Family, RandomDegradation
from networks import Denoiser, make_config
from training.config import TrainConfig
from training.loop import Heldout, train
from training.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 4


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
    denoiser = Denoiser(make_config("tiny", network=ONE_LEVEL))
    return Trainer(config, denoiser, family or RandomDegradation(), CPU)


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
    assert a.scaler.state_dict() == b.scaler.state_dict()
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


# ---- gradients that are not finite ---------------------------------------------------------------


def batches(count: int) -> Iterator[tuple[Tensor, Tensor]]:
    images = torch.stack([photos()[i][0] for i in range(BATCH)])
    return iter([(images, torch.full((BATCH,), -1))] * count)
