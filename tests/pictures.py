"""Small pictures as files, and processes that are only said to be there."""

import io

import numpy as np
import pytest
from PIL import Image

from runtime import distributed


def png(value: int, size: tuple[int, int] = (4, 4)) -> bytes:
    """A picture of noise that follows from the value."""
    file = io.BytesIO()
    pixels = np.random.default_rng(value).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def play(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    monkeypatch.setattr(distributed, "rank", lambda: rank)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
