"""`restore.py`: what it leaves of a photo; a mistake ends with an error message."""

import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from photo_files import CPU, SHAPE, kernel_array, load, refusal, run, save, scene
from runner import Runner
from scipy.signal import convolve2d
from torch import Tensor

import restore
from commands.photo import Request, pose
from degradation import (
    DenseMatrix,
    Draws,
    Family,
    Problem,
    derive_seed,
)
from metrics.pixel import to_uint8
from networks import (
    Denoiser,
    GaussianMixture,
    load_weights,
    posterior_mean,
    save_weights,
)
from samplers import Euler

pytestmark = pytest.mark.usefixtures("photo_folder")


class Halves(Family):
    """One's own family, of operators that are neither masks nor blurs."""

    def sample(self, image_shape, structure, seeds, device="cpu"):
        matrix = torch.eye(math.prod(image_shape))[:2].expand(len(seeds), -1, -1) / 2
        return DenseMatrix(matrix.to(device), image_shape)


# ---- restoring


FAMILIES = ["MotionBlur", "SRConv", "MissingBox", "MissingPatches", "NoDegradation"]


@pytest.mark.parametrize(
    ("net", "family"), [*(("plain", family) for family in FAMILIES), ("blind", "MotionBlur")]
)
def test_a_clean_photo_in_tiles(nets: dict[str, Path], net: str, family: str) -> None:
    record = run(nets[net], f"--degradation=degradation.{family}", "--seed=1", "--batch=5")
    pictures = record["metrics"]["pictures"]
    assert set(pictures) == {"sample-1", "sample-2", "mmse", "pinv"}
    for name, values in pictures.items():
        assert values["consistency"] < 1e-10  # of all: projected, without noise
        assert values["psnr"] > 5
        assert ("consistency_before_projection" in values) == (name != "pinv")
    assert record["settings"]["tiles"] > 1


