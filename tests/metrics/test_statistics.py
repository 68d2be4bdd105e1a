"""Statistics of features do not depend on their order; their files say what they are of.

`test_agrees_with_recorded_values` compares with recorded values of an independent implementation,
and is skipped without them; `test_independent_of_the_batches` checks the same by torch.cov.
"""

import io
import json
import pickle
import resource
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from helpers import gaussian
from safetensors import safe_open
from safetensors.torch import save_file

from metrics.detectors import Detector
from metrics.distances import frechet_distance
from metrics.statistics import METADATA_KEY, FeatureStatistics, load_reference, save_reference

PROVENANCE = {"image_shape": [3, 64, 64], "data": "datautils.photos.Photos", "split": "heldout"}


def gathered(features, batch):
    statistics = FeatureStatistics()
    for part in features.split(batch):
        statistics.update(part)
    return statistics


def moments_of(features, batch):
    """Those of one process."""
    return gathered(features, batch).reduced(lambda value: value, features.shape[1])


def detector(name="own", sha256="ab" * 32, features=6):
    return Detector(name, sha256, features, lambda images: images, torch.device("cpu"))


def reduced(shares, features):
    """The moments of all shares, as their processes have them."""
    meeting, sent = threading.Barrier(len(shares)), {}

    def of(share):
        def sum_tensor(value):  # in place, as all_reduce
            sent[id(share)] = value.clone()
            meeting.wait(10)
            total = sum(sent[id(other)] for other in shares)
            meeting.wait(10)
            return value.copy_(total)

        return share.reduced(sum_tensor, features)

    with ThreadPoolExecutor(len(shares)) as pool:
        return list(pool.map(of, shares))


@pytest.fixture
def saved(tmp_path):
    """A reference of 30 images for two detectors, and the statistics in it."""
    statistics = moments_of(gaussian(30, 6), 7)
    wide = moments_of(gaussian(30, 9, seed=1), 7)
    path = tmp_path / "refs" / "faces.safetensors"
    entries = {
        "own": (statistics, detector()),
        "other": (wide, detector("other", "cd" * 32, 9)),
    }
    save_reference(path, entries, PROVENANCE)
    return path, statistics


def test_agrees_with_recorded_values(golden):
    case = golden("metrics")
    statistics = moments_of(case["feat"], 7)
    torch.testing.assert_close(statistics.mean, case["feat_mu"], rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.covariance, case["feat_sigma"], rtol=1e-11, atol=1e-12)


