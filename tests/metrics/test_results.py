"""What an evaluation leaves behind can be read back, and is whole or absent."""

import csv
import importlib.util
import json
import math
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from metrics.evaluate import Group
from metrics.images import write_grid
from metrics.results import PartialRecords, write_merged, write_metrics
from runtime.files import replacing


def strict_json(path):
    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)


def shade(value, *shape):
    return torch.full(shape, value, dtype=torch.uint8)


def test_metrics_are_strict_json(tmp_path):
    metrics = {
        "psnr": {"mean": 21.5, "standard_error": math.nan, "count": 3},
        "worst": torch.tensor([1.5, math.inf]),
        "exact": np.float64("-inf"),
    }
    settings = {"folder": Path("a/b"), "dtype": torch.float32, "sides": (1, 2), 3: None}
    write_metrics(tmp_path / "run", metrics, settings)
    record = strict_json(tmp_path / "run" / "metrics.json")
    assert record["metrics"] == {
        "psnr": {"mean": 21.5, "standard_error": None, "count": 3},
        "worst": [1.5, None],
        "exact": None,
    }
    assert record["settings"] == {
        "folder": "a/b",
        "dtype": "torch.float32",
        "sides": [1, 2],
        "3": None,
    }
    assert record["environment"]["torch"] == torch.__version__


def test_a_value_json_cannot_hold_is_refused_and_leaves_the_old_file(tmp_path):
    write_metrics(tmp_path, {"fid": 1.0}, {})
    with pytest.raises(TypeError):
        write_metrics(tmp_path, {"fid": object()}, {})
    assert strict_json(tmp_path / "metrics.json")["metrics"] == {"fid": 1.0}
    assert os.listdir(tmp_path) == ["metrics.json"]


def rows_of(folder, *psnrs):
    """The file of a process with these values."""
    path = folder / "parts" / "0.csv"
    with PartialRecords(path, ["psnr"]) as records:
        group = Group('a,"b"', None, [*range(len(psnrs))], [0] * len(psnrs), 0)
        records.add(group, "H†y", {"psnr": psnrs})
    return path


def test_per_image_values_read_back(tmp_path):
    part = rows_of(tmp_path, 21.123456789012345, math.inf)
    write_merged(tmp_path / "per_image.csv", [part], ['a,"b"'], ["psnr"])
    with (tmp_path / "per_image.csv").open(newline="", encoding="utf-8") as file:
        first, second = csv.DictReader(file)
    assert list(first) == ["degradation", "image", "structure", "method", "psnr"]
    assert (first["degradation"], first["method"], second["image"]) == ('a,"b"', "H†y", "1")
    assert float(first["psnr"]) == 21.123456789012345
    assert float(second["psnr"]) == math.inf


def test_a_failed_write_keeps_the_old_file_and_nothing_else(tmp_path):
    path, part = tmp_path / "per_image.csv", rows_of(tmp_path, 1.0, 2.0)
    write_merged(path, [part], ['a,"b"'], ["psnr"])
    before = path.read_text()
    part.write_text(before.replace("2.0", "cut short"))
    with pytest.raises(ValueError, match="cut short"):
        write_merged(path, [part], ['a,"b"'], ["psnr"])
    assert path.read_text() == before
    assert sorted(os.listdir(tmp_path)) == ["parts", "per_image.csv"]


