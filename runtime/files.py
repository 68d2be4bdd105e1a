"""Files that are written whole: under a temporary name in their folder, then renamed.

A reader, or a run that was cut short, never sees half of one.
"""

import contextlib
import fcntl
import hashlib
import importlib.util
import io
import json
import os
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from runtime.records import plain

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Name the file where an error of the system does not: that of a full disk, for one."""
    try:
        yield
    except OSError as error:
        if error.filename is not None:
            raise
        raise OSError(f"{path} cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A new temporary file beside `path` that takes its place if the block ends well."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise OSError(f"{path} cannot be written: {error.strerror}") from error
    try:
        with writing(path):
            yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def inside(package: str, file: str) -> Path | None:
    """The path of a file of a package, which is not imported; None if it is not installed."""
    spec = importlib.util.find_spec(package)
    return Path(spec.origin).parent / file if spec and spec.origin else None


def read_tensors(path: Path, key: str | None = None) -> tuple[dict[str, Tensor], str]:
    """The finite floating-point tensors, by name, of a .safetensors or torch.save file, beside
    whole numbers that count, and the SHA-256 of that file. No object is unpickled.

    key: the entry that holds them, of a file of several. Raises OSError, and ValueError if the file
    holds anything else.
    """
    data = path.read_bytes()
    try:
        if path.suffix == ".safetensors":
            state: Any = load(data)
        else:
            state = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise ValueError(
            f"{path} is damaged, or holds more than plain tensors, which would run code when read: "
            "save the state_dict() alone by torch.save"
        ) from error
    entries = ", ".join(map(str, state)) if isinstance(state, Mapping) else "no entries"
    if key is not None:
        state = state.get(key) if isinstance(state, Mapping) else None
    if not isinstance(state, Mapping) or not all(isinstance(v, Tensor) for v in state.values()):
        where = "no tensors by name" if key is None else f"no tensors in an entry '{key}'"
        raise ValueError(f"{path} holds {where}; it has {entries:.300}")
    counters = {name for name, v in state.items() if v.ndim == 0 and not v.is_floating_point()}
    check_floats(path, {name: v for name, v in state.items() if name not in counters})
    return dict(state), hashlib.sha256(data).hexdigest()


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Write a safetensors file, on the disk before it has its name. Raises OSError."""
    with replacing(path) as temporary:
        mode = temporary.stat().st_mode
        try:
            save_file(dict(tensors), temporary, dict(metadata))
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from error
        temporary.chmod(mode)  # as the umask has it: safetensors lets only the owner read
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())


def check_output(path: Path, option: str, suffix: str) -> None:
    """Raise ValueError if a file that is to be written ends in another suffix, or is there."""
    if os.path.lexists(path):
        raise ValueError(f"{option} {path} is there already: remove it or choose another")
    if path.suffix != suffix:
        raise ValueError(f"{option} {path} must end in {suffix}")
    check_folder(path.parent)


def check_folder(folder: Path) -> None:
    """Raise ValueError if a folder neither exists nor can be made."""
    parent = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not parent.is_dir() or not os.access(parent, os.W_OK):
        raise ValueError(f"cannot write into {folder}: {parent} is no folder that can be written")


@contextlib.contextmanager
def claimed(folder: Path, use: str) -> Iterator[None]:
    """Keep a folder, which is made, to this process until the block ends, however it does.

    use: what is done in it, in a message. Raises ValueError if another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    # Nothing is written into it: where it is somebody's file, that stays as it is.
    with path.open("a+b") as file:
        if not _locked(file, path):
            raise ValueError(f"another process {use} {folder}: wait for it, or end it")
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


def is_claimed(folder: Path) -> bool:
    """Whether another process has `claimed` a folder."""
    path = folder / ".lock"
    with contextlib.suppress(FileNotFoundError), path.open("r+b") as file:
        return not _locked(file, path)
    return False


def _locked(file: BinaryIO, path: Path) -> bool:
    """Lock an open file for this process alone (one that loads data and outlives it does not keep
    the lock); whether it was free, and is not removed meanwhile by who had it."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return os.path.samestat(os.fstat(file.fileno()), path.lstat())
    except (BlockingIOError, FileNotFoundError):
        return False
    except OSError as error:
        raise OSError(f"{path.parent} cannot be locked: {error}") from error


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
