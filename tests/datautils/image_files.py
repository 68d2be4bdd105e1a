"""Folders and zip files of small pictures, as the tests of the data sets write them."""

import json
import zipfile
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datautils.imagedir import ImageDir


def png(value: int = 0, size: tuple[int, int] = (4, 4)) -> bytes:
    """A picture of one colour that tells which one it is: (value, 2·value, 3·value) mod 256."""
    file = BytesIO()
    Image.new("RGB", size, tuple(k * value % 256 for k in (1, 2, 3))).save(file, "PNG")
    return file.getvalue()


def make(path: Path, files: Any, labels: Any = "no file", method: int = 0) -> Path:
    """A zip file or, if its name has no extension, a folder. files: names, or {name: bytes}."""
    if not isinstance(files, dict):
        files = {name: png(i) for i, name in enumerate(files)}
    if labels != "no file":
        files = files | {"dataset.json": json.dumps({"labels": labels}).encode()}
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w", method) as archive:
            for name, data in files.items():
                archive.writestr(name, data)
    else:
        for name, data in files.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
    return path


def labels_of(data: ImageDir) -> list[int]:
    return [label for _, label in data]  # type: ignore[attr-defined]


# ---- sizes and splits ----------------------------------------------------------------------------

TEN = [f"{i}.png" for i in range(10)]

# ---- labels --------------------------------------------------------------------------------------

PAIR = ["x/a.png", "y/b.png"]


def gradient(width: int, height: int) -> bytes:
    file = BytesIO()
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    Image.fromarray(values).save(file, "PNG")
    return file.getvalue()