def test_readers_never_see_an_unfinished_file(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    with replacing(path) as temporary:
        temporary.write_text("half")
        assert temporary.parent == tmp_path  # a rename across file systems is no single step
        assert path.read_text() == "old"
    assert path.read_text() == "half"


def test_a_written_file_has_the_usual_permissions(tmp_path):
    (tmp_path / "plain").write_text("")
    write_merged(tmp_path / "per_image.csv", [rows_of(tmp_path, 1.0)], ['a,"b"'], ["psnr"])
    modes = {os.stat(tmp_path / name).st_mode for name in ("plain", "per_image.csv")}
    assert len(modes) == 1


def test_paths_that_are_no_utf8_are_written(tmp_path):
    path = Path(os.fsdecode(b"out-\xff"))
    write_metrics(tmp_path, {}, {"outdir": path})
    record = json.loads((tmp_path / "metrics.json").read_text())
    assert record["settings"]["outdir"] == str(path)


def blocks(path, colour):
    """Bounding box (left, top, right, bottom) of the pixels of one colour, and their number."""
    mask = (np.asarray(Image.open(path)) == colour).all(-1)
    ys, xs = mask.nonzero()
    return (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1), int(mask.sum())


def test_grid_enlarges_by_whole_factors(tmp_path):
    image = shade(0, 3, 32, 32)
    image[0] = 200
    image[:, 3, 5] = torch.tensor([9, 99, 199], dtype=torch.uint8)
    path = tmp_path / "grid.png"
    write_grid(path, [[image]], ["original"])
    (left, top, right, bottom), count = blocks(path, (200, 0, 0))
    assert (right - left, bottom - top) == (128, 128)
    assert count == 128 * 128 - 16
    (x, y, x2, y2), count = blocks(path, (9, 99, 199))
    assert (x - left, y - top, x2 - x, y2 - y, count) == (5 * 4, 3 * 4, 4, 4, 16)


def test_grid_places_rows_and_columns(tmp_path):
    colours = [[(250, 10 * i, 10 * j) for j in range(3)] for i in range(2)]
    rows = [[torch.tensor(c, dtype=torch.uint8).view(3, 1, 1).expand(3, 64, 64) for c in row]
            for row in colours]  # fmt: skip
    path = tmp_path / "grid.png"
    write_grid(path, rows, ["a", "b", "c"], ["seed 1\n21.5 dB", "seed 2"])
    boxes = [[blocks(path, c)[0] for c in row] for row in colours]
    for row in boxes:
        assert len({box[1] for box in row}) == 1
        assert row[0][2] < row[1][0] < row[1][2] < row[2][0]
    for column in zip(*boxes, strict=True):
        assert len({box[0] for box in column}) == 1
        assert column[0][3] < column[1][1]


def test_grid_labels_stand_left_of_the_images(tmp_path):
    path = tmp_path / "grid.png"
    write_grid(path, [[shade(255, 3, 8, 8)]], [""], [""])
    bare = np.asarray(Image.open(path))
    write_grid(path, [[shade(255, 3, 8, 8)]], [""], ["seed 1\n21.5 dB"])
    labelled = np.asarray(Image.open(path))
    margin = labelled.shape[1] - bare.shape[1]
    assert (labelled[:, :margin] < 128).any()
    assert (labelled[:, margin:] > 200).all()


def test_grid_takes_smaller_grey_and_missing_images(tmp_path):
    path = tmp_path / "grid.png"
    large, small = shade(201, 3, 64, 64), shade(101, 1, 10, 20)
    write_grid(path, [[large, small, None]], ["", "", ""])  # no grey letters
    box, count = blocks(path, (101, 101, 101))
    assert (box[2] - box[0], box[3] - box[1], count) == (120, 60, 7200)  # the factor is 6
    assert blocks(path, (201, 201, 201))[1] == 128 * 128


def test_grid_keeps_large_images_as_they_are(tmp_path):
    path = tmp_path / "grid.png"
    write_grid(path, [[shade(77, 3, 200, 300)]], [""])
    assert blocks(path, (77, 77, 77))[1] == 200 * 300


def test_grid_titles_stay_in_their_columns(tmp_path):
    path = tmp_path / "grid.png"
    long = "unreasonablylongnameofamethod with a good many words that have to be wrapped"
    images = [shade(255, 3, 64, 64), shade(255, 3, 64, 64)]
    images[0][0], images[1][1] = 0, 0
    write_grid(path, [images], [long, long])
    pixels = np.asarray(Image.open(path))
    first, second = (blocks(path, c)[0] for c in [(0, 255, 255), (255, 0, 255)])
    header = pixels[: first[1]].min(-1)
    assert (header < 128).any()
    assert header[[0, -1]].min() == 255
    assert header[:, [0, -1]].min() == 255
    middle = (first[2] + second[0]) // 2
    assert (header[:, :middle] < 128).any()
    assert (header[:, middle - 2 : middle + 2] > 200).all()  # white between the two titles


def test_grid_titles_can_be_mathematics(tmp_path):
    pictures = set()
    for i, title in enumerate("†×σ"):  # a font without them draws the same box for all
        write_grid(tmp_path / f"{i}.png", [[shade(0, 3, 8, 8)]], [title])
        pictures.add(np.asarray(Image.open(tmp_path / f"{i}.png")).tobytes())
    assert len(pictures) == 3


def test_grid_does_without_matplotlib(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    write_grid(tmp_path / "grid.png", [[shade(255, 3, 8, 8)]], ["title"])
    assert (np.asarray(Image.open(tmp_path / "grid.png")) < 128).any()
