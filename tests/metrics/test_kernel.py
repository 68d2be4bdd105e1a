"""The kernel distance: the values of torch-fidelity, and features kept by their index."""

import numpy as np
import pytest
import torch
from detector_cases import Colours
from helpers import gaussian
from torchvision_on_cpu import declare_operators

from metrics import statistics
from metrics.detectors import Detector
from metrics.distances import kernel_distance, within
from metrics.statistics import FeatureStatistics, load_reference, save_reference

COLOURS = Detector("colours", "ab" * 32, 6, Colours(), torch.device("cpu"))


def pairwise(x: torch.Tensor, y: torch.Tensor) -> float:
    """The estimate as the paper writes it, a pair at a time."""

    def kernel(a, b):
        return (float(a @ b) / len(a) + 1) ** 3

    def mean(pairs):
        return sum(kernel(a, b) for a, b in pairs) / len(pairs)

    def different(z):
        return [(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]

    return mean(different(x)) + mean(different(y)) - 2 * mean([(a, b) for a in x for b in y])


def test_every_pair_counts_once(monkeypatch):
    x, y = gaussian(13, 5, seed=1), gaussian(9, 5, seed=2) + 0.3
    expected = pairwise(x, y)
    assert kernel_distance(x, y) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("metrics.distances._ROWS", 4)
    assert kernel_distance(x, y, within_y=within(y)) == pytest.approx(expected, rel=1e-12)


def test_it_is_kid_as_torch_fidelity_has_it():
    declare_operators()
    kid = pytest.importorskip("torch_fidelity.metric_kid")
    x, y = gaussian(200, 64, seed=1), gaussian(200, 64, seed=2) + 0.4

    def reference(subsets: int, size: int) -> tuple[float, float]:
        found = kid.kid_features_to_metric(
            x, y, kid_subsets=subsets, kid_subset_size=size, verbose=False
        )
        return tuple(found[f"kernel_inception_distance_{name}"] for name in ("mean", "std"))

    assert kernel_distance(x, y) == pytest.approx(reference(1, 200)[0], rel=1e-9)
    # Its subsets scatter around the value of all pairs.
    mean, deviation = reference(100, 50)
    assert abs(kernel_distance(x, y) - mean) < 4 * deviation / 10 < 0.3 * abs(mean)


def test_two_sets_of_one_distribution_are_at_0_on_average():
    found = [kernel_distance(*gaussian(2, 50, 8, seed=seed)) for seed in range(200)]
    assert abs(np.mean(found)) < 3 * np.std(found) / 200**0.5
    assert min(found) < 0


def test_features_are_kept_by_their_index(monkeypatch):
    features = gaussian(7, 3, dtype=torch.float32)
    order = torch.tensor([4, 2, 6, 0, 1, 5, 3])
    own = FeatureStatistics(keep=True)
    for batch in order.split(2):
        own.update(features[batch], batch)
    assert torch.equal(own.reduced(lambda v: v, 3).features, features)
    monkeypatch.setattr(statistics, "KEPT", 4)
    first = FeatureStatistics(keep=True)
    first.update(features[order], order)
    assert torch.equal(first.reduced(lambda v: v, 3).features, features[:4])


def test_a_reference_keeps_features_for_kernel_distances(tmp_path):
    images = torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8)
    mine, theirs = (FeatureStatistics(keep=True) for _ in "ab")
    mine.update(COLOURS(images[:5]), torch.arange(5))
    theirs.update(COLOURS(images[5:]), torch.arange(4))
    mine, theirs = (s.reduced(lambda v: v, 6) for s in (mine, theirs))
    save_reference(tmp_path / "ref.safetensors", {"colours": (theirs, COLOURS)}, {})
    reference = load_reference(tmp_path / "ref.safetensors")
    reference.check(COLOURS, 5, (3, 8, 8), kernel=True)  # any number of images will do
    found = reference.moments("colours").distance(mine, kernel=True)
    expected = kernel_distance(COLOURS(images[:5]), COLOURS(images[5:]))
    assert found == pytest.approx(expected, rel=1e-9)

    plain = FeatureStatistics()
    plain.update(COLOURS(images))
    moments = plain.reduced(lambda v: v, 6)
    save_reference(tmp_path / "old.safetensors", {"colours": (moments, COLOURS)}, {})
    with pytest.raises(ValueError, match=r"old\.safetensors has no features of single images"):
        load_reference(tmp_path / "old.safetensors").check(COLOURS, 9, (3, 8, 8), kernel=True)