@pytest.fixture
def ideal(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the place of every network the posterior mean of what `scene` paints, whatever x is."""
    places = [torch.arange(16.0)] * 2
    rows, columns = (axis.flatten() for axis in torch.meshgrid(*places, indexing="ij"))
    distance = (rows[:, None] - rows).square() + (columns[:, None] - columns).square()
    covariance = torch.kron(torch.eye(3), 0.15 * torch.exp(-distance / 36)) + 1e-4 * torch.eye(768)
    prior = GaussianMixture.gaussian(torch.zeros(768), covariance, SHAPE)

    def estimate(self: Denoiser, x: Tensor, sigma: Tensor | float, problem: Problem) -> Tensor:
        return posterior_mean(prior, problem)

    monkeypatch.setattr(Denoiser, "forward", estimate)


@pytest.mark.usefixtures("ideal")
def test_tiles_are_told_what_was_measured_of_their_pixels(nets: dict[str, Path]) -> None:
    pictures = run(nets["plain"], "--mask=mask.png")["metrics"]["pictures"]
    assert pictures["mmse"]["psnr"] > pictures["pinv"]["psnr"] + 5
    before, after = load("photo.png"), load("out/mmse.png")
    visible = load("mask.png") > 127
    assert (before.int() - after.int())[visible].abs().max() == 0
    measured = load("out/measurement.png")
    assert torch.equal(measured[visible], before[visible])
    assert (measured[~visible] == 128).all()


def test_a_photo_of_the_models_size_goes_straight_through_the_network(
    nets: dict[str, Path],
) -> None:
    record = run(nets["plain"], "--degradation=MatrixDegradation", "--noise-level=0.1",
                 image="small.png")  # fmt: skip
    assert record["settings"]["tiles"] == 1
    assert "measurement.png is left out" in record["settings"]["notes"][0]
    task = pose(
        Request(Path("small.png"), degradation="MatrixDegradation", noise_level=0.1), SHAPE, CPU
    )
    seeds = [derive_seed(0, "restore", i) for i in range(2)]
    draws = Draws(seeds)
    with torch.no_grad():
        expected = Euler(num_steps=3)(
            load_weights(nets["plain"]),
            draws.normal(SHAPE, "latent"),
            task.problem.expand(2),
            draws,
        )
    for i in (0, 1):
        assert torch.equal(load(f"out/sample-{i + 1}.png"), to_uint8(expected[i]))
    assert torch.equal(load("out/pinv.png"), to_uint8(task.problem.pinv()[0]))


def test_samples_do_not_depend_on_how_many_or_in_what_batches(nets: dict[str, Path]) -> None:
    arguments = ["--degradation=MotionBlur", "--noise-level=0.05"]
    run(nets["plain"], *arguments, samples=3)
    first = {path.name: load(path) for path in Path("out").glob("*.png")}
    Path("out").rename("earlier")
    run(nets["plain"], *arguments, "--batch=7", samples=2)
    for name in ("measurement.png", "pinv.png", "sample-1.png", "sample-2.png", "mmse.png"):
        assert (load(f"out/{name}").int() - first[name].int()).abs().max() <= 1
    assert (first["sample-1.png"].int() - first["sample-2.png"].int()).abs().max() > 1


def test_the_deviation_of_the_samples(nets: dict[str, Path]) -> None:
    record = run(nets["plain"], "--mask=mask.png", samples=3)
    samples = torch.stack([load(f"out/sample-{i}.png") for i in (1, 2, 3)]).double()
    white = record["metrics"]["deviation_white_at"]
    shown = load("out/std.png")[0].double() / 255 * white
    expected = samples.var(0).mean(0).sqrt().clamp(max=white)
    assert (shown - expected).abs().max() < 1 + white / 255


def test_one_sample_has_no_deviation(nets: dict[str, Path]) -> None:
    record = run(nets["plain"], "--mask=mask.png", samples=1)
    assert "std.png is left out: it takes two --samples or more" in record["settings"]["notes"]
    assert record["metrics"]["deviation_white_at"] is None


def test_a_network_that_was_trained_for_other_noise(nets: dict[str, Path]) -> None:
    denoiser = load_weights(nets["plain"])
    save_weights("trained.safetensors", denoiser, {"noise_level": 0.05, "poisson_peak": None})
    arguments = ("--mask=mask.png",)
    record = run(Path("trained.safetensors"), *arguments, "--noise-level=0.5")
    (note,) = record["settings"]["notes"][-1:]
    assert note.startswith("trained.safetensors was trained with noise of 0.05, y has 0.5:")
    shutil.rmtree("out")
    record = run(Path("trained.safetensors"), *arguments, "--noise-level=0.05")
    assert not any("trained" in note for note in record["settings"]["notes"])


def test_resizing_to_the_models_size(nets: dict[str, Path]) -> None:
    record = run(nets["plain"], "--degradation=MotionBlur", "--fit=resize")
    assert record["settings"]["image_shape"] == list(SHAPE)
    assert record["settings"]["tiles"] == 1


@pytest.mark.usefixtures("ideal")
@pytest.mark.parametrize(("noise", "decibels"), [(0.0, 30), (0.05, 25)])
def test_a_measured_blur_in_tiles(nets: dict[str, Path], noise: float, decibels: float) -> None:
    """The picture that was blurred comes back in its place, its size and its colours."""
    truth, kernel = scene(48, 64), kernel_array()
    full = np.stack([convolve2d(truth[..., c], kernel) for c in range(3)], -1)
    save("blurred.png", full[2:50:2, 2:66:2])  # the centre of 5×4 is (2, 2)
    arguments = ["--measured", "--kernel=kernel.npy", "--stride=2", f"--noise-level={noise}"]
    record = run(nets["plain"], *arguments, image="blurred.png")
    assert record["settings"]["image_shape"] == [3, 48, 64]
    assert record["settings"]["tiles"] == 5 * 7
    assert "pixels of blurred.png are not used" in record["settings"]["notes"][0]
    assert "psnr" not in record["metrics"]["pictures"]["mmse"]
    restored = load("out/mmse.png").permute(1, 2, 0).double().numpy()
    errors = {
        (y, x): np.square(restored[8:-8, 8:-8] - truth[8 + y : 40 + y, 8 + x : 56 + x]).mean()
        for y in (-1, 0, 1)
        for x in (-1, 0, 1)
    }
    assert min(errors, key=errors.__getitem__) == (0, 0)
    assert 10 * math.log10(255**2 / errors[0, 0]) > decibels
    assert torch.equal(load("out/measurement.png"), load("blurred.png"))
    # H† is that of the whole photo: without noise it explains the rounded photo.
    values = record["metrics"]["pictures"]["pinv"]["consistency"]
    assert values < (1e-6 if noise == 0 else 0.05**2)


def test_a_measured_blur_of_one_tile_is_exact(nets: dict[str, Path]) -> None:
    save("blurred.png", scene(8, 8))
    arguments = ["--measured", "--kernel=kernel.npy", "--stride=2", "--noise-level=0"]
    record = run(nets["plain"], *arguments, image="blurred.png")
    assert record["settings"]["operator"] == "ValidConvolution"
    assert record["metrics"]["pictures"]["mmse"]["consistency"] < 1e-6


@pytest.mark.parametrize("sides", [(8, 8), (16, 20)])
def test_a_blur_too_large_for_a_matrix_is_inverted_by_iterations(
    nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch, sides: tuple[int, int]
) -> None:
    monkeypatch.setattr("commands.photo.MAX_ROWS", 10)
    save("blurred.png", scene(*sides))
    arguments = ["--measured", "--kernel=kernel.npy", "--stride=2", "--noise-level=0.05"]
    record = run(nets["plain"], *arguments, image="blurred.png")
    assert record["settings"]["operator"] == "ValidRegion"
    assert any("by iterations" in note for note in record["settings"]["notes"])


def test_a_measured_mask_ignores_what_is_hidden(nets: dict[str, Path]) -> None:
    run(nets["plain"], "--measured", "--mask=mask.png")
    first = load("out/mmse.png")
    Path("out").rename("earlier")
    pixels = load("photo.png")
    pixels[:, ~(load("mask.png")[0] > 127)] = 255
    save("damaged.png", pixels.permute(1, 2, 0).numpy().astype(float))
    run(nets["plain"], "--measured", "--mask=mask.png", image="damaged.png")
    assert torch.equal(load("out/mmse.png"), first)


def test_guidance(nets: dict[str, Path]) -> None:
    assert "give its number by --class" in refusal(f"--net={nets['classes']}", *ASKED, "--cfg=3")
    arguments = ["--mask=mask.png", "--class=2", "--cfg=3"]
    record = run(nets["classes"], *arguments)
    assert (record["settings"]["class_label"], record["settings"]["cfg"]) == (2, 3.0)


def test_half_precision(nets: dict[str, Path]) -> None:
    assert run(nets["plain"], "--mask=mask.png", "--precision=bf16")["settings"]["precision"]


# ---- refusals


ASKED = ["--image=photo.png", "--outdir=out", "--mask=mask.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "give one of --degradation, --mask or --kernel"),
        (["--mask=mask.png", "--kernel=kernel.npy", "--stride=1"], "not --mask and --kernel"),
        (["--measured", "--mask=mask.png", "--fit=resize"], "use --fit tile"),
        (["--measured", "--kernel=kernel.npy", "--stride=2"], "needs --noise-level"),
        (["--degradation=Nonsense"], "unknown degradation 'Nonsense'"),
        (["--degradation=MatrixDegradation"], "use --fit resize, to 16×16 pixels"),
        (["--degradation=test_restore.Halves"], "restored in tiles, and Halves draws neither"),
        (["--mask=kernel.npy"], "kernel.npy is no picture"),
        (["--mask=small.png"], "small.png has 16×16 pixels (height × width), but photo.png has"),
        (["--mask=black.png"], "black.png hides everything"),
        (["--kernel=kernel.npy", "--stride=3"], "stride 3 must divide"),
        (["--kernel=kernel.npy", "--stride=64"], "stride 64 is larger than a photo of 40×56"),
        (["--kernel=photo.png", "--stride=1"], "leaves no sample inside 16×16 pixels"),
        (["--kernel=broad.npy", "--stride=1"], "broad.npy: a kernel of"),
        (["--image=tiny.png", "--mask=mask.png"], "has 40×56"),
        (["--image=tiny.png", "--degradation=Box", "--fit=resize"], "tiny.png is too small"),
        (["--mask=mask.png", "--sampler=nonsense"], "unknown sampler 'nonsense'"),
        (["--mask=mask.png", "--class=0"], "was trained with no classes"),
        (["--mask=mask.png", "--cfg=2"], "--cfg 2.0 guides by class, but"),
        (["--mask=mask.png", "--cfg=nan"], "'--cfg': the value='nan' must be a number"),
        (["--mask=mask.png", "--outdir=done"], "there already"),
        (["--mask=mask.png", "--noise-level=-1"], "Invalid value for '--noise-level'"),
        (
            ["--measured", "--mask=mask.png", "--noise-level=inf"],
            "'--noise-level': the value='inf' must be a number",
        ),
        (["--mask=mask.png", "--outdir=photo.png"], "photo.png is no folder"),
    ],
)
def test_refusals(nets: dict[str, Path], arguments: list[str], sentence: str) -> None:
    save("tiny.png", scene(12, 30))
    save("black.png", np.zeros((40, 56)))
    np.save("broad.npy", np.ones((3, 60)))
    Path("done").mkdir()
    Path("done/restore.json").write_text("{}")
    given = [f"--net={nets['plain']}", "--image=photo.png", "--outdir=out", *arguments]
    assert sentence in refusal(*given)


def test_networks_that_cannot_restore_are_refused(nets: dict[str, Path]) -> None:
    assert "would ignore the photo" in refusal(f"--net={nets['unconditional']}", *ASKED)
    assert "there is no weights file" in refusal("--net=absent.safetensors", *ASKED)
    assert "classes 0 to 2" in refusal(f"--net={nets['classes']}", *ASKED, "--class=3")


def test_a_failure_while_writing_leaves_finished_pictures_alone(
    nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr("commands.sheet.write_metrics", fail)
    arguments = ["--sampler=dpm", "--sampler-opt=num_steps=2", "--samples=1"]
    result = Runner().invoke(restore.main, [f"--net={nets['plain']}", *ASKED, *arguments])
    assert result.exit_code == 2 and "no space left" in result.stderr
    assert {path.suffix for path in Path("out").iterdir()} == {".png"}
