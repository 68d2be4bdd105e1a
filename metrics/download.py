"""Fetch a file from the web: checked before it is in place, never half there."""

import contextlib
import fcntl
import hashlib
import http.client
import os
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from runtime.files import replacing

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
    one stays as it was, and one that is right is not fetched again. Of several processes that want
    it at once one downloads and the others wait for it. timeout: seconds that the server may be
    silent. Raises OSError when the file cannot be had or written, ValueError for another checksum;
    nothing is left behind then.
    """
    dest = Path(dest)
    prefix = sha256_prefix.lower()
    with _locked(dest):
        if not (dest.is_file() and sha256_of(dest).startswith(prefix)):
            with replacing(dest) as temporary:
                _download(url, temporary, dest.name, prefix, timeout, progress)
    return dest


def _download(
    url: str, temporary: Path, title: str, prefix: str, timeout: float, progress: bool
) -> None:
    try:
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            _copy(answer, temporary, title, progress)
    except http.client.HTTPException as error:
        text = str(error) or type(error).__name__
        raise OSError(f"{url} gave no whole answer: {text}") from error
    found = sha256_of(temporary)
    if not found.startswith(prefix):
        raise ValueError(
            f"{url} gave a file whose SHA-256 begins with {found[: len(prefix)]} instead of "
            f"{prefix}: it was not kept"
        )


@contextlib.contextmanager
def _locked(dest: Path) -> Iterator[None]:
    """Wait until no other process of this machine is inside for the same file.

    The lock file goes away with its first holder. Those who waited for it then go in together with
    whoever makes a new one, which is harmless: they find the file, or each downloads its own.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    path = dest.with_name(f"{dest.name}.lock")
    with path.open("w") as file:
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        try:
            yield
        finally:
            path.unlink(missing_ok=True)


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
