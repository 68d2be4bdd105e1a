"""Inception through torch-fidelity: its package, its file, its download."""

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from detector_cases import images, sha256

from metrics import detectors
from metrics.detectors import detectors_for, load_detector


def test_inception_without_its_package_is_one_sentence(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match="needs the package torch-fidelity: pip install"):
        detectors_for(["fid"], [], "cpu")


@pytest.fixture(scope="module")
def inception_module():
    if importlib.util.find_spec("torch_fidelity") is None:
        pytest.skip("torch-fidelity is not installed")
    return detectors._fidelity_module()


def test_inception_needs_no_torchvision_and_leaves_no_trace(inception_module):
    def known() -> set[str]:
        return {n for n in sys.modules if n.split(".")[0] in ("torch_fidelity", "torchvision")}

    before = known()
    assert detectors._fidelity_module().FeatureExtractorInceptionV3
    assert known() == before


@pytest.fixture(scope="module")
def random_file(inception_module, tmp_path_factory):
    """A file like the published one, of the same network with random weights."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    cls = inception_module.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(inception_module.torch, "load", lambda *a, **k: {})
        patch.setattr(cls, "load_state_dict", lambda self, state: None)
        network = cls("random", ["2048"], feature_extractor_weights_path="none")
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture
def inception_file(random_file, tmp_path):
    """The same file in a folder where it may be renamed."""
    (tmp_path / "random.pth").hardlink_to(random_file)
    return tmp_path / "random.pth"


def test_inception_runs_through_torch_fidelity(inception_file, inception_module, cache):
    with pytest.warns(UserWarning, match="no FID to compare"):
        detector = load_detector(f"inception={inception_file}")
    assert (detector.name, detector.features) == ("inception", 2048)
    assert detector.sha256 == sha256(inception_file)
    cls = inception_module.FeatureExtractorInceptionV3
    direct = cls("direct", ["2048"], feature_extractor_weights_path=str(inception_file))
    batch = images(2, side=32)
    result = detector(batch)
    assert result.shape == (2, 2048) and result.std() > 0
    assert torch.equal(result, direct(batch)[0])
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detector(batch), result)
    cache.mkdir(parents=True)
    inception_file.rename(cache / Path(detectors.INCEPTION_URL).name)
    with pytest.raises(ValueError, match=r"begins with .* instead of 6726825d"):
        load_detector("inception")


def test_inception_is_downloaded_once_and_checked(inception_file, server, cache, monkeypatch):
    folder, url = server
    published = inception_file.rename(folder / "inception-6726825d.pth")
    monkeypatch.setattr(detectors, "INCEPTION_URL", f"{url}/{published.name}")
    with pytest.raises(ValueError, match=r"invalid hash.*--detector inception=FILE"):
        load_detector("inception")
    assert not list(cache.iterdir())
    published = published.rename(folder / f"inception-{sha256(published)[:8]}.pth")
    monkeypatch.setattr(detectors, "INCEPTION_URL", f"{url}/{published.name}")
    assert load_detector("inception").sha256 == sha256(published)
    published.unlink()
    load_detector("inception")
    (cache / published.name).unlink()
    with pytest.raises(ValueError, match=f"are not at {cache}.* {url}.*404.*inception=FILE"):
        load_detector("inception")


@pytest.mark.filterwarnings("ignore:.*no FID to compare")
def test_inception_weights_are_never_unpickled_blindly(inception_module, tmp_path):
    class Trap:
        def __reduce__(self):
            return pytest.fail, ("a pickle was opened",)

    path = tmp_path / "trap.pth"
    torch.save({"weight": Trap()}, path)
    with pytest.raises(ValueError, match="more than plain tensors"):
        load_detector(f"inception={path}")
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(ValueError, match="does not hold the weights of torch-fidelity's Inception"):
        load_detector(f"inception={path}")
