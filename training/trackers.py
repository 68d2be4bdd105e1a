"""The log of a run for TensorBoard and Weights & Biases, if they are asked for and installed."""

import importlib
import importlib.util
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from runtime.files import replacing
from training.config import TrainConfig

_PATIENCE = 30.0  # seconds, with the network


def check_trackers(config: TrainConfig) -> None:
    """Raise ValueError if a package that the settings ask for is not installed."""
    for package in ("tensorboard", "wandb"):
        if getattr(config, package) and importlib.util.find_spec(package) is None:
            raise ValueError(f"{package} is not installed: pip install {package}")


class TensorBoard:
    """Event files in `folder/tensorboard`; what a resumed run repeats replaces what was there."""

    def __init__(self, folder: Path, images: int):
        from torch.utils.tensorboard import SummaryWriter

        first = images + 1 if images else 0
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=first)

    def write(self, images: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, images)
        self.writer.flush()

    def picture(self, images: int, path: Path) -> None:
        with Image.open(path) as picture:
            pixels = np.asarray(picture.convert("RGB"))
        self.writer.add_image("sheet", pixels, images, dataformats="HWC")

    def close(self) -> None:
        self.writer.close()


class WeightsAndBiases:
    """A run of wandb, online or, by its own WANDB_MODE=offline, in `folder/wandb`."""

    def __init__(self, config: TrainConfig, folder: Path):
        wandb = importlib.import_module("wandb")
        identifier = folder / "wandb-id.txt"  # a resumed run goes on as the same one
        if not identifier.exists():
            with replacing(identifier) as path:
                path.write_text(uuid.uuid4().hex)
        try:
            self.run = wandb.init(
                project=config.wandb, dir=str(folder), name=folder.name, id=identifier.read_text(),
                resume="allow", config={"settings": config.dump()},
                settings={"init_timeout": _PATIENCE},
            )  # fmt: skip
        except Exception as error:  # of its login, its network, its own settings
            raise ConnectionError(
                f"Weights & Biases cannot start ({error}): log in by `wandb login`, or keep the "
                "run here by WANDB_MODE=offline"
            ) from error
        self.run.define_metric("images")
        self.run.define_metric("*", step_metric="images")
        self.image = wandb.Image

    def write(self, images: int, values: Mapping[str, float]) -> None:
        self.run.log({"images": images, **values})

    def picture(self, images: int, path: Path) -> None:
        self.run.log({"images": images, "sheet": self.image(str(path))})

    def close(self) -> None:
        self.run.finish()


Tracker = TensorBoard | WeightsAndBiases
"""Takes in numbers by name, and pictures, at a count of images."""


def trackers(config: TrainConfig, folder: Path, images: int) -> list[Tracker]:
    """The trackers of the settings, for a run that goes on after `images`."""
    chosen: list[Tracker] = [TensorBoard(folder, images)] if config.tensorboard else []
    return [*chosen, WeightsAndBiases(config, folder)] if config.wandb else chosen


def flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """The finite numbers of a line of the log by name, as in heldout_psnr/MotionBlur."""
    for name, value in values.items():
        if isinstance(value, Mapping):
            yield from flat(value, f"{prefix}{name}/")
        elif isinstance(value, int | float) and np.isfinite(value):
            yield f"{prefix}{name}", float(value)
