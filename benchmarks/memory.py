"""What a training run needs, counted on tensors without values: `python -m benchmarks.memory`.

For each preset: parameters; operations of a forward pass and of both passes (matrix products and
convolutions alone, a multiply-add being two); bytes that autograd keeps of an image under a mask.
"""

from collections.abc import Sequence
from typing import Any

import click
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.report import benchmark
from degradation import Draws, GaussianNoise, LinearOperator, MissingPatches, Problem
from networks import PRESETS, Denoiser, make_config
from networks.attention import use_backend
from networks.precision import DTYPES
from runtime.tables import table
from training.loss import DenoisingLoss

STATE = 20  # bytes a parameter: weights, gradients, two moments, one average, float32 each


def passes(preset: str, precision: str, batch: int) -> tuple[int, float, float, float]:
    """Parameters, operations forward and in both passes, bytes kept in between: of one batch."""
    config = make_config(preset)
    operator = MissingPatches().sample(config.image_shape, None, range(batch))
    clean = torch.zeros(batch, *config.image_shape)
    problem = GaussianNoise(0.0).measure(operator, clean, Draws(range(batch)))
    kept: dict[int, int] = {}  # bytes of each storage

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes()
        return tensor

    with FakeTensorMode(allow_non_fake_inputs=True), FlopCounterMode(display=False) as counter:
        module = DenoisingLoss(Denoiser(config)).train()
        with (
            torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
            torch.autocast("cpu", DTYPES[precision], precision != "fp32"),
        ):
            loss = module(clean, torch.ones(batch), clean, problem).sum()
        forward = counter.get_total_flops()
        loss.backward()
        for parameter in module.parameters():  # there anyway
            kept.pop(parameter.untyped_storage()._cdata, None)
        parameters = sum(p.numel() for p in module.parameters())
        return parameters, forward, counter.get_total_flops(), sum(kept.values())


def count(preset: str, precision: str) -> dict[str, Any]:
    """Counts of one image, and what a step keeps whatever its batch (weights in bf16)."""
    *_, kept = passes(preset, precision, 1)
    parameters, forward, both, more = passes(preset, precision, 2)
    return {
        "preset": preset, "precision": precision, "parameters": parameters,
        "state_gib": STATE * parameters / 2**30,
        "forward_gflop": forward / 2e9, "training_gflop": both / 2e9,
        "mib_an_image": (more - kept) / 2**20, "mib_a_step": (2 * kept - more) / 2**20,
    }  # fmt: skip


@torch.no_grad()
def products(denoiser: Denoiser, operator: LinearOperator) -> int:
    """Floating-point operations of the matrix products in a forward pass of a batch."""
    x = torch.zeros(len(operator), *operator.image_shape, device=operator.rows.device)
    problem = Problem(operator, operator.H(x))
    counter = FlopCounterMode(display=False)
    with counter, use_backend("tiled"), sdpa_kernel(SDPBackend.MATH):  # as products, which it sees
        denoiser(x, 2.0, problem)
    return counter.get_total_flops()


@benchmark()
@click.option("--preset", "presets", type=click.Choice(list(PRESETS)), multiple=True)
def main(presets: Sequence[str]) -> Any:
    """Count what training needs: all presets, or those that are named."""
    counts = [count(p, precision) for p in presets or PRESETS for precision in ("fp32", "bf16")]
    return table(list(counts[0]), [list(c.values()) for c in counts]), {"counts": counts}


if __name__ == "__main__":
    main()
