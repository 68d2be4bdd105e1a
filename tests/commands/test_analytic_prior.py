"""A fitted prior as a weights file, and `calculate_metrics.py prior` and what it is good for."""

import csv
import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from helpers import gaussian
from runner import Runner
from safetensors import safe_open
from safetensors.torch import save_file

from calculate_metrics import main
from datautils.photos import Photos
from metrics.pixel import to_float
from networks import GaussianMixture, fit_gaussian, load_weights, read_summary, save_weights
from networks.presets import conditioning_of

SHAPE = (1, 2, 3)
PHOTOS = ("--data-opt", "resolution=8", "--data-opt", "size=400")


def mixture(count: int, basis: bool = True) -> GaussianMixture:
    root = gaussian(1, count, 6, 6)
    variances, vectors = torch.linalg.eigh(root @ root.mT)
    axes = vectors if basis else None
    return GaussianMixture(gaussian(1, 3), gaussian(1, 3, 6), variances, axes, SHAPE)


# ---- the file


@pytest.mark.parametrize("prior", [mixture(1), mixture(3), mixture(3, basis=False)])
def test_a_prior_survives_its_file(tmp_path, prior):
    path = tmp_path / "prior.safetensors"
    save_weights(path, prior, {"images": 7})
    loaded = load_weights(path)
    assert isinstance(loaded, GaussianMixture) and loaded.image_shape == SHAPE
    x = gaussian(4, *SHAPE)
    assert torch.equal(loaded(x, 0.3), prior(x, 0.3))
    assert read_summary(path) == {"images": 7}
    assert conditioning_of(loaded.config) == "unconditional" and loaded.config.num_classes == 0
    before = loaded.means.clone()
    path.write_bytes(b"\0" * path.stat().st_size)  # in place
    assert torch.equal(loaded.means, before)


def change(tensors: dict[str, torch.Tensor], description: dict, fault: str) -> None:
    if fault == "missing":
        del tensors["means"]
    elif fault == "unknown":
        tensors["other"] = torch.zeros(1)
    elif fault == "shape":
        tensors["variances"] = tensors["variances"][:, :, :5].contiguous()
    elif fault == "not finite":
        tensors["means"][0, 0, 0] = torch.nan
    elif fault == "negative":
        tensors["variances"][0, 0, 0] = -1.0
    elif fault == "no shape":
        del description["config"]["image_shape"]


FAULTS = ["missing", "unknown", "shape", "not finite", "negative", "no shape"]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_damaged_prior_is_named(tmp_path, fault):
    path = tmp_path / "prior.safetensors"
    save_weights(path, mixture(3), {})
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
        description = json.loads(file.metadata()["invfusion"])
    change(tensors, description, fault)
    save_file(tensors, path, {"invfusion": json.dumps(description)})
    with pytest.raises(ValueError, match=r"prior\.safetensors") as error:
        load_weights(path)
    assert "\n" not in str(error.value)


# ---- the commands


def call(*arguments: object) -> Result:
    return Runner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def fitted(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("prior") / "prior.safetensors"
    result = call("prior", *PHOTOS, "--dest", path, "--workers", 0)
    assert result.exit_code == 0, result.output
    return path


def gen(net: Path, outdir: Path, *arguments: object) -> Result:
    return call(
        "gen", "--net", net, *PHOTOS, "--images", 4, "--batch", 4, "--workers", 0,
        "--metrics", "psnr,consistency", "--degradation", "degradation.MissingPatches",
        "--outdir", outdir, *arguments,
    )  # fmt: skip


def test_the_command_fits_the_training_images(fitted):
    crops = Photos(8, "train", size=400)
    expected = fit_gaussian(to_float(torch.stack([crops[i][0] for i in range(400)])))
    found = load_weights(fitted)
    torch.testing.assert_close(found.mean(), expected.mean())
    torch.testing.assert_close(found.covariance(), expected.covariance())
    assert read_summary(fitted)["images"] == 400


def test_the_command_fits_mixtures(tmp_path):
    path = tmp_path / "several.safetensors"
    result = call(
        "prior", *PHOTOS, "--images", 100, "--components", 3, "--dest", path, "--workers", 0
    )
    assert result.exit_code == 0, result.output
    found = load_weights(path)
    assert found.means.shape == (1, 3, 192) and found.basis.shape == (1, 3, 192, 192)
    assert read_summary(path)["images"] == 100


def test_zero_shot_samplers_run_on_a_prior(fitted, tmp_path):
    samplers = ("--sampler", "ddrm", "--sampler", "pigdm", "--sampler-opt", "pigdm.num_steps=20")
    result = gen(fitted, tmp_path / "out", *samplers, "--baselines", "pinv,gaussian")
    assert result.exit_code == 0, result.output
    values = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["values"]
    methods = values["MissingPatches"]
    assert set(methods) == {"H†y", "Gaussian MMSE", "DDRM", "ΠGDM"}
    assert methods["DDRM"]["evaluations"] == 25
    assert methods["ΠGDM"]["backward_passes"] == 20
    psnr = {name: cell["psnr"]["mean"] for name, cell in methods.items()}
    assert psnr["H†y"] < psnr["Gaussian MMSE"] and psnr["DDRM"] < psnr["Gaussian MMSE"]
    with (tmp_path / "out" / "per_image.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "DDRM"]
    assert all(float(row["consistency"]) < 1e-10 for row in rows)


def test_images_are_drawn_from_a_prior(fitted, tmp_path):
    result = call(
        "gen-uncond", "--net", fitted, "--images", 4, "--batch", 4, "--outdir", tmp_path / "out"
    )
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "grid.png").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--sampler", "heun"), ("prior.safetensors", "heun", "unconditional")),
        (("--sampler", "ddrm", "--cfg", 2), ("--cfg", "classes")),
        (("--sampler", "ddrm", "--data-opt", "resolution=16"), ("(3, 8, 8)", "(3, 16, 16)")),
    ],
)
def test_what_a_prior_cannot_do_is_refused(fitted, tmp_path, arguments, words):
    result = gen(fitted, tmp_path / "out", *arguments)
    assert result.exit_code == 2, result.output
    assert all(word in result.stderr for word in words), result.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dest", "x.pt"), ("x.pt", ".safetensors")),
        (("--dest", "taken.safetensors"), ("taken.safetensors", "there already")),
        (("--dest", "x.safetensors", "--data-opt", "resolution=64"), ("(3, 64, 64)", "4096")),
        (("--dest", "x.safetensors", "--images", 1), ("at least 2 images",)),
        (
            ("--dest", "x.safetensors", "--images", 3, "--components", 4),
            ("4 components", "3 images"),
        ),
    ],
)
def test_faults_of_the_command_are_told(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    Path("taken.safetensors").write_bytes(b"")
    result = call("prior", *PHOTOS, "--workers", 0, *arguments)
    assert result.exit_code == 2, result.output
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and all(word in last for word in words), last
    assert [path.name for path in tmp_path.iterdir()] == ["taken.safetensors"]
