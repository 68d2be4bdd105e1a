"""The built-in photos: what a crop is, and that it depends on (split, index) alone."""

import csv
import importlib.util
import io
import time
import zipfile
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from datautils import photos
from datautils.photos import Photos

REDISTRIBUTABLE = (
    "Public domain", "CC0-1.0", "CC-BY-2.0", "CC-BY-3.0", "CC-BY-4.0", "CC-BY-SA-4.0",
)  # fmt: skip


def test_items_have_the_promised_form():
    data = Photos(resolution=24, split="train", size=10)
    assert len(data) == 10
    assert data.image_shape == (3, 24, 24)
    assert data.num_classes == 0
    items = list(data)
    assert len(items) == 10
    for image, label in items:
        assert image.shape == data.image_shape
        assert image.dtype == torch.uint8
        assert label == -1


def test_default_sizes():
    assert len(Photos(split="train")) == 2**20
    assert len(Photos(split="heldout")) == 256


def test_a_crop_depends_on_split_and_index_alone():
    forward = [image for image, _ in Photos(size=40)]
    another = Photos(size=1000)
    for index in reversed(range(40)):
        assert torch.equal(another[index][0], forward[index])
    assert len({image.numpy().tobytes() for image in forward}) == 40


def test_crops_stay_the_same_over_versions():
    # Philox-4x64-10 by the published definition: counter (1, 0, 0, 0), key (7, 1). Pixels are not
    # compared, they may change by a level with another Pillow.
    known = [0.8824668302545412, 0.3690383346754841, 0.5170696944527113, 0.3317897507720009]
    assert photos._uniforms("heldout", 7)[:4] == pytest.approx(known, abs=1e-15)


def test_random_numbers_are_uniform_and_independent():
    u = np.array([photos._uniforms("train", i) for i in range(4000)])
    assert u.min() >= 0
    assert u.max() < 1
    assert np.abs(u.mean(0) - 0.5).max() < 0.02  # four standard errors
    assert np.abs(u.var(0) - 1 / 12).max() < 0.006
    correlation = np.corrcoef(np.concatenate([u[1:], u[:-1]], axis=1).T) - np.eye(8)
    assert np.abs(correlation).max() < 0.08


def test_the_file_of_training_photographs():
    with zipfile.ZipFile(photos.FREE_PHOTOS) as archive:
        names = [name for name in archive.namelist() if name != "credits.csv"]
        assert all(entry.compress_type == zipfile.ZIP_STORED for entry in archive.infolist())
        sizes = {n: Image.open(io.BytesIO(archive.read(n))).size for n in names}
    assert len(names) == 263
    assert sizes == photos._sizes("train")  # credits.csv says what the files hold
    assert max(max(size) for size in sizes.values()) == 704
    assert photos.FREE_PHOTOS.stat().st_size <= 12_000_000


def test_each_training_photograph_has_its_credits_beside_the_file():
    with zipfile.ZipFile(photos.FREE_PHOTOS) as archive:
        rows = list(csv.DictReader(io.StringIO(archive.read("credits.csv").decode())))
    text = photos.FREE_PHOTOS.with_name("freephotos-credits.md").read_text()
    lines = dict(line[2:-2].split(" | ", 1) for line in text.splitlines() if ".webp |" in line)
    assert len(lines) == 263
    for row in rows:
        source = row["source"]
        source = f"<{source}>" if source.startswith("https://") else source
        assert lines[row["file"]] == f"{row['licence']} | {row['author']} | {source}"
        assert row["licence"] in REDISTRIBUTABLE and row["author"] and source
    for licence in REDISTRIBUTABLE:
        count = sum(row["licence"] == licence for row in rows)
        assert f"\n| {licence} | {count} | " in text


def test_no_photograph_is_in_both_splits():
    train, heldout = Photos(split="train"), Photos(split="heldout")
    assert len(train._photos) == 263 and len(heldout._photos) == 7
    assert not set(train._photos) & set(heldout._photos)
    small = [thumbnails(data) for data in (train, heldout)]
    distances = (small[0][:, None] - small[1]).square().mean(-1).sqrt()
    assert distances.min() > 20  # grey levels: nor is a reduced copy


