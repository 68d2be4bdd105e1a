"""Pipes and devices, which would be waited for, are refused by everything that reads a file."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from datautils.archive import open_archive
from datautils.decode import read_image, read_kernel, read_mask
from datautils.emoji import _pictures
from metrics.detectors import load_detector
from metrics.statistics import load_reference
from networks import load_weights, read_summary
from runtime.files import read_tensors

READERS: dict[str, Callable] = {
    "picture.png": read_image,
    "mask.png": read_mask,
    "kernel.png": read_kernel,
    "kernel.npy": read_kernel,
    "images.zip": open_archive,
    "emoji.tgz": lambda path: _pictures(path, "x"),
    "net.safetensors": load_weights,
    "summary.safetensors": read_summary,
    "theirs.pth": read_tensors,
    "ref.safetensors": load_reference,
    "ref.npz": load_reference,
    "detector.pt": lambda path: load_detector(f"own={path}"),
}


@pytest.mark.parametrize("name", list(READERS))
@pytest.mark.parametrize("kind", ["pipe", "device", "link to a pipe"])
def test_only_regular_files_are_read(tmp_path: Path, name: str, kind: str) -> None:
    path = tmp_path / name
    if kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to(tmp_path / "pipe")
    if kind == "pipe":
        (tmp_path / "pipe").rename(path)
    with pytest.raises((ValueError, OSError), match=f"{name}.* (is no regular file|is no file)"):
        READERS[name](path)
