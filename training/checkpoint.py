"""Training state: a folder for each checkpoint, written whole or not at all.

`checkpoints/<images>/` holds a .safetensors file for each part (model, average, optimiser, averages
of other widths) and `state.json` with the counters and the checksum of every file. The folder is
written under a temporary name and renamed; loading verifies the checksums and falls back to the
checkpoint before. Nothing is ever unpickled.
"""

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from datautils.identity import Identity
from runtime.files import sha256_of, write_tensors
from runtime.records import parse_json, record

_STATE = "state.json"
_COUNT = "[0-9]" * 12
_UNFINISHED = (
    *(".config.yaml.*.tmp", ".log.jsonl.*.tmp", ".wandb-id.txt.*.tmp"),
    *(".weights.safetensors.*.tmp", f"snapshots/.{_COUNT}-*.tmp", f"sheets/.{_COUNT}.png.*.tmp"),
)

Parts = Mapping[str, Mapping[str, Tensor]]


@dataclass(frozen=True)
class Origin:
    """What a run was begun with: one that goes on with anything else would be another run."""

    settings: dict[str, Any]  # `TrainConfig.fixed`
    data: Identity


def check_origin(before: Origin, now: Origin) -> None:
    """Raise ValueError if a run goes on with other settings or images than it was begun with.

    Settings that only one of them has are of another version, and are passed over.
    """
    changes = [
        f"{name} is {now.settings[name]!r} in config.yaml, and was {value!r} in training"
        for name, value in before.settings.items()
        if name in now.settings and now.settings[name] != value
    ]
    if not changes and before.data != now.data:
        changes = [f"the data set has {now.data}, and the run was trained on {before.data}"]
    if changes:
        raise ValueError(
            f"{'; '.join(changes)}: set it back, or let the run go on as it is now with "
            "--accept-changes"
        )


@dataclass
class Progress:
    """Counters of a run."""

    images: int = 0
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0  # steps without finite gradients
    skipped_in_a_row: int = 0  # how many of them the last steps were
    broken: int = 0  # samples for which another stood in (`skip_broken`)
    scaler: dict[str, float] = field(default_factory=dict)
    meters: list[list[float]] = field(default_factory=list)  # of each process, since a report
    origin: Origin | None = None  # None in checkpoints of older versions


@dataclass
class _State:
    """The file state.json."""

    progress: Progress
    checksums: dict[str, str]


def save_checkpoint(
    folder: Path, progress: Progress, parts: Parts, keep: int, keep_every: int = 0
) -> Path:
    """Write `folder/<images>`, then remove the checkpoints that are `outdated`.

    Raises OSError that names the new checkpoint, of which nothing is left then.
    """
    final = folder / f"{progress.images:012d}"
    temporary = folder / f".{final.name}.partial"
    try:
        _remove(temporary)
        temporary.mkdir(parents=True)
        checksums = {}
        for name, tensors in parts.items():
            path = temporary / f"{name}.safetensors"
            write_tensors(path, {key: value.contiguous() for key, value in tensors.items()}, {})
            checksums[path.name] = sha256_of(path)
        state = temporary / _STATE
        values = {"progress": asdict(progress), "checksums": checksums}
        state.write_text(json.dumps(values))
        _sync(state)
        _sync(temporary)
        _remove(final)
        os.replace(temporary, final)
        _sync(folder)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(f"the checkpoint {final} cannot be written: {error}") from error
        raise
    there = list_checkpoints(folder)
    for images in outdated([int(p.name) for p in there], progress.images, keep, keep_every):
        _remove(folder / f"{images:012d}")
    return final


def outdated(images: Sequence[int], newest: int, keep: int, keep_every: int) -> list[int]:
    """The checkpoints that may go: neither `newest`, nor of the last `keep`, nor kept for good.

    The first one at or after each multiple of keep_every is kept for good; 0 keeps none so.
    """
    others = [n for n in sorted(images) if n != newest]
    old = others[: max(0, len(others) + 1 - keep)]
    later = [n for n in sorted(images, reverse=True) if keep_every and n >= keep_every]
    first = {n // keep_every: n for n in later}
    return [n for n in old if n not in first.values()]


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdecimal())


def find_checkpoint(folder: Path) -> tuple[Path, Progress, list[str]]:
    """The newest sound checkpoint, its counters, and a warning for each that is passed over.

    Raises ValueError if there is none.
    """
    warnings: list[str] = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = _read_state(path)
            for name, expected in state.checksums.items():
                if sha256_of(path / name) != expected:
                    raise ValueError(f"{name} is damaged")
            return path, state.progress, warnings
        except (OSError, ValueError) as error:
            warnings.append(f"passing over checkpoint {path}: {error}")
    reasons = "".join(f"; {warning}" for warning in warnings)
    raise ValueError(f"{folder} holds no sound checkpoint to resume from{reasons}")


def load_parts(path: Path) -> dict[str, dict[str, Tensor]]:
    """The parts by name of a checkpoint that `find_checkpoint` has found."""
    return {Path(name).stem: load_file(path / name) for name in _read_state(path).checksums}


def _read_state(path: Path) -> _State:
    """The record of a checkpoint. Raises ValueError if it is damaged, OSError if it is not read."""
    values = parse_json((path / _STATE).read_bytes())
    return record(_State, values, _STATE, others=True)


def clear_unfinished(run: Path) -> None:
    """Remove what a killed run has left of files and checkpoints that it wrote or removed.

    Unfinished files of other names stay: another command may be writing them into the folder.
    """
    for path in (run / "checkpoints").glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
    for pattern in _UNFINISHED:
        for path in run.glob(pattern):
            path.unlink(missing_ok=True)


class Background(AbstractContextManager):
    """Writes in a thread what was copied before, one task at a time.

    A failure is raised in the main thread, by the next call of any method or the end of the block.
    """

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, "checkpoint")
        self._task: Future | None = None
        self._host: dict[str, Tensor] = {}

    def copied(self, parts: Parts) -> Parts:
        """The parts on the CPU, in memory that the next call overwrites: it waits for the task."""
        self.wait()
        copies = {
            part: {name: self._copied(f"{part}/{name}", t) for name, t in tensors.items()}
            for part, tensors in parts.items()
        }
        if torch.cuda.is_initialized():
            torch.cuda.synchronize()
        return copies

    def _copied(self, key: str, tensor: Tensor) -> Tensor:
        if key not in self._host:
            self._host[key] = torch.empty_like(
                tensor, device="cpu", pin_memory=tensor.is_cuda, requires_grad=False,
                memory_format=torch.contiguous_format,
            )  # fmt: skip
        return self._host[key].copy_(tensor.detach(), non_blocking=True)

    def run(self, task: Callable[[], Any]) -> None:
        """Start a task, once the one before is done."""
        self.wait()
        self._task = self._pool.submit(task)

    def check(self) -> None:
        """Raise the failure of a task."""
        if self._task and self._task.done():
            self.wait()

    def wait(self) -> None:
        """Until the task is done."""
        task, self._task = self._task, None
        if task:
            task.result()

    def __exit__(self, *error: object) -> None:
        self.wait()


def _remove(path: Path) -> None:
    """Remove a folder: at any moment it is there whole, or no longer under its name."""
    if path.exists():
        aside = path.with_name(f".{path.name.strip('.')}.old")
        shutil.rmtree(aside, ignore_errors=True)
        os.replace(path, aside)
        shutil.rmtree(aside, ignore_errors=True)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
