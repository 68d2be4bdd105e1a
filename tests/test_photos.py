"""The built-in photos: what a crop is, and that it depends on (split, index) alone."""

import importlib.util
import time

import numpy as np
import pytest
import torch
from PIL import Image

from datautils import photos
from datautils.photos import Photos


def test_items_have_the_promised_form():
    data = Photos(resolution=24, split="train", size=10)
    assert len(data) == 10
    assert data.image_shape == (3, 24, 24)
    assert data.num_classes == 0
    assert data.name == "photos24-train"
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
    correlation = np.corrcoef(np.concatenate([u[1:], u[:-1]], axis=1).T) - np.eye(20)
    assert np.abs(correlation).max() < 0.08


def test_no_photograph_is_in_both_splits():
    names = {split: {f.split("_")[0] for f in files} for split, files in photos._SPLITS.items()}
    assert not names["train"] & names["heldout"]
    assert len(names["train"]) >= 4
    assert len(names["heldout"]) >= 2


def test_every_file_is_a_colour_photograph():
    for files in photos._SPLITS.values():
        for file in files:
            pixels = np.asarray(photos._pyramid(file)[0]).astype(float)
            assert min(pixels.shape[:2]) >= 256
            assert np.abs(pixels[..., 0] - pixels[..., 2]).mean() > 5


def test_heldout_crops_are_spread_evenly(monkeypatch):
    monkeypatch.setattr(photos, "_pyramid", _plain_colours("heldout"))
    data = Photos(split="heldout")
    shades = torch.tensor([int(image[0, 0, 0]) for image, _ in data])
    counts = shades.unique(return_counts=True)[1]
    assert len(counts) == len(photos._SPLITS["heldout"])
    assert counts.max() - counts.min() <= 1


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


@pytest.mark.parametrize(
    ("number", "value", "expected"),
    [
        (0, 0.4, lambda x: x.flip(-1)),
        (1, 0.4, lambda x: x.flip(-2)),
        (2, 0.4, lambda x: x.mT),
        (3, 0.99, lambda x: x.flip(0)),
        (4, 0.4, lambda x: 255 - x),
        (5, 0.75, lambda x: ((x.float() - 127.5) * 2**0.5 + 128).clamp(0, 255).byte()),
        (6, 0.75, lambda x: (x.float() + 127.5 * 0.3 + 0.5).clamp(0, 255).byte()),
    ],
)
def test_each_variation_does_what_it_says(number, value, expected):
    u = [0.6, 0.6, 0.6, 0.0, 0.6, 0.5, 0.5]  # nothing changes
    pixels = Photos(augment=False)[3][0]
    torch.testing.assert_close(photos._vary(pixels, u), pixels, atol=1, rtol=0)
    u[number] = value
    varied, wanted = photos._vary(pixels, u), expected(pixels)
    torch.testing.assert_close(varied.int(), wanted.int(), atol=1, rtol=0)
    assert not torch.equal(wanted, pixels)


def test_variation_keeps_the_place_of_the_crop():
    plain, varied = Photos(augment=False), Photos()
    assert not torch.equal(plain[0][0], varied[0][0])
    mean = torch.stack([varied[i][0].float().mean() for i in range(400)]).mean()
    assert 110 < mean < 145  # negation makes dark and bright equally frequent


def test_only_training_varies_by_default():
    assert Photos(split="train").augment
    assert not Photos(split="heldout").augment


def test_works_in_a_loader_with_processes():
    data = Photos(size=8)
    loader = torch.utils.data.DataLoader(data, batch_size=4, num_workers=1)
    images = torch.cat([batch for batch, _ in loader])
    assert torch.equal(images, torch.stack([image for image, _ in data]))


def test_fast_enough_to_feed_training():
    data = Photos(resolution=32)
    data[0]
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


@pytest.mark.parametrize("resolution", [0, 301, 16.5, "16"])
def test_impossible_resolution_names_the_limit(resolution):
    with pytest.raises(ValueError, match="from 1 to 300"):
        Photos(resolution=resolution, split="heldout")


def test_an_augmentation_that_is_none_is_refused():
    with pytest.raises(ValueError, match="augment must be true or false, not 'perhaps'"):
        Photos(augment="perhaps")  # type: ignore[arg-type]


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


def _plain_colours(split):
    """A stand-in for `_pyramid`: each photograph of the split is one shade of grey."""
    files = photos._SPLITS[split]
    return lambda file: [Image.new("RGB", (64, 64), (40 * (files.index(file) + 1),) * 3)]
