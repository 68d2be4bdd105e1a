"""Tar shards behind a URL or a pipe, read from front to back while they arrive."""

import contextlib
import http.client
import itertools
import subprocess
import tarfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from datautils.fit import check_count
from datautils.names import is_picture
from datautils.shards import (
    NO_LABEL,
    Header,
    checked_name,
    expand,
    headers,
    is_sidecar,
    key_of,
    shard_paths,
    sidecar_label,
    tar_errors,
)
from datautils.streams import ImageStream, Record
from runtime.errors import DataError

_ATTEMPTS = 4  # of which a shard behind a URL is read before a run ends
_PAUSE = 2.0  # seconds before the second attempt; twice as long before each further one
_BUFFER = 2**18  # bytes
_TIMEOUT = 60.0  # seconds without a byte


class TarStream(ImageStream):
    """WebDataset shards that have no index: tar files, compressed or not, wherever they are.

    `path` is a URL (https://...), the output of a command (pipe:curl -s ...), a file or a folder of
    shards; {000..099} stands for all of these numbers. Held out are the first `heldout` images of
    `heldout_path`. A sample is the members of one key that follow one another; its label, from 0 to
    `num_classes` - 1, is that of its .cls or .json, and without `num_classes` labels are left out.
    A URL that breaks off is read again from where it was, a few times. On a disk,
    `datautils.imagedir.ImageDir` reads the same shards in any order.
    """

    def __init__(
        self,
        path: str,
        split: str = "train",
        *,
        heldout_path: str | None = None,
        heldout: int | None = None,
        size: int | None = None,
        crop: int | None = None,
        num_classes: int | None = None,
    ):
        super().__init__(split, heldout, size, crop)
        check_count("num_classes", num_classes)
        if split == "heldout" and heldout_path is None:
            raise ValueError("heldout_path must name the shards of the held-out images")
        self.path = str(heldout_path if split == "heldout" and heldout_path else path)
        self.num_classes = num_classes or 0
        self._urls = _urls(self.path)
        self.shards = len(self._urls)

    def records(self, shard: int, start: int = 0) -> Iterator[Record]:
        url = self._urls[shard]
        attempts = _ATTEMPTS if _is_remote(url) else 1
        failures = 0
        while True:
            try:
                found = _records(url, start, labelled=self.num_classes > 0)
                for record in itertools.islice(found, start, None):
                    yield record
                    start, failures = start + 1, 0
                return
            except _LastingError:
                raise
            except DataError:
                failures += 1
                if failures >= attempts:
                    raise
                time.sleep(_PAUSE * 2 ** (failures - 1))


class _LastingError(DataError):
    """A fault that another attempt would meet again."""


def _urls(path: str) -> list[str]:
    if _is_remote(path) or path.startswith("pipe:"):
        return expand(path)
    if "://" in path:
        raise DataError(
            f"{path} is no URL that is read here: give https://..., or pipe:COMMAND with a command "
            "that writes the shard"
        )
    found = shard_paths(Path(path)) or [Path(path)]
    for one in found:
        if one.is_dir():
            raise DataError(f"{one} is a folder without tar shards")
        if not one.exists():
            raise DataError(f"{one} is not there: it should be a tar shard")
    return [str(one) for one in found]


def _is_remote(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _records(url: str, start: int, labelled: bool) -> Iterator[Record]:
    """All records of a shard; of those before `start` the bytes are passed over.

    A sample is in memory until its last member has come; without labels only a picture is.
    """
    found = 0
    with (
        _opened(url) as stream,
        tar_errors(url),
        tarfile.open(fileobj=stream, mode="r|*", tarinfo=Header, bufsize=_BUFFER) as tar,
    ):
        samples = itertools.groupby(
            headers(url, tar), lambda info: key_of(info.name) if labelled else info.name
        )
        for _, infos in samples:
            pictures: list[tuple[str, bytes]] = []
            label = NO_LABEL
            for info in infos:
                name = checked_name(url, info)
                if is_picture(name):
                    found += 1
                    pictures.append((name, _data(tar, info) if found > start else b""))
                elif labelled and is_sidecar(name):
                    label = sidecar_label(name, _data(tar, info), label)
            for name, data in pictures:
                yield Record(data, f"{name} in {url}", label)


def _data(tar: tarfile.TarFile, info: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(info)
    data = file.read() if file else b""
    if len(data) != info.size:
        raise ValueError(f"{info.name} is cut off")
    return data


@contextlib.contextmanager
def _opened(url: str) -> Iterator[BinaryIO]:
    """The bytes of a shard. Raises DataError, _LastingError where it is no use to try again."""
    try:
        if url.startswith("pipe:"):
            with _output(url.removeprefix("pipe:")) as stream:
                yield stream
        elif _is_remote(url):
            with urllib.request.urlopen(url, timeout=_TIMEOUT) as response:
                yield response
        else:
            with open(url, "rb") as file:
                yield file
    except DataError:
        raise
    except ValueError as error:
        raise _LastingError(f"{url} is no URL: {error}") from None
    except urllib.error.HTTPError as error:
        kind = _LastingError if 400 <= error.code < 500 and error.code != 429 else DataError
        raise kind(f"{url} cannot be read: {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise DataError(f"{url} cannot be read: {reason}") from None


@contextlib.contextmanager
def _output(command: str) -> Iterator[BinaryIO]:
    """What a shell command writes; it is ended where not all of that is read."""
    # Without a buffer, so that a read returns what there is.
    with subprocess.Popen(command, shell=True, stdout=subprocess.PIPE, bufsize=0) as process:
        assert process.stdout
        try:
            yield process.stdout  # type: ignore[misc]
            process.stdout.read()  # what follows the end of an archive
            code = process.wait()
        except DataError:  # a shard that is cut off, perhaps because the command failed
            with contextlib.suppress(subprocess.TimeoutExpired):
                if code := process.wait(1):
                    raise DataError(f"pipe:{command} failed with exit code {code}") from None
            raise
        finally:
            process.kill()
        if code:
            raise DataError(f"pipe:{command} failed with exit code {code}")
