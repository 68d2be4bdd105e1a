"""Worst, median and best restorations: exact ends, a median that is near, bounded memory."""

import base64
import io
import math
import random

import torch
from PIL import Image

from metrics.examples import Examples, chosen, data_uri

KEY = "Box", "method"


def found(values: list[float], processes: int = 1) -> dict[str, int]:
    """The image of each place; image i has the i-th value."""
    shares = [Examples() for _ in range(processes)]
    for i, value in enumerate(values):
        image = torch.tensor(i)
        shares[i % processes].add(KEY, value, i, lambda image=image: {"original": image})
    assert all(len(kept) <= 16 for share in shares for kept in share.kept.values())
    places = chosen(shares, KEY)
    assert all(index == pictures["original"] for index, pictures in places.values())
    return {place: index for place, (index, _) in places.items()}


def test_few_images_are_ranked_exactly():
    assert found([3.0, 1.0, 2.0, 5.0, 4.0]) == {"worst": 1, "median": 0, "best": 3}
    assert found([7.0]) == {"worst": 0, "median": 0, "best": 0}


def test_of_many_images_the_ends_are_exact_and_the_median_is_near():
    draws = random.Random(0)
    values = [draws.gauss(20, 3) for _ in range(3000)]
    ranks = {index: rank for rank, index in enumerate(sorted(range(3000), key=values.__getitem__))}
    for processes in (1, 3):
        places = found(values, processes)
        assert ranks[places["worst"]] == 0 and ranks[places["best"]] == 2999
        assert abs(ranks[places["median"]] - 1500) < 60


def test_values_that_are_no_numbers_are_the_ends():
    values = [20.0] * 40 + [math.nan, math.inf] + [20.0 + i for i in range(40)]
    places = found(values)
    assert places["worst"] == 40 and places["best"] == 41 and values[places["median"]] == 20


def test_a_picture_is_in_its_address():
    image = torch.arange(48, dtype=torch.uint8).reshape(3, 4, 4)
    kind, _, code = data_uri(image).partition(";base64,")
    assert kind == "data:image/png"
    with Image.open(io.BytesIO(base64.b64decode(code))) as picture:
        assert picture.getpixel((1, 2)) == tuple(image[:, 2, 1].tolist())
