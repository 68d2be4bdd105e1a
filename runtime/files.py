"""Files that are written whole: under a temporary name in their folder, then renamed.

A reader, or a run that was cut short, never sees half of one.
"""

import contextlib
import json
import math
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def regular(path: str | os.PathLike[str]) -> Path:
    """The path of a file to read. Raises OSError if a folder is there, or a pipe or a device, which
    would be waited for."""
    path = Path(path)
    if path.exists() and not path.is_file():
        raise OSError(f"{path} is no regular file")
    return path


def plain(value: Any) -> Any:
    """The value in what JSON knows: dicts, lists, strings, finite numbers, bools and null."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, Tensor | np.ndarray | np.generic):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path | torch.device | torch.dtype):
        return str(value)
    return value


def check_floats(source: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless the tensors of `source` are finite numbers of 16 to 64 bits."""
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise ValueError(
                f"'{name}' of {source} is of the type {kind}: it must be float16, bfloat16, "
                "float32 or float64"
            )
        if not tensor.isfinite().all():
            raise ValueError(f"'{name}' of {source} is not all finite")


def write_json(path: Path, value: Any) -> None:
    """Write a value as strict JSON, indented; see `plain` for what it may hold.

    Raises TypeError for a value of any other kind.
    """
    text = json.dumps(plain(value), indent=2, allow_nan=False, ensure_ascii=False)
    with replacing(path) as temporary:
        # A path may hold bytes that are no UTF-8: JSON has escapes for what Python makes of them.
        temporary.write_text(text + "\n", encoding="utf-8", errors="backslashreplace")
