"""Restorations in files: an evaluation that was cut off goes on from them, bit for bit."""

import contextlib
import hashlib
import inspect
import json
import time
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from degradation import Draws, Problem
from metrics.evaluate import Restore
from runtime.files import write_tensors

FOLDER = "restored"  # within a working folder
_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("degradation", "networks", "samplers", "zero_shot")


def code_of(parts: Iterable[object]) -> str:
    """A digest of the code of this project and of the classes of these objects: restorations of
    a sampler that was edited meanwhile are other ones."""
    rooms = [path for room in _ROOMS for path in (_ROOT / room).rglob("*.py")]
    files = {*rooms, *(Path(inspect.getfile(type(part))) for part in parts)}
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()


class Kept:
    """A method whose batches are kept, each in a file named after all that it follows from.

    So a batch of other options, weights, operators or images is never taken for this one, and files
    that nobody asks for do no harm. settings: what the method follows from besides the problem.
    """

    def __init__(self, method: Restore, folder: Path, settings: dict[str, Any]):
        self.method, self.folder = method, folder
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.cost: dict[str, float] = {}  # of the last batch
        self.seconds = 0.0  # of the last batch, also if an earlier run spent them
        self.found = 0  # batches of an earlier run that were used

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        path = self.folder / f"{self._digest(problem, noise, draws)}.safetensors"
        with contextlib.suppress(OSError, SafetensorError):  # not there, or damaged
            with safe_open(path, "pt") as file:
                record, x = json.loads(file.metadata()["record"]), file.get_tensor("x")
            self.cost, self.seconds = record["cost"], record["seconds"]
            self.found += 1
            return x.to(noise.device)
        start = time.perf_counter()
        x = self.method(problem, noise, draws)
        on_cpu = x.cpu()  # waits for the device
        self.cost = getattr(self.method, "cost", {})
        self.seconds = time.perf_counter() - start
        record = json.dumps({"cost": self.cost, "seconds": self.seconds})
        try:
            write_tensors(path, {"x": on_cpu.contiguous()}, {"record": record})
        except OSError as error:  # Python shows a warning once
            warnings.warn(f"restorations are not kept: {error}", stacklevel=2)
        return x

    def _digest(self, problem: Problem, noise: Tensor, draws: Draws) -> str:
        """Operators are told apart by what they do to the noise."""
        digest = hashlib.sha256(self.settings.encode())
        image = problem.degradation.H(noise.to(problem.y.dtype))
        labels = problem.class_labels
        for tensor in (problem.y, image, problem.levels, labels, draws.seeds):
            if tensor is not None:
                digest.update(tensor.cpu().numpy().tobytes())
        return digest.hexdigest()
