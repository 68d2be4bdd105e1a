"""`restore.py`: every way to pose a photo, what it leaves, and mistakes told in one sentence."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.signal import convolve2d
from torch import Tensor

import restore
from commands import photo as photo_module
from commands.photo import Request, pose
from degradation import (
    DenseMatrix,
    Draws,
    Family,
    Mask,
    Problem,
    RandomDegradation,
    StridedConvolution,
    ValidConvolution,
    ValidRegion,
    derive_seed,
)
from metrics.pixel import to_uint8
from networks import (
    Denoiser,
    GaussianMixture,
    load_weights,
    make_config,
    posterior_mean,
    save_weights,
)
from samplers import Euler


class Halves(Family):
    """One's own family, of operators that are neither masks nor blurs."""

    def sample(self, image_shape, structure, seeds, device="cpu"):
        matrix = torch.eye(math.prod(image_shape))[:2].expand(len(seeds), -1, -1) / 2
        return DenseMatrix(matrix.to(device), image_shape)


CPU = torch.device("cpu")
SHAPE = (3, 16, 16)
PICTURES = {"measurement.png", "pinv.png", "mmse.png", "sheet.png", "restore.json"}


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks."""
    home = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    configs = {
        "plain": make_config("tiny"),
        "blind": make_config("tiny", "blind"),
        "classes": make_config("tiny", num_classes=3),
        "unconditional": make_config("tiny", "unconditional"),
    }
    files = {name: home / f"{name}.safetensors" for name in configs}
    for name, config in configs.items():
        save_weights(files[name], Denoiser(config), {})
    return files


def scene(h: int, w: int) -> np.ndarray:
    """A smooth colour picture with an edge, float `[h, w, 3]` in 0..255."""
    noise = np.random.default_rng(0).normal(size=(h, w, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    smooth[h // 3 :, w // 2 :] += 2 * smooth.std()
    return 127.5 + 45 * smooth / smooth.std()


def save(path: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)


def load(path: str | Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def kernel_array() -> np.ndarray:
    """A blur of 5×4 pixels that is off its centre and symmetric in nothing."""
    kernel = np.zeros((5, 4))
    kernel[1, 1], kernel[2, 2], kernel[2, 3], kernel[3, 3] = 4, 3, 2, 1
    return kernel / kernel.sum()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with a photo of 40×56 pixels, a mask and a kernel for it, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save("photo.png", scene(40, 56))
    save("small.png", scene(16, 16))
    visible = np.full((40, 56), 255.0)
    visible[10:14, :], visible[:, 30:33] = 0, 0
    save("mask.png", visible)
    np.save("kernel.npy", kernel_array())
    return tmp_path


def contents() -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}


def run(net: Path, *arguments: str, image: str = "photo.png", samples: int = 2) -> dict:
    """The record that a restoration leaves; its pictures are those of the photo, and complete."""
    quick = ["--sampler=euler", "--sampler-opt=num_steps=3", f"--samples={samples}"]
    result = CliRunner().invoke(
        restore.main, [f"--net={net}", f"--image={image}", "--out=out", *quick, *arguments]
    )
    assert result.exit_code == 0, (result.exception, result.stderr[-500:])
    assert "restored: out" in result.stdout
    expected = PICTURES | {f"sample-{i + 1}.png" for i in range(samples)}
    expected |= {"std.png"} if samples > 1 else set()
    record = json.loads(Path("out/restore.json").read_text())
    if record["settings"]["operator"] in ("DenseMatrix", "NullOperator"):  # y is no picture
        expected -= {"measurement.png"}
    found = {path.name for path in Path("out").iterdir()}
    assert found == expected
    h, w = record["settings"]["image_shape"][1:]
    for name in found - {"sheet.png", "measurement.png", "restore.json"}:
        assert load(f"out/{name}").shape == (3, h, w)
    assert record["metrics"]["evaluations"] == {"samples": 3, "mmse": 1}
    assert record["environment"]["torch"] == torch.__version__
    return record


def refusal(*arguments: str) -> str:
    """The sentence with which arguments are refused, leaving everything as it was."""
    before = contents()
    result = CliRunner().invoke(restore.main, list(arguments))
    assert result.exit_code == 2, (result.exception, result.stderr[-500:])
    assert contents() == before
    line = result.stderr.splitlines()[-1]
    assert line.lower().startswith("error: ")
    return line


# ---- restoring


@pytest.mark.parametrize("net", ["plain", "blind"])
@pytest.mark.parametrize(
    "family", ["MotionBlur", "SRConv", "MissingBox", "MissingPatches", "NoDegradation"]
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
    assert note.startswith(
        "trained.safetensors was trained with noise of 0.05, this photo has 0.5:"
    )
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
    truth, kernel = scene(64, 96), kernel_array()
    full = np.stack([convolve2d(truth[..., c], kernel) for c in range(3)], -1)
    save("blurred.png", full[2:66:2, 2:98:2])  # the centre of 5×4 is (2, 2)
    arguments = ["--measured", "--kernel=kernel.npy", "--stride=2", f"--noise-level={noise}"]
    record = run(nets["plain"], *arguments, image="blurred.png")
    assert record["settings"]["image_shape"] == [3, 64, 96]
    assert record["settings"]["tiles"] == 7 * 11
    assert "pixels of blurred.png are not used" in record["settings"]["notes"][0]
    assert "psnr" not in record["metrics"]["pictures"]["mmse"]
    restored = load("out/mmse.png").permute(1, 2, 0).double().numpy()
    errors = {
        (y, x): np.square(restored[8:-8, 8:-8] - truth[8 + y : 56 + y, 8 + x : 88 + x]).mean()
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


# ---- posing the problem


def posed(**options: object) -> photo_module.Task:
    return pose(Request(Path("photo.png"), **options), SHAPE, CPU)  # type: ignore[arg-type]


def test_a_kernel_fits_a_tile_and_the_photo_a_stride() -> None:
    save("odd.png", scene(37, 45))
    task = pose(Request(Path("odd.png"), degradation="MotionBlur", seed=3), SHAPE, CPU)
    operator = task.problem.degradation
    assert isinstance(operator, StridedConvolution) and task.blur is not None
    stride = operator.stride
    size = (37 // stride * stride, 45 // stride * stride)
    assert operator.image_shape == (3, *size) and task.tiling.size == size
    assert f"cropped at the right and the bottom to {size[0]}×{size[1]}" in task.notes[0]
    assert task.truth is not None
    assert torch.equal(task.truth, load("odd.png")[:, : size[0], : size[1]])
    assert task.blur.image_shape == SHAPE and task.exact


@pytest.mark.parametrize("family", ["AveragePool", "UniformBlur"])
def test_every_blur_crops_the_photo_to_its_stride(family: str) -> None:
    save("odd.png", scene(37, 45))
    options = {"strides": "4"}
    request = Request(Path("odd.png"), degradation=family, degradation_opt=options)
    task = pose(request, SHAPE, CPU)
    assert task.tiling.size == (36, 44)
    assert "cropped at the right and the bottom to 36×44" in " ".join(task.notes)


def test_a_measured_kernel_is_scaled_to_the_sum_1() -> None:
    np.save("double.npy", 2 * np.load("kernel.npy"))
    options = {"stride": 2, "measured": True, "noise_level": 0.1}
    task = posed(kernel=Path("double.npy"), **options)
    plain = posed(kernel=Path("kernel.npy"), **options)
    x = torch.rand(1, *plain.problem.degradation.image_shape)
    torch.testing.assert_close(task.problem.degradation.H(x), plain.problem.degradation.H(x))
    assert "double.npy sums to 2: it is divided by that" in task.notes
    np.save("zero-sum.npy", np.array([[1.0, -1.0]]))
    with pytest.raises(ValueError, match=r"zero-sum\.npy sums to 0: the kernel of a camera"):
        posed(kernel=Path("zero-sum.npy"), **options)


def test_samples_that_diverge_are_named(nets: dict[str, Path], monkeypatch) -> None:
    def diverging(self, denoiser, noise, problem, rng):
        return torch.full_like(noise, math.nan)

    monkeypatch.setattr("samplers.Heun.__call__", diverging)
    arguments = ["--image=photo.png", "--mask=mask.png", "--samples=2", "--sampler=heun"]
    found = CliRunner().invoke(restore.main, [f"--net={nets['plain']}", "--out=out", *arguments])
    assert found.exit_code == 1
    assert "sample-1 of Heun failed, mean (y − Hx)² is nan" in found.output
    pictures = json.loads(Path("out/restore.json").read_text())["metrics"]["pictures"]
    assert pictures["sample-1"]["psnr"] is None and pictures["mmse"]["psnr"] > 0


def test_a_mask_says_what_it_shows() -> None:
    assert any("pixels are visible" in note for note in posed(mask=Path("mask.png")).notes)
    save("white.png", np.full_like(scene(40, 56), 255))
    with pytest.raises(ValueError, match=r"white\.png hides nothing"):
        posed(mask=Path("white.png"))


def test_a_mixture_gives_what_its_members_give() -> None:
    """Members are as they are by themselves: kernels for the tiles, masks for the photo."""
    kinds = set()
    for seed in range(12):
        request = Request(Path("photo.png"), degradation="RandomDegradation", seed=seed)
        if RandomDegradation().structure(derive_seed(seed, "restore", "problem"))[0] == 2:
            with pytest.raises(ValueError, match="MatrixDegradation measures a photo as a whole"):
                pose(request, SHAPE, CPU)
            continue
        task = pose(request, SHAPE, CPU)
        assert (task.blur is not None) == isinstance(task.problem.degradation, StridedConvolution)
        kinds.add(type(task.problem.degradation).__name__)
    assert kinds == {"StridedConvolution", "Mask", "NullOperator"}


def test_the_operator_follows_from_the_seed() -> None:
    tasks = [posed(degradation="MissingPatches", seed=seed) for seed in (0, 0, 1)]
    first, again, other = (task.problem.degradation.rows for task in tasks)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_noise_is_added_to_a_clean_photo_only() -> None:
    clean = posed(mask=Path("mask.png"))
    noisy = posed(mask=Path("mask.png"), noise_level=0.5)
    measured = posed(mask=Path("mask.png"), noise_level=0.5, measured=True)
    visible = clean.problem.degradation.rows
    difference = (noisy.problem.y - clean.problem.y)[visible]
    assert abs(difference.std().item() - 0.5) < 0.02
    assert torch.equal(measured.problem.y, clean.problem.y)
    assert measured.problem.noise_level.item() == 0.5 and not measured.exact
    assert measured.truth is None and clean.truth is not None


def test_photon_noise_of_a_photo(nets: dict[str, Path]) -> None:
    record = run(nets["plain"], "--mask=mask.png", "--poisson-peak=40")
    assert record["settings"]["poisson_peak"] == 40
    clean = posed(mask=Path("mask.png")).problem
    noisy = posed(mask=Path("mask.png"), poisson_peak=40.0)
    counts = 20 * (noisy.problem.y[clean.degradation.rows] + 1)
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
    error = (noisy.problem.y - clean.y)[clean.degradation.rows].square().mean().sqrt()
    assert abs(error / noisy.problem.noise_level.item() - 1) < 0.05 and not noisy.exact
    # Of a photo that was measured so, the level follows from what it shows.
    measured = posed(kernel=Path("kernel.npy"), stride=2, measured=True, poisson_peak=40.0)
    rows = measured.problem.degradation.rows
    expected = ((measured.problem.y[rows] + 1) / 20).mean().sqrt()
    torch.testing.assert_close(measured.problem.noise_level[0], expected)


def test_a_mask_is_cut_to_the_size_of_the_photo() -> None:
    task = posed(mask=Path("mask.png"), fit="resize")
    assert isinstance(task.problem.degradation, Mask) and len(task.tiling) == 1
    assert 0 < task.problem.degradation.mask.mean() < 1


def test_measured_blur_uses_the_form_that_its_size_allows() -> None:
    options = {"kernel": Path("kernel.npy"), "stride": 2, "measured": True, "noise_level": 0.1}
    large = posed(**options)
    assert isinstance(large.problem.degradation, ValidRegion) and not large.exact
    assert large.problem.degradation.image_shape == (3, 80, 112)
    save("photo.png", scene(8, 8))
    small = posed(**options)
    assert isinstance(small.problem.degradation, ValidConvolution) and not small.exact
    exact = posed(**options | {"noise_level": 0.0})
    assert exact.exact


# ---- refusals


ASKED = ["--image=photo.png", "--out=out", "--mask=mask.png"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--measured", "--degradation=MotionBlur"], "--measured restores what a camera"),
        (["--measured"], "give one of --mask or --kernel"),
        ([], "give one of --degradation, --mask or --kernel"),
        (["--mask=mask.png", "--kernel=kernel.npy", "--stride=1"], "not --mask and --kernel"),
        (["--mask=mask.png", "--stride=2"], "--stride 2 goes with a --kernel"),
        (["--measured", "--mask=mask.png", "--fit=resize"], "use --fit tile"),
        (["--measured", "--kernel=kernel.npy", "--stride=2"], "needs --noise-level"),
        (["--degradation=Nonsense"], "unknown degradation 'Nonsense'"),
        (["--degradation=MatrixDegradation"], "use --fit resize, to 16×16 pixels"),
        (["--degradation=test_restore.Halves"], "Halves measures a photo as a whole, so no tile"),
        (["--mask=absent.png"], "absent.png cannot be read"),
        (["--mask=kernel.npy"], "kernel.npy is no picture"),
        (["--mask=small.png"], "small.png has 16×16 pixels (height × width), but photo.png has"),
        (["--mask=black.png"], "black.png is black everywhere"),
        (["--kernel=kernel.npy", "--stride=3"], "stride 3 must divide"),
        (["--kernel=photo.png", "--stride=1"], "leaves no sample inside 16×16 pixels"),
        (["--kernel=broad.npy", "--stride=1"], "broad.npy: kernels must be"),
        (["--image=tiny.png", "--mask=mask.png"], "has 40×56"),
        (["--image=tiny.png", "--degradation=MotionBlur"], "tiny.png is too small"),
        (["--image=tiny.png", "--degradation=Box", "--fit=resize"], "tiny.png is too small"),
        (["--image=none.png", "--degradation=Box"], "none.png cannot be read"),
        (["--mask=mask.png", "--sampler=nonsense"], "unknown sampler 'nonsense'"),
        (["--mask=mask.png", "--sampler-opt=steps=3"], "has no option 'steps'"),
        (["--mask=mask.png", "--sampler-opt=steps"], "is no option such as key=value"),
        (["--mask=mask.png", "--class=0"], "was trained with no classes"),
        (["--mask=mask.png", "--cfg=2"], "--cfg 2.0 guides by class, but"),
        (["--mask=mask.png", "--cfg=nan"], "--cfg nan must be a number of at least 0"),
        (["--mask=mask.png", "--cfg=-1"], "--cfg -1.0 must be a number of at least 0"),
        (["--mask=mask.png", "--out=photo.png/x"], "cannot write into"),
        (["--mask=mask.png", "--out=done"], "is not empty"),
        (["--mask=mask.png", "--noise-level=-1"], "Invalid value for '--noise-level'"),
        (["--mask=mask.png", "--noise-level=inf"], "noise level must be a number"),
        (["--mask=mask.png", "--noise-level=nan"], "noise level must be a number"),
        (["--measured", "--mask=mask.png", "--noise-level=inf"], "noise level must be a number"),
        (["--mask=mask.png", "--out=photo.png"], "photo.png is no folder"),
        (["--mask=mask.png", "--samples=-1"], "Invalid value for '--samples'"),
    ],
)
def test_refusals(nets: dict[str, Path], arguments: list[str], sentence: str) -> None:
    save("tiny.png", scene(12, 30))
    save("black.png", np.zeros((40, 56)))
    np.save("broad.npy", np.ones((3, 60)))
    Path("done").mkdir()
    Path("done/restore.json").write_text("{}")
    given = [f"--net={nets['plain']}", "--image=photo.png", "--out=out", *arguments]
    assert sentence in refusal(*given)


def test_networks_that_cannot_restore_are_refused(nets: dict[str, Path]) -> None:
    assert "would ignore the photo" in refusal(f"--net={nets['unconditional']}", *ASKED)
    assert "there is no weights file" in refusal("--net=absent.safetensors", *ASKED)
    assert "classes 0 to 2" in refusal(f"--net={nets['classes']}", *ASKED, "--class=3")


def test_a_failure_while_writing_leaves_nothing(
    nets: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError("no space left on the device")

    monkeypatch.setattr("commands.sheet.write_metrics", fail)
    arguments = ["--sampler=mmse", "--samples=1"]
    assert "no space left" in refusal(f"--net={nets['plain']}", *ASKED, *arguments)
    assert not Path("out").exists()
