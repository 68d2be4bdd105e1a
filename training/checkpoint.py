"""Training state: a folder for each checkpoint, written whole or not at all.

`checkpoints/<images>/` holds `model`, `average` and `optimizer` as .safetensors and `state.json`
with the counters and the checksum of every file. The folder is written under a temporary name and
renamed; loading verifies the checksums and falls back to the checkpoint before.
"""

import hashlib
import json
import os
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

_STATE = "state.json"


@dataclass
class Progress:
    """Counters of a run."""

    images: int = 0
    step: int = 0
    seconds: float = 0.0
    skipped: int = 0
    broken: int = 0
    """Samples for which another stood in (`skip_broken`)."""
    position: list[list[int]] = field(default_factory=list)
    """Where the data set's stream goes on, if it is one."""
    scaler: dict[str, Any] = field(default_factory=dict)


def save_checkpoint(
    folder: Path,
    progress: Progress,
    model: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    keep: int,
) -> Path:
    """Write `folder/<images>` and remove all but the newest `keep` checkpoints."""
    final = folder / f"{progress.images:012d}"
    temporary = folder / f".{final.name}.partial"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    try:
        checksums = {}
        parts = {
            "model": model.state_dict(),
            "average": average.state_dict(),
            "optimizer": _flatten(optimizer.state_dict()["state"]),
        }
        for name, tensors in parts.items():
            path = temporary / f"{name}.safetensors"
            try:
                save_file({key: value.contiguous() for key, value in tensors.items()}, path)
            except SafetensorError as error:
                raise OSError(f"{path} cannot be written: {error}") from error
            _sync(path)
            checksums[path.name] = _checksum(path)
        state = temporary / _STATE
        record = {"progress": asdict(progress), "checksums": checksums}
        state.write_text(json.dumps(record | {"checksum": _record_checksum(record)}))
        _sync(state)
        if final.exists():
            shutil.rmtree(final)
        os.replace(temporary, final)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    _sync(folder)
    others = [path for path in list_checkpoints(folder) if path != final]
    for old in others[: max(0, len(others) + 1 - keep)]:
        shutil.rmtree(old)
    return final


def list_checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoint folders, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if path.name.isdigit())


def load_checkpoint(
    folder: Path, model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[Progress, list[str]]:
    """Load the newest sound checkpoint; returns its counters and a warning for each passed over.

    Raises ValueError where there is none.
    """
    warnings = []
    for path in reversed(list_checkpoints(folder)):
        try:
            state = json.loads((path / _STATE).read_text())
            if _record_checksum(state) != state["checksum"]:
                raise ValueError(f"{_STATE} is damaged")
            for name, expected in state["checksums"].items():
                if _checksum(path / name) != expected:
                    raise ValueError(f"{name} is damaged")
            parts = {
                name: load_file(path / f"{name}.safetensors")
                for name in ("model", "average", "optimizer")
            }
            progress = Progress(**state["progress"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            warnings.append(f"passing over checkpoint {path}: {error}")
            continue
        _fit(path, model, parts["model"])
        _fit(path, average, parts["average"])
        optimizer.load_state_dict(
            {
                "state": _unflatten(parts["optimizer"]),
                "param_groups": optimizer.state_dict()["param_groups"],
            }
        )
        return progress, warnings
    raise ValueError(f"{folder} holds no sound checkpoint to resume from")


def _fit(path: Path, module: nn.Module, tensors: dict[str, Tensor]) -> None:
    try:
        module.load_state_dict(tensors)
    except RuntimeError:
        raise ValueError(
            f"the checkpoint {path} belongs to a network of another architecture"
        ) from None


def _flatten(state: dict[int, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{i}/{key}": value for i, entry in state.items() for key, value in entry.items()}


def _unflatten(tensors: dict[str, Tensor]) -> dict[int, dict[str, Tensor]]:
    state: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        index, key = name.split("/")
        state.setdefault(int(index), {})[key] = value
    return state


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _record_checksum(state: dict[str, Any]) -> str:
    text = json.dumps([state["progress"], state["checksums"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
