"""Worst, median and best restorations, found while images pass by, as `examples.json`."""

import base64
import bisect
import io
import itertools
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from metrics.images import picture
from runtime.files import replacing

NAME = "examples.json"
_MOST = 16  # images that are kept of a method on a family

Key = tuple[str, str]  # degradation and method
Pictures = Mapping[str, Tensor]  # uint8 [C, h, w] by what they show
Example = tuple[float, int, Pictures]  # PSNR, image


class Examples:
    """Restorations of each family and method: the worst, the best, and those nearest to the median
    so far. At most 16 of each, so up to 16 images the median is exact, and of more it is near.

    values: all PSNRs, sorted; a restoration that is not finite is below all.
    """

    def __init__(self) -> None:
        self.values: dict[Key, list[float]] = {}
        self.kept: dict[Key, list[Example]] = {}

    def add(self, key: Key, psnr: float, index: int, pictures: Callable[[], Pictures]) -> None:
        """Take in a restoration; pictures: makes those to keep, called only if they may be."""
        value = -math.inf if math.isnan(psnr) else psnr
        values, kept = self.values.setdefault(key, []), self.kept.setdefault(key, [])
        bisect.insort(values, value)
        place = bisect.bisect(kept, (value, index), key=lambda example: example[:2])
        if len(kept) == _MOST:
            middle = values[len(values) // 2]
            far = [_distance(example[0], middle) for example in kept]
            farthest = max(range(1, _MOST - 1), key=far.__getitem__)
            if 0 < place < _MOST and _distance(value, middle) >= far[farthest]:
                return
            del kept[farthest]
            place -= farthest < place
        kept.insert(place, (value, index, pictures()))


def _distance(value: float, middle: float) -> float:
    return 0.0 if value == middle else abs(value - middle)


def chosen(shares: Sequence[Examples], key: Key) -> dict[str, tuple[int, Pictures]]:
    """The worst, the median and the best image of a method on a family, at least one, of the shares
    of all processes."""
    kept = sorted((e for s in shares for e in s.kept.get(key, [])), key=lambda e: e[:2])
    values = sorted(v for share in shares for v in share.values.get(key, []))
    middle = values[len(values) // 2]
    median = min(kept, key=lambda example: _distance(example[0], middle))
    found = {"worst": kept[0], "median": median, "best": kept[-1]}
    return {name: example[1:] for name, example in found.items()}


def write_examples(
    folder: Path, shares: Sequence[Examples], degradations: Sequence[str], methods: Sequence[str]
) -> None:
    """Write `folder/examples.json`: {degradation: {method: {"worst": {"image": its number, and
    pictures as data URIs}, ...}}}."""
    found: dict[str, dict[str, Any]] = {degradation: {} for degradation in degradations}
    for degradation, method in itertools.product(degradations, methods):
        found[degradation][method] = {
            place: {"image": index} | {name: data_uri(p) for name, p in pictures.items()}
            for place, (index, pictures) in chosen(shares, (degradation, method)).items()
        }
    with replacing(folder / NAME) as temporary:
        temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")


def data_uri(image: Tensor) -> str:
    """A uint8 image `[C, h, w]`, C = 1 or 3, as a PNG inside an address."""
    buffer = io.BytesIO()
    picture(image).save(buffer, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
