"""What a run needs: weights, arithmetic and memory of each preset: `python -m benchmarks.scaling`.

Counted, not timed, on tensors without values: parameters; floating-point
operations of a forward pass and of one with backward (multiply-add = 2; matrix products and
convolutions alone, as torch counts them); bytes that autograd keeps of one image. Then the model is
held against this machine: a small network's step is timed, and predicted from the speed of a large
linear map. Prints tables, writes benchmarks/results/scaling.json.
"""

import contextlib
import json
import multiprocessing
import resource
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from degradation import Draws, GaussianNoise, MissingPatches
from networks import PRESETS, Denoiser, make_config
from networks.flops import operation_counter
from networks.products import linear
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table
from training.config import TrainConfig
from training.loss import DenoisingLoss
from training.trainer import Trainer

RESULTS = Path(__file__).parent / "results" / "scaling.json"
STATE = 20  # bytes a parameter: weights, gradients, two moments, one average, float32 each


class Kept:
    """Bytes that autograd keeps for the backward pass, each storage once."""

    def __init__(self, parameters: list[nn.Parameter]):
        self.known = {p.untyped_storage()._cdata for p in parameters}
        self.bytes = 0

    def pack(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self.known:
            self.known.add(storage._cdata)
            self.bytes += storage.nbytes()
        return tensor


def passes(preset: str, dtype: torch.dtype, batch: int) -> tuple[nn.Module, float, float, float]:
    """A loss, FLOP of forward and of both passes, and bytes kept in between, of one batch.

    The operator is a mask, whose own cost is next to nothing.
    """
    config = make_config(preset)
    operator = MissingPatches().sample(config.image_shape, None, range(batch))
    clean = torch.zeros(batch, *config.image_shape)
    problem = GaussianNoise(0.0).measure(operator, clean, Draws(range(batch)))
    with contextlib.ExitStack() as stack:
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        flops = stack.enter_context(operation_counter())
        module = DenoisingLoss(Denoiser(config)).train()
        kept = Kept(list(module.parameters()))
        with (
            torch.autograd.graph.saved_tensors_hooks(kept.pack, lambda tensor: tensor),
            torch.autocast("cpu", dtype, enabled=dtype != torch.float32),
        ):
            loss = module(clean, torch.ones(batch), clean, problem).sum()
        forward = flops.get_total_flops()
        loss.backward()
        return module, forward, flops.get_total_flops(), kept.bytes


def count(preset: str, dtype: torch.dtype) -> dict[str, Any]:
    """Counts of one image, and what a step keeps whatever its batch (weights in bf16)."""
    module, _, _, kept = passes(preset, dtype, 1)
    _, forward, both, more = passes(preset, dtype, 2)
    parameters = sum(p.numel() for p in module.parameters())
    return {
        "preset": preset,
        "dtype": str(dtype).removeprefix("torch."),
        "parameters": parameters,
        "state_gib": STATE * parameters / 2**30,
        "forward_gflop": forward / 2e9,
        "training_gflop": both / 2e9,
        "mib_an_image": (more - kept) / 2**20,
        "mib_a_step": (2 * kept - more) / 2**20,
    }


def product_speed() -> float:
    """GFLOP/s of a float32 linear map on this machine."""
    a = torch.randn(1536, 1536)
    seconds = []
    for _ in range(8):
        start = time.perf_counter()
        linear(a, a)
        seconds.append(time.perf_counter() - start)
    return 2 * 1536**3 / min(seconds) / 1e9


def measure(preset: str, batch: int, steps: int) -> dict[str, float]:
    """Seconds of a step, and the memory that training adds to the process, MiB."""
    torch.set_num_threads(1)
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    before = pages * resource.getpagesize() / 2**20
    config = TrainConfig(preset=preset, degradation="MissingPatches", batch=batch, precision="fp32")
    trainer = Trainer(config, Denoiser(make_config(preset)), MissingPatches(), torch.device("cpu"))
    side = trainer.denoiser.config.image_shape[-1]
    images, labels = torch.zeros(batch, 3, side, side, dtype=torch.uint8), torch.full((batch,), -1)
    seconds = []
    for _ in range(steps):
        start = time.perf_counter()
        trainer.step(images, labels, 0.0)
        seconds.append(time.perf_counter() - start)
    return {"seconds": min(seconds), "mib": peak() - before}


def peak() -> float:
    """Peak resident memory of this process, MiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Count every preset, then hold the model against this machine."""
    torch.set_num_threads(1)
    counts = [count(name, dtype) for name in PRESETS for dtype in (torch.float32, torch.bfloat16)]
    names = list(counts[0])
    print(table(names, [[row[name] for name in names] for row in counts]))
    speed, context, checks = product_speed(), multiprocessing.get_context("spawn"), []
    for preset, batch, steps in (("tiny", 256, 4), ("small32", 128, 4), ("FFHQ64", 2, 2)):
        own = next(c for c in counts if c["preset"] == preset and c["dtype"] == "float32")
        with context.Pool(1) as pool:
            found = pool.apply(measure, (preset, batch, steps))
        checks.append(
            {
                "preset": preset,
                "batch": batch,
                "seconds_at_product_speed": batch * own["training_gflop"] / speed,
                "seconds": found["seconds"],
                "mib_of_model": 1024 * own["state_gib"] + batch * own["mib_an_image"],
                "mib": found["mib"],
            }
        )
    names = list(checks[0])
    print(f"\nlarge linear map: {speed:.1f} GFLOP/s on one thread")
    print(table(names, [[row[name] for name in names] for row in checks]))
    with replacing(RESULTS) as path:
        record = {"counts": counts, "product_gflops": speed, "checks": checks}
        path.write_text(json.dumps(record | {"environment": environment()}, indent=2) + "\n")


if __name__ == "__main__":
    main()
