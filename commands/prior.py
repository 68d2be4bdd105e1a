"""`calculate_metrics.py prior`: fit a Gaussian, or a mixture of several, to a data set."""

import time

import torch
from torch import Tensor

from commands.options import PriorOptions
from datautils import get_dataset
from metrics.dataset import check_values, load_images
from networks import GaussianMixture, fit_gaussian, fit_mixture, save_weights
from runtime.errors import one_sentence_errors
from runtime.files import check_output
from runtime.progress import progress

_STEPS = 100


def write_prior(options: PriorOptions) -> None:
    """Fit on a GPU if there is one, and write a weights file."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    start = time.perf_counter()
    with one_sentence_errors():
        check_output(options.dest, "--dest", ".safetensors")
        dataset = get_dataset(options.data, options.split, **options.data_opt)
        check_values(dataset.image_shape, "a prior")
        images = load_images(dataset, options.images, options.workers).to(device)
        prior = _fit(images, options.components, options.seed)
        kept = ("data", "data_opt", "split", "components", "seed")
        summary = {name: getattr(options, name) for name in kept} | {"images": len(images)}
        save_weights(options.dest, prior, summary)
    seconds = time.perf_counter() - start
    print(f"{options.components} components fitted to {len(images)} images in {seconds:.0f} s")
    print(f"prior: {options.dest}")


def _fit(images: Tensor, components: int, seed: int) -> GaussianMixture:
    if components == 1:
        return fit_gaussian(images)
    title = f"expectation-maximisation, at most {_STEPS} steps"
    with progress(_STEPS, title, "steps") as bar:

        def report(objective: float) -> None:
            bar.set_postfix(nats=f"{objective:.3f}", refresh=False)
            bar.update()

        return fit_mixture(images, components, seed, _STEPS, progress=report)
