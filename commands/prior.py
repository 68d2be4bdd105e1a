"""`calculate_metrics.py prior`: fit a Gaussian, or a mixture of several, to a data set."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from commands.cli import check_folder
from datautils import ImageDataset, get_dataset
from datautils.loading import load_batches
from metrics.pixel import to_float
from networks import GaussianMixture, fit_gaussian, fit_mixture, save_weights
from runtime import distributed
from runtime.errors import one_sentence_errors

LIMIT = 4096  # values of an image: a covariance has their square
_BATCH = 64
_STEPS = 100


@dataclass
class PriorFit:
    """The options of `prior`, in the words of its help text."""

    data: str
    data_opt: dict[str, Any]
    split: str
    dest: Path
    components: int
    images: int
    workers: int
    seed: int

    def run(self) -> None:
        """Fit on a GPU if there is one, and write a weights file."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        start = time.perf_counter()
        with one_sentence_errors():
            self._check()
            dataset = get_dataset(self.data, self.split, **self.data_opt)
            check_values(dataset.image_shape, "a prior")
            images = load_images(dataset, self.images, self.workers).to(device)
            prior = self._fit(images)
            save_weights(self.dest, prior, self._summary(len(images)))
        seconds = time.perf_counter() - start
        print(f"{self.components} components fitted to {len(images)} images in {seconds:.0f} s")
        print(f"prior: {self.dest}")

    def _check(self) -> None:
        if self.dest.suffix != ".safetensors":
            raise ValueError(f"--dest {self.dest} must end in .safetensors")
        if self.dest.exists():
            raise ValueError(f"--dest {self.dest} is there already: remove it or choose another")
        check_folder(self.dest.parent)

    def _fit(self, images: Tensor) -> GaussianMixture:
        if self.components == 1:
            return fit_gaussian(images)
        title = f"expectation-maximisation, at most {_STEPS} steps"
        with tqdm(total=_STEPS, desc=title, unit="step") as bar:

            def progress(objective: float) -> None:
                bar.update()
                bar.set_postfix(nats=f"{objective:.3f}")

            return fit_mixture(images, self.components, self.seed, _STEPS, progress=progress)

    def _summary(self, count: int) -> dict[str, Any]:
        return {
            "data": self.data,
            "data_opt": {key: str(value) for key, value in self.data_opt.items()},
            "split": self.split,
            "images": count,
            "components": self.components,
            "seed": self.seed,
        }


def load_images(dataset: ImageDataset, most: int, workers: int = 0) -> Tensor:
    """The first images of a data set, all where there are fewer: `[n, C, h, w]` in [-1, 1]."""
    indices = range(min(most, len(dataset)))
    batches = [indices[i : i + _BATCH] for i in range(0, len(indices), _BATCH)]
    title, quiet = "images of the prior", distributed.rank() != 0
    with tqdm(total=len(indices), desc=title, unit="img", disable=quiet) as bar:
        parts = []
        for images, _ in load_batches(dataset, batches, workers):
            parts.append(to_float(images))
            bar.update(len(images))
    return torch.cat(parts)


def check_values(image_shape: tuple[int, int, int], wanted: str) -> None:
    """Raise ValueError where images are too large for a full covariance."""
    if torch.Size(image_shape).numel() > LIMIT:
        raise ValueError(
            f"{wanted} needs the full covariance of an image of at most {LIMIT} values: "
            f"{image_shape} is too large"
        )
