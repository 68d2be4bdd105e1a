"""LPIPS and ST-LPIPS: values of the packages that define them, and where weights come from."""

import importlib.util
import sys

import pytest
import torch
from calling import call, metrics, refused
from detector_cases import sha256

from metrics.images import ImageWriter
from metrics.measure import PER_IMAGE, check_images
from metrics.perceptual import PERCEPTUAL, Perceptual, perceptual

CPU = torch.device("cpu")
# Of lpips 0.1.4 and stlpips-pytorch 0.0.2 with the weights of `drawn`, on `pairs`.
EXPECTED = {
    "lpips": [1.5493160486221313, 0.21538518369197845, 1.511548399925232],
    "lpips_vgg": [1.1665667295455933, 0.2497478574514389, 0.9886296987533569],
    "st_lpips": [1.1097928285598755, 1.1190826892852783, 0.4111957252025604],
}


def pairs() -> tuple[torch.Tensor, torch.Tensor]:
    """Unlike images, a darker one, and one moved by a pixel."""
    generator = torch.Generator().manual_seed(0)
    first, second = (
        torch.randint(0, 256, (3, 3, 64, 48), generator=generator, dtype=torch.uint8) for _ in "ab"
    )
    second[1] = (first[1].float() * 0.8).to(torch.uint8)
    second[2] = first[2].roll(1, -1)
    return first, second


def drawn(name: str) -> Perceptual:
    """A distance with weights drawn from a seed."""
    own, generator = (
        Perceptual(PERCEPTUAL[name].stages, tolerant=name == "st_lpips"),
        torch.Generator().manual_seed(1),
    )
    with torch.no_grad():
        for p in own.parameters():
            convolution = p.ndim == 4 and p.shape[2:] != (1, 1)
            values = torch.randn(p.shape, generator=generator)
            values *= (2 / p[0].numel()) ** 0.5 if convolution else 1.0
            p.copy_(values.abs() if len(p) == 1 else values * (0.1 if p.ndim == 1 else 1))
    return own


@pytest.mark.parametrize("name", EXPECTED)
def test_values_are_those_of_the_packages(name):
    distance = drawn(name)
    found = distance(*pairs())
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(EXPECTED[name], rel=1e-5)
    first = pairs()[0]
    assert distance(first, first).tolist() == [0, 0, 0]


@pytest.fixture
def weights(tmp_path, monkeypatch, cache):
    """Files as the packages and torchvision have them, of `drawn` weights."""
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    importlib.invalidate_caches()
    for name in ("lpips", "st_lpips"):
        own, source = drawn(name), PERCEPTUAL[name]
        heads = {f"lin{i}.model.1.weight": head for i, head in enumerate(own.heads)}
        prefix = "features" if source.network else "net.slice1"
        network = {"classifier.0.weight": torch.ones(2)} if source.network else {}
        for i, layer in enumerate(own.convolutions):
            network |= {f"{prefix}.{3 * i}.{k}": v for k, v in layer.state_dict().items()}
        path = tmp_path / source.package / source.file
        path.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / source.package / "__init__.py").write_text("import torchvision\n")
        if source.network is None:
            heads |= network
        else:
            cache.mkdir(parents=True, exist_ok=True)
            torch.save(network, cache / "drawn")
            digits = sha256(cache / "drawn")[:8]
            (cache / "drawn").rename(cache / f"{name}-{digits}.pth")
            source = source._replace(network=f"file:///{name}-{digits}.pth")
            monkeypatch.setitem(PERCEPTUAL, name, source)
        torch.save(heads, path)
    perceptual.cache_clear()
    yield tmp_path
    perceptual.cache_clear()


def test_weights_are_found_in_packages_and_the_cache(weights):
    for name in ("lpips", "st_lpips"):
        found = perceptual(name, CPU)(*pairs()).tolist()
        assert found == pytest.approx(EXPECTED[name], rel=1e-5)
    assert "lpips" not in sys.modules and "stlpips_pytorch" not in sys.modules


def test_what_cannot_be_measured_is_refused(weights):
    with pytest.raises(ValueError, match="st_lpips needs larger images than 8×8 pixels"):
        check_images(["psnr", "st_lpips"], CPU, (3, 8, 8))
    heads = weights / PERCEPTUAL["lpips"].package / PERCEPTUAL["lpips"].file
    torch.save({"lin0.model.1.weight": torch.ones(1, 64, 1, 1)}, heads)
    with pytest.raises(ValueError, match="does not hold the weights of lpips"):
        check_images(["lpips"], CPU, (3, 64, 64))


def test_a_missing_package_or_file_is_named(monkeypatch, weights):
    source = PERCEPTUAL["lpips"]._replace(network="file:///nowhere/alexnet-01234567.pth")
    monkeypatch.setitem(PERCEPTUAL, "lpips", source)
    with pytest.raises(ValueError, match=r"alexnet-01234567\.pth cannot be downloaded.*put it"):
        perceptual("lpips", CPU)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install --no-deps stlpips-pytorch"):
        perceptual("st_lpips", CPU)


def test_commands_measure_pairs(weights, tmp_path):
    first, second = pairs()
    for name, images in (("a", first), ("b", second)):
        with ImageWriter(tmp_path / name) as writer:
            for i, image in enumerate(images):
                writer.put(f"{i}.png", image)
    arguments = ["--images", tmp_path / "a", "--ref", tmp_path / "b", "--metrics", "lpips,st_lpips"]
    result = call(tmp_path, "calc", *arguments, "--size", 48, "--outdir", tmp_path / "out")
    assert result.exit_code == 0, result.output
    values = metrics(tmp_path / "out")["metrics"]["values"]
    for name in ("lpips", "st_lpips"):
        expected = perceptual(name, CPU)(first[:, :, 8:56], second[:, :, 8:56]).tolist()
        assert values[name]["mean"] == pytest.approx(sum(expected) / 3, rel=1e-5)
        assert PER_IMAGE[name](None, None, second, first).tolist() == pytest.approx(
            perceptual(name, CPU)(first, second).tolist(), rel=1e-5
        )
    refused(call(tmp_path, "calc", *arguments, "--size", 16), "lpips needs larger images")


@pytest.mark.skipif(
    importlib.util.find_spec("stlpips_pytorch") is None, reason="stlpips-pytorch is not installed"
)
def test_the_weights_of_the_package_give_its_values():
    perceptual.cache_clear()
    found = perceptual("st_lpips", CPU)(*pairs()).tolist()
    assert found == pytest.approx([0.03949474, 0.00437978, 0.01012872], rel=1e-5)
