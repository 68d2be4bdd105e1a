"""Fetch a file from the web: checked before it is in place, never half there."""

import hashlib
import os
import urllib.request
from pathlib import Path
from typing import Any

from tqdm import tqdm

from metrics.results import replacing

_CHUNK = 1 << 20  # bytes
_TIMEOUT = 30.0  # seconds without an answer


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetch(
    url: str,
    dest: str | os.PathLike[str],
    sha256_prefix: str,
    *,
    timeout: float = _TIMEOUT,
    progress: bool = True,
) -> Path:
    """Download `url` to the file `dest`, whose SHA-256 must begin with `sha256_prefix`.

    The file gets its name only when it is complete and its checksum is right; until then an older
    one stays as it was. timeout: seconds that the server may be silent. Raises OSError when the
    file cannot be had or written, ValueError for another checksum; nothing is left behind then.
    """
    dest = Path(dest)
    with replacing(dest) as temporary:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            _copy(answer, temporary, dest.name, progress)
        found = sha256_of(temporary)
        if not found.startswith(sha256_prefix.lower()):
            raise ValueError(
                f"{url} gave a file whose SHA-256 begins with {found[: len(sha256_prefix)]} "
                f"instead of {sha256_prefix}: it was not kept"
            )
    return dest


def _copy(answer: Any, temporary: Path, title: str, progress: bool) -> None:
    """Write a server's answer to a file; OSError when it ends before its stated length."""
    length = answer.headers.get("Content-Length")
    total = int(length) if length is not None else None
    with (
        temporary.open("wb") as file,
        tqdm(total=total, unit="B", unit_scale=True, desc=title, disable=not progress) as bar,
    ):
        while chunk := answer.read(_CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
        received = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if total is not None and received != total:
        raise OSError(f"the connection ended after {received} of {total} bytes")
