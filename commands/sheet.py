"""The folder of a restored photo: its pictures, a sheet of them all, and the figures."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from commands.photo import Task
from metrics.images import enhanced, picture, write_grid
from metrics.pixel import to_uint8
from metrics.results import write_metrics
from runtime.files import replacing
from samplers import Components

_CELL = 1024  # pixels of the longer side of a picture on the sheet, at most
_WHITE = 0.99  # share of the pixels whose deviation is not cut off in the picture


@dataclass
class Restored:
    """The images of one photo, `[·, 3, H, W]` in [-1, 1]."""

    samples: Tensor
    mmse: Tensor  # one, or none if it would repeat the only sample
    pinv: Tensor
    before: Tensor | None
    """Samples and MMSE estimate as they were before a projection onto Hx = y, if there was one."""
    baselines: dict[str, Tensor] = field(default_factory=dict)  # by title, one image each
    components: Components | None = None
    """Principal components of the posterior, as many as were asked for."""

    def images(self) -> dict[str, Tensor]:
        """Images `[3, H, W]` by the names of their files."""
        found = {f"sample-{i}": sample for i, sample in enumerate(self.samples, 1)}
        found |= zip(["mmse"], self.mmse, strict=False)
        found |= {title.lower(): images[0] for title, images in self.baselines.items()}
        return found | {"pinv": self.pinv[0]}

    @cached_property
    def deviation(self) -> tuple[Tensor, float] | None:
        """Standard deviation over the samples, root mean square over the colours, `[H, W]` in grey
        levels of 0 to 255, and the one that `std.png` shows white: one pixel in a hundred has more.
        None for a single sample."""
        if len(self.samples) < 2:
            return None
        levels = self.samples.clamp(-1, 1) * 127.5
        deviation = levels.var(0).mean(0).sqrt()
        values = deviation.flatten().sort().values
        return deviation, max(1.0, values[int(_WHITE * (len(values) - 1))].item())


def write_picture(path: Path, image: Tensor) -> None:
    """Write a uint8 picture `[C, h, w]` as PNG."""
    with replacing(path) as temporary:
        picture(image).save(temporary, format="PNG")


def write_restored(
    folder: Path,
    task: Task,
    restored: Restored,
    metrics: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> None:
    """Write all files of the folder."""
    pictures = _pictures(task, restored)
    titles = []
    for name, (title, image) in pictures.items():
        if name != "original":  # the user has it
            write_picture(folder / f"{name}.png", image)
        value = metrics["pictures"].get(name, {}).get("psnr")
        titles.append(title if value is None else f"{title} {value:.2f} dB")
    cells = [_small(image) for _, image in pictures.values()]
    write_grid(folder / "sheet.png", [cells], titles)
    if restored.components is not None:
        _write_components(folder / "components.png", restored.mmse[0], restored.components)
    write_metrics(folder, metrics, settings, name="restore.json")


def _pictures(task: Task, restored: Restored) -> dict[str, tuple[str, Tensor]]:
    """Title and uint8 picture `[C, h, w]` of each file of the folder, and of the original."""
    pictures = {}
    if task.truth is not None:
        pictures["original"] = "original", task.truth
    if task.measurement is not None:
        pictures["measurement"] = "measurement", to_uint8(task.measurement)
    images = restored.images()
    titles = {title.lower(): title for title in ("MMSE", *restored.baselines)} | {"pinv": "H†y"}
    for name in ("pinv", *(name for name in images if name != "pinv")):
        pictures[name] = titles.get(name, name.replace("-", " ")), to_uint8(images[name])
    if restored.deviation is not None:
        deviation, white = restored.deviation
        shown = (deviation / white * 255).round().clamp(0, 255).to(torch.uint8)[None]
        pictures["std"] = f"deviation, white = {white:.1f}", shown
    return {name: (title, image.cpu()) for name, (title, image) in pictures.items()}


def _write_components(path: Path, mean: Tensor, found: Components) -> None:
    """A row for each component: itself, and what the image might be along it (paper, Fig. 4)."""
    steps = {"mean − 2σ": -2, "mean − σ": -1, "mean": 0, "mean + σ": 1, "mean + 2σ": 2}
    rows = [
        [enhanced(component), *(to_uint8(mean + step * component) for step in steps.values())]
        for component in found.components[0]
    ]
    deviations = enumerate(found.deviations[0].tolist(), 1)
    labels = [f"component {k}\nσ = {deviation:.3g}" for k, deviation in deviations]
    cells = [[_small(image) for image in row] for row in rows]
    write_grid(path, cells, ["contrast enhanced", *steps], labels)


def _small(image: Tensor) -> Tensor:
    """A picture `[C, h, w]`, made smaller if it is larger than a cell of the sheet."""
    factor = min(1.0, _CELL / max(image.shape[1:]))
    if factor == 1:
        return image
    sides = [max(1, round(n * factor)) for n in image.shape[1:]]
    small = F.interpolate(image[None].float(), sides, mode="area")
    return small[0].round().to(torch.uint8)
