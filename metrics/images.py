"""Restored images as PNG files, encoded in threads of their own."""

import re
from pathlib import Path

from PIL import Image
from torch import Tensor

from metrics.pipeline import Stage
from runtime.files import writing


class ImageWriter(Stage):
    """Writes images below a folder while the caller goes on."""

    def __init__(self, folder: Path):
        super().__init__(self._write, depth=64, threads=2)
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def _write(self, name: str, image: Tensor) -> None:
        """Write a uint8 image `[C, h, w]` as `folder/name`."""
        if not self.folder.is_dir():  # another process has given up: nothing is to come back
            raise FileNotFoundError(f"the folder {self.folder} was removed")
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with writing(path):
            picture(image).save(path, compress_level=3)


def picture(image: Tensor) -> Image.Image:
    """A uint8 image `[C, h, w]`, C = 1 or 3, in RGB."""
    return Image.fromarray(image.cpu().expand(3, -1, -1).permute(1, 2, 0).contiguous().numpy())


def image_name(index: int, *folders: str) -> str:
    """Where image `index` is kept below folders named after a degradation and a method."""
    plain = [re.sub(r"[^A-Za-z0-9_]+", "-", f.replace("H†y", "pinv")).strip("-") for f in folders]
    return "/".join([*filter(None, plain), f"{index // 1000:05d}", f"{index:08d}.png"])
