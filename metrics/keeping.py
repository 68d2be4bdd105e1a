"""Restorations in files: an evaluation that was cut off goes on from them, bit for bit."""

import hashlib
import inspect
import json
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

from safetensors import safe_open
from torch import Tensor

from degradation import Draws, Problem
from runtime.files import write_tensors

FOLDER = "restored"  # within a working folder
_ROOT = Path(__file__).resolve().parents[1]
_ROOMS = ("degradation", "networks", "samplers", "zero_shot")


class Costed(Protocol):
    """A method that says what an image of its last batch took, by the names of result files."""

    cost: dict[str, float]

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor: ...


def code_of(parts: Iterable[object]) -> str:
    """A digest of the code of this project and of the classes of these objects: restorations of
    a sampler that was edited meanwhile are other ones."""
    rooms = [path for room in _ROOMS for path in (_ROOT / room).rglob("*.py")]
    files = {*rooms, *(Path(inspect.getfile(type(part))) for part in parts)}
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.read_bytes())
    return digest.hexdigest()


class Kept:
    """A method whose batches are kept, each in a file named after all that it follows from.

    So a batch of other options, weights or images is never taken for this one, and files that
    nobody asks for do no harm. settings: what the method follows from besides the problem.
    """

    def __init__(self, method: Costed, folder: Path, settings: dict[str, Any]):
        self.method, self.folder = method, folder
        self.settings = json.dumps(settings, sort_keys=True, default=str)
        self.cost: dict[str, float] = {}
        """Of the last batch, and its seconds, also if they were spent by an earlier run."""
        self.seconds = 0.0

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        path = self.folder / f"{self._digest(problem, draws)}.safetensors"
        if path.exists():
            with safe_open(path, "pt") as file:
                record, x = json.loads(file.metadata()["record"]), file.get_tensor("x")
            self.cost, self.seconds = record["cost"], record["seconds"]
            return x.to(noise.device)
        start = time.perf_counter()
        x = self.method(problem, noise, draws)
        on_cpu = x.cpu()  # waits for the device
        self.cost, self.seconds = self.method.cost, time.perf_counter() - start
        record = json.dumps({"cost": self.cost, "seconds": self.seconds})
        write_tensors(path, {"x": on_cpu.contiguous()}, {"record": record})
        return x

    def _digest(self, problem: Problem, draws: Draws) -> str:
        digest = hashlib.sha256(self.settings.encode())
        labels = problem.class_labels
        for tensor in (problem.y, problem.noise_level, labels, draws.seeds):
            if tensor is not None:
                array = tensor.cpu().contiguous().numpy()
                digest.update(array.tobytes())
        return digest.hexdigest()