def test_independent_of_the_batches():
    features = (3 + gaussian(200, 12)).float()
    expected = moments_of(features, 200)
    torch.testing.assert_close(expected.covariance, torch.cov(features.double().mT))
    for batch in (1, 7, 64):
        other = moments_of(features[torch.randperm(200)], batch)
        assert other.images == 200
        torch.testing.assert_close(other.mean, expected.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(other.covariance, expected.covariance, rtol=1e-12, atol=1e-12)


def test_reduced_over_processes_one_of_which_saw_no_image():
    features = gaussian(40, 5)
    shares = [gathered(features[:25], 9), FeatureStatistics(), gathered(features[25:], 4)]
    totals, whole = reduced(shares, 5), moments_of(features, 40)
    assert [total.images for total in totals] == [40] * 3 and shares[1].count == 0
    for total in totals:
        torch.testing.assert_close(total.mean, whole.mean, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(total.covariance, whole.covariance, rtol=1e-12, atol=1e-12)
    for total, again in zip(totals, reduced(shares, 5), strict=True):  # the shares are as before
        assert torch.equal(total.covariance, again.covariance)
    assert reduced([FeatureStatistics(), FeatureStatistics()], 5)[0].images == 0


@pytest.mark.parametrize("offset", [1e6, -1e9])
def test_features_far_from_zero_lose_no_digits(offset):
    features = offset + gaussian(60, 5)
    expected = torch.cov((features - offset).mT)
    shares = [gathered(features[:1], 1), gathered(features[1:40], 6), gathered(features[40:], 20)]
    for found in (moments_of(features, 60), moments_of(features, 1), *reduced(shares, 5)):
        torch.testing.assert_close(found.covariance, expected, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(found.mean, features.mean(0), rtol=1e-14, atol=0)


def test_too_few_images_are_refused():
    one, several = moments_of(torch.ones(1, 3), 1), moments_of(gaussian(9, 3), 9)
    with pytest.raises(ValueError, match="at least 2 images, not 1"):
        several.distance(one)
    assert one.images == 1


def test_reference_reads_back(saved):
    path, statistics = saved
    reference = load_reference(path)
    own = reference.detectors["own"]
    assert torch.equal(own.mean, statistics.mean)
    assert torch.equal(own.covariance, statistics.covariance)
    assert own.covariance.dtype == torch.float64
    assert (reference.images, reference.image_shape) == (30, (3, 64, 64))
    assert reference.description["data"] == PROVENANCE["data"]
    assert reference.description["detectors"]["other"] == {"sha256": "cd" * 32, "features": 9}
    assert reference.description["created"]["torch"] == torch.__version__
    assert [p.name for p in path.parent.iterdir()] == ["faces.safetensors"]


def test_distance_to_the_reference(saved):
    path, statistics = saved
    own = load_reference(path).moments("own")
    other = moments_of(1 + gaussian(80, 6, seed=5), 80)
    expected = frechet_distance(
        other.mean, other.covariance, statistics.mean, statistics.covariance
    )
    assert own.distance(other) == expected > 1
    assert own.distance(statistics) < 1e-12


def test_the_root_of_a_reference_is_taken_once(saved, monkeypatch):
    path, statistics = saved
    own, taken, eigh = load_reference(path).moments("own"), [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda m: (taken.append(len(m)), eigh(m))[1])
    values = {own.distance(statistics) for _ in range(3)}
    assert len(taken) == 4 and len(values) == 1


def test_check_accepts_what_matches_and_what_is_not_said(saved):
    reference = load_reference(saved[0])
    reference.check(detector(), images=30, image_shape=(3, 64, 64))
    reference.check(detector(), images=31, image_shape=(3, 64, 64), allow_any_count=True)


@pytest.mark.parametrize(
    ("given", "options", "message"),
    [
        (detector("inception"), {}, "no features of 'inception'; it has own, other"),
        (detector(sha256="ef" * 32), {}, "other weights of 'own': SHA-256 abababab…, not efefefef"),
        (detector(features=7), {}, "has 6 features of 'own', and the detector gives 7"),
        (detector(), {"image_shape": (3, 32, 32)}, r"\(3, 64, 64\), not \(3, 32, 32\)"),
        (detector(), {"images": 31}, "is of 30 images, not 31, .* accept with --any-count"),
    ],
)
def test_check_refuses_what_does_not_match(saved, given, options, message):
    path, _ = saved
    with pytest.raises(ValueError, match=message) as caught:
        load_reference(path).check(given, **{"images": 30, "image_shape": (3, 64, 64)} | options)
    assert str(path) in str(caught.value)


def test_a_full_disk_is_an_error_of_the_file(saved):
    path, statistics = saved
    before, (soft, hard) = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        with pytest.raises(OSError, match=r"faces\.safetensors cannot be written: .*"):
            save_reference(path, {"own": (statistics, detector())}, PROVENANCE)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert list(path.parent.iterdir()) == [path]


def test_edm_reference_is_read_without_count_or_checksum(tmp_path):
    statistics = moments_of(gaussian(30, 6), 30)
    path = tmp_path / "cifar.npz"
    np.savez(path, mu=statistics.mean.numpy(), sigma=statistics.covariance.numpy())
    reference = load_reference(path)
    inception = detector("inception")
    reference.check(inception, images=7, image_shape=(3, 8, 8))
    assert reference.moments("inception").distance(statistics) < 1e-12
    assert (reference.images, reference.image_shape) == (None, None)
    with pytest.raises(ValueError, match="no features of 'own'; it has inception"):
        reference.check(detector(), images=7, image_shape=(3, 8, 8))


class Trap:
    """Says so when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("a pickle was opened",)


def test_pickles_are_never_opened(tmp_path):
    bare = tmp_path / "ref.pkl"
    bare.write_bytes(pickle.dumps(Trap()))
    with pytest.raises(ValueError, match="pickles are never opened"):
        load_reference(bare)
    bare = bare.rename(tmp_path / "ref.npz")
    with pytest.raises(ValueError, match="never opened"):
        load_reference(bare)
    inside = tmp_path / "inside.npz"
    np.savez(inside, mu=np.array([Trap()], dtype=object), sigma=np.eye(2))
    with pytest.raises(ValueError, match="never opened"):
        load_reference(inside)


def rewritten(path, **changes):
    """The reference with another description; tensors of the one detector that stays."""
    reference = load_reference(path)
    moments = reference.detectors["own"]
    tensors = {"own/mean": moments.mean, "own/covariance": moments.covariance}
    own = {"own": reference.description["detectors"]["own"]}
    description = {**reference.description, "detectors": own, **changes}
    save_file(tensors, path, {METADATA_KEY: json.dumps(description)})
    return path


def test_damaged_references_are_refused_by_name(saved, tmp_path):
    path, _ = saved
    with pytest.raises(FileNotFoundError, match="no reference file"):
        load_reference(tmp_path / "missing.safetensors")
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ValueError, match=r"cut\.safetensors is no safetensors file"):
        load_reference(cut)
    plain = tmp_path / "plain.safetensors"
    save_file({"a": torch.ones(2)}, plain)
    with pytest.raises(ValueError, match="no reference file"):
        load_reference(plain)
    with pytest.raises(ValueError, match=r"faces\.safetensors has reference format 2"):
        load_reference(rewritten(path, format=2))


def test_descriptions_that_do_not_fit_are_refused(saved):
    path, _ = saved
    load_reference(rewritten(path))
    wrong = {"own": {"sha256": None, "features": 6}, "gone": {"sha256": None, "features": 6}}
    with pytest.raises(ValueError, match="not hold what its description says"):
        load_reference(rewritten(path, detectors=wrong))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("images", "30"), ("images", -30), ("images", None), ("image_shape", [3, 64.0, 64])),
        *(("detectors", []), ("detectors", {"own": {"sha256": 7}}), ("detectors", {"own": 1})),
    ],
)
def test_descriptions_of_the_wrong_types_are_refused(saved, name, value):
    path, _ = saved
    with pytest.raises(ValueError, match=rf"^the description inside {path}: {name}"):
        load_reference(rewritten(path, **{name: value}))


def test_npz_of_other_arrays_or_shapes_is_refused(tmp_path):
    path = tmp_path / "r.npz"
    np.savez(path, mean=np.ones(2))
    with pytest.raises(ValueError, match="arrays mu and sigma"):
        load_reference(path)
    np.savez(path, mu=np.ones(2), sigma=np.eye(3))
    with pytest.raises(ValueError, match=r"shapes \(\(2,\), \(3, 3\)\)"):
        load_reference(path)
    np.savez(path, mu=np.ones(2), sigma=np.full((2, 2), np.nan))
    with pytest.raises(ValueError, match="not all finite"):
        load_reference(path)
    np.savez(path, mu=np.ones(2), sigma=np.eye(2, dtype=np.int8))
    with pytest.raises(ValueError, match=r"'inception/covariance' of .*npz is of the type int8"):
        load_reference(path)
    for sigma, sentence in (
        (-np.eye(2), "has a negative eigenvalue, -1"),
        ([[1, 0.5], [0.2, 1]], "is not symmetric"),
    ):
        np.savez(path, mu=np.ones(2), sigma=np.array(sigma))
        with pytest.raises(ValueError, match=rf"'inception' in {path} {sentence}$"):
            load_reference(path).check(detector("inception", features=2), 7, (3, 8, 8))
    nearly = np.array([[1, 1 + 1e-6], [1, 1]])  # as float32 leaves it
    np.savez(path, mu=np.ones(2), sigma=nearly)
    load_reference(path).check(detector("inception", features=2), 7, (3, 8, 8))
    path.write_bytes(b"PK\x03\x04 no zip")
    with pytest.raises(ValueError, match="damaged"):
        load_reference(path)


def header(shape):
    """The beginning of a .npy file that claims this shape."""
    file = io.BytesIO()
    about = {"descr": "<f8", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, about)
    return file.getvalue()


@pytest.mark.parametrize(
    ("method", "sigma"),
    [
        (zipfile.ZIP_STORED, header((200_000, 200_000))),
        (zipfile.ZIP_DEFLATED, header((10**9, 10**9, 10**9))),
        (zipfile.ZIP_LZMA, b"no such array"),
    ],
    ids=["memory", "overflow", "lzma"],
)
def test_npz_that_claims_more_than_it_holds_is_refused(tmp_path, method, sigma):
    path = tmp_path / "r.npz"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("mu.npy", header((1,)) + bytes(8))
        archive.writestr("sigma.npy", sigma)
    if method == zipfile.ZIP_LZMA:
        data = bytearray(path.read_bytes())
        at = data.rindex(b"PK\3\4") + 30 + len("sigma.npy") + 4  # the settings of LZMA
        data[at : at + 5] = b"\xff" * 5
        path.write_bytes(data)
    with pytest.raises(ValueError, match=r"r\.npz is damaged"):
        load_reference(path)


@pytest.mark.parametrize(
    ("at", "value"), [(8, 1), (10, 99)], ids=["encrypted", "unknown compression"]
)
def test_npz_that_zipfile_cannot_unpack_is_refused(tmp_path, at, value):
    path = tmp_path / "r.npz"
    np.savez(path, mu=np.ones(2), sigma=np.eye(2))
    data = bytearray(path.read_bytes())
    for start, shift in ((b"PK\1\2", 0), (b"PK\3\4", -2)):
        data[data.index(start) + at + shift] = value
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"r\.npz is damaged"):
        load_reference(path)


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_statistics_in_another_type_of_numbers_are_refused(saved, dtype):
    path, _ = saved
    with safe_open(path, "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["own/covariance"] = tensors["own/covariance"].to(dtype)
    save_file(tensors, path, metadata)
    with pytest.raises(ValueError, match=rf"'own/covariance' of {path} is of the type .*8"):
        load_reference(path)