def test_every_held_out_file_is_a_colour_photograph():
    for file in photos.HELDOUT:
        pixels = np.asarray(photos._pyramid(file)[0]).astype(float)
        assert min(pixels.shape[:2]) >= 256
        assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 5


@pytest.mark.parametrize("split", ["train", "heldout"])
def test_crops_are_spread_evenly(split, monkeypatch):
    names = list(photos._sizes(split))
    shades = {name: (i % 256, i // 256, 0) for i, name in enumerate(names)}
    plain = {name: [Image.new("RGB", (64, 64), shade)] for name, shade in shades.items()}
    monkeypatch.setattr(photos, "_pyramid", plain.__getitem__)
    data = Photos(split=split, size=4 * len(names) + 2)
    found = Counter(tuple(image[:, 0, 0].tolist()) for image, _ in data)
    assert set(found) == set(shades.values())
    assert set(found.values()) == {4, 5}


def test_photographs_that_are_too_small_are_left_out():
    sides = [min(size) for size in photos._sizes("train").values()]
    for resolution in (64, 200, 400, 512):
        data = Photos(resolution)
        assert len(data._photos) == sum(side >= resolution for side in sides)
        assert data[1][0].shape == (3, resolution, resolution)
    assert len(Photos(400)._photos) < len(Photos(200)._photos) < 263
    assert len(Photos(400, "heldout")._photos) == 6


def test_sides_are_log_uniform_up_to_the_whole_photograph():
    sides = np.array([photos._log_uniform(u, 32, 512) for u in np.linspace(0, 1, 4001)[:-1]])
    assert sides.min() == 32
    assert sides.max() == 512
    for octave in range(4):
        inside = (sides >= 32 * 2**octave) & (sides < 64 * 2**octave)
        assert inside.mean() == pytest.approx(0.25, abs=0.01)


def test_a_crop_at_the_finest_scale_copies_pixels():
    rng = np.random.default_rng(0)
    levels = _pyramid_of(rng.integers(0, 256, (64, 64, 3), dtype=np.uint8))
    crop = photos._resized_crop(levels, left=7, top=20, side=32, resolution=32)
    assert np.array_equal(np.asarray(crop), np.asarray(levels[0])[20:52, 7:39])


@pytest.mark.parametrize("side", [48, 100, 131, 256, 300])
def test_the_pyramid_changes_little(side):
    """Against a resize of the full photograph, whose window has no level to come from."""
    levels = photos._pyramid("skimage/data/chelsea.png")
    crop = photos._resized_crop(levels, left=100, top=0, side=side, resolution=32)
    box = (100, 0, 100 + side, side)
    exact = levels[0].resize((32, 32), Image.Resampling.LANCZOS, box=box)
    difference = np.asarray(crop).astype(float) - np.asarray(exact)
    assert np.sqrt(np.square(difference).mean()) < 1.5


def test_half_of_the_training_crops_are_mirrored(monkeypatch):
    """On a ramp that rises to the right."""
    ramp = np.broadcast_to(np.arange(128, dtype=np.uint8)[:, None], (128, 128, 3))
    monkeypatch.setattr(photos, "_pyramid", lambda name: _pyramid_of(np.ascontiguousarray(ramp)))
    rises = {split: _rising(Photos(16, split, size=1000)) for split in ("train", "heldout")}
    assert rises["heldout"].all()
    assert 0.45 < rises["train"].float().mean() < 0.55
    for i in range(20):
        assert rises["train"][i] == (photos._uniforms("train", i)[3] >= 0.5)


def test_a_crop_is_that_part_of_its_photograph():
    """Crop 3 of the held-out ones, of coffee.png, by its formula: colours are not swapped."""
    u_side, u_left, u_top, _ = photos._uniforms("heldout", 3)
    with Image.open(photos._locate("skimage/data/coffee.png")) as photo:
        side = int(24 * (401 / 24) ** u_side)
        left, top = int(u_left * (600 - side + 1)), int(u_top * (400 - side + 1))
        part = photo.convert("RGB").crop((left, top, left + side, top + side))
    exact = np.asarray(part.resize((24, 24), Image.Resampling.LANCZOS)).astype(float)
    crop = Photos(24, "heldout")[3][0].permute(1, 2, 0).numpy()
    assert np.sqrt(np.square(crop - exact).mean()) < 3
    assert exact.mean((0, 1))[0] > exact.mean((0, 1))[2] + 10  # brown


def test_crops_have_the_statistics_of_photographs():
    crops = torch.stack([image for image, _ in Photos(32, size=2630)]).float()
    mean, deviation = crops.mean((0, 2, 3)), crops.std((0, 2, 3))
    assert ((mean > 105) & (mean < 150)).all()
    assert ((deviation > 55) & (deviation < 85)).all()


def test_works_in_a_loader_with_processes():
    data = Photos(size=8)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1)
    images = torch.cat([batch for batch, _ in loader])
    assert torch.equal(images, torch.stack([image for image, _ in data]))


def test_fast_enough_to_feed_training():
    data = Photos(resolution=32, split="heldout", size=300)
    list(data)  # decodes the photographs
    start = time.process_time()
    for index in range(300):
        data[index]
    assert 300 / (time.process_time() - start) > 1000  # about 9,000 a second on an idle core


def test_indices_outside_are_refused():
    data = Photos(size=3)
    for index in (3, -1):
        with pytest.raises(IndexError, match="of 3"):
            data[index]


def test_unknown_split_names_the_known_ones():
    with pytest.raises(ValueError, match="train, heldout"):
        Photos(split="test")


@pytest.mark.parametrize(("split", "largest"), [("train", 664), ("heldout", 512)])
def test_impossible_resolution_names_the_limit(split, largest):
    for resolution in (0, largest + 1, 16.5, "16"):
        with pytest.raises(ValueError, match=f"the {split} photos .* from 1 to {largest}"):
            Photos(resolution, split)  # type: ignore[arg-type]
    assert Photos(largest, split)[0][0].shape == (3, largest, largest)


@pytest.mark.parametrize("damaged", [False, True])
def test_a_missing_file_of_training_photographs_is_named(damaged, monkeypatch, tmp_path):
    path = tmp_path / "freephotos.zip"
    if damaged:
        path.write_bytes(b"no zip file")
    monkeypatch.setattr(photos, "FREE_PHOTOS", path)
    photos._sizes.cache_clear()
    with pytest.raises(ValueError, match=r"need .*freephotos\.zip, which is missing or damaged"):
        Photos()


def test_empty_size_is_refused():
    for size in (0, 2.5):
        with pytest.raises(ValueError, match=f"size must be an integer of at least 1, not {size}"):
            Photos(size=size)  # type: ignore[arg-type]


def test_missing_package_names_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --upgrade scikit-learn"):
        photos._locate("sklearn/datasets/images/china.jpg")


def test_package_without_the_file_names_what_to_install():
    with pytest.raises(ValueError, match="pip install --upgrade scikit-image"):
        photos._locate("skimage/data/absent.png")


def _pyramid_of(pixels):
    photo = Image.fromarray(pixels)
    return [photo, photo.reduce(2), photo.reduce(4)]


def _rising(data):
    return torch.stack([image[0, 0, -1].int() > image[0, 0, 0].int() for image, _ in data])


def thumbnails(data):
    """Grey [photographs, 64], contrast and brightness normalised."""
    rows = []
    for name in data._photos:
        small = photos._open(name).convert("L").resize((8, 8), Image.Resampling.BOX)
        grey = torch.from_numpy(np.asarray(small).astype(np.float32)).flatten()
        rows.append((grey - grey.mean()) / grey.std() * 60)
    return torch.stack(rows)
