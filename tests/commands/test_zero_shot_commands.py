"""Zero-shot samplers as users call them: `gen`, `gen-uncond`, `restore.py`."""

import itertools
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from plain_physics import Padded
from runner import Runner
from torch.profiler import ProfilerActivity, profile

import calculate_metrics
import restore
from commands.methods import load_frozen
from degradation import Draws, Mask, PhysicsFamily, Problem
from networks import Denoiser, GaussianMixture, make_config, save_weights
from zero_shot import DPS


@dataclass(frozen=True)
class Unknown(PhysicsFamily):
    """Operators without an SVD, as a user's own family."""

    physics: Any = field(default_factory=Padded)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("zero-shot")
    for name, conditioning, classes in (
        ("plain", "unconditional", 0), ("classes", "unconditional", 3), ("net", "invfusion", 0)
    ):  # fmt: skip
        torch.manual_seed(0)
        denoiser = Denoiser(make_config("tiny", conditioning, num_classes=classes))
        with torch.no_grad():
            for p in denoiser.parameters():
                p.add_(0.03 * torch.randn(p.shape))
        save_weights(folder / f"{name}.safetensors", denoiser, {})
    pixels = np.random.default_rng(0).integers(0, 255, (16, 24, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(folder / "photo.png")
    mask = np.full((16, 24), 255, np.uint8)
    mask[4:9] = 0
    Image.fromarray(mask).save(folder / "mask.png")
    return folder


def gen(home: Path, outdir: Path, net: str, *arguments: str) -> Result:
    return Runner().invoke(
        calculate_metrics.main,
        [
            "gen", f"--net={home / net}.safetensors", "--data-opt=resolution=16",
            "--data-opt=size=3", f"--outdir={outdir}", "--baselines=", *arguments,
        ],
    )  # fmt: skip


def cells(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    return json.loads((folder / "metrics.json").read_text())["metrics"]["values"][name]


def sentence(result: Result) -> str:
    assert result.exit_code == 2, result.output
    return result.stderr.strip().splitlines()[-1]


PARTICLES = ("--sampler-opt=mcgdiff.num_steps=3", "--sampler-opt=mcgdiff.particles=4")
QUICK = ("--sampler-opt=ddrm.num_steps=4", "--sampler-opt=dps.num_steps=3")


def test_an_unconditional_network_restores(home: Path, tmp_path: Path) -> None:
    result = gen(
        home, tmp_path / "out", "plain", "--degradation=MissingPatches",
        "--degradation=MatrixDegradation", "--sampler=ddrm", "--sampler=dps", *QUICK,
        "--recompute",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for family in ("MissingPatches", "MatrixDegradation"):
        found = cells(tmp_path / "out", family)
        assert list(found) == ["DDRM", "DPS"]
        assert found["DDRM"]["consistency"]["mean"] < 1e-9 < found["DPS"]["consistency"]["mean"]
        costs = [
            [cell[key] for key in ("evaluations", "backward_passes", "network_calls")]
            for cell in found.values()
        ]
        # Recomputed activations are no evaluations, neither outside nor inside.
        assert costs == [[4, 0, 4], [3, 3, 3]]
        assert found["DPS"]["network_backward_passes"] == 3
    header = next(line for line in result.output.splitlines() if "NFE" in line)
    assert [word.strip() for word in header.split("|")][-4:-1] == ["NFE", "VJP", "s/image"]
    samplers = json.loads((tmp_path / "out/metrics.json").read_text())["settings"]["samplers"]
    assert samplers["DPS"]["zeta"] == 0.5 and samplers["DDRM"]["eta"] == 0.85


def peak(denoiser: Denoiser) -> tuple[int, torch.Tensor]:
    """Most bytes at once, while a sampler differentiates, and its result."""
    op = Mask((torch.arange(256) % 3 > 0).view(1, 1, 16, 16).float(), (3, 16, 16)).expand(4)
    noise = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    problem = Problem(op, op.H(noise), 0.1)
    DPS(2)(denoiser, noise, problem, Draws(range(4)))  # whatever is made once
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        out = DPS(2)(denoiser, noise, problem, Draws(range(4)))
    events = recorded.profiler.kineto_results.events()  # type: ignore[union-attr]
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]
    return max(itertools.accumulate(sizes)), out


def test_recomputing_takes_less_memory(home: Path) -> None:
    cpu = torch.device("cpu")
    kept, expected = peak(load_frozen(home / "plain.safetensors", cpu, "fp32"))
    less, found = peak(load_frozen(home / "plain.safetensors", cpu, "fp32", recompute=True))
    torch.testing.assert_close(found, expected)
    assert less < 0.6 * kept


@pytest.mark.parametrize("recompute", [(), ("--recompute",)])
def test_weights_take_no_gradients(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recompute: tuple[str, ...]
) -> None:
    """In each command: a sampler differentiates by the images alone."""
    asked, forward = [], Denoiser.forward

    def watched(self: Denoiser, x: torch.Tensor, *arguments: Any) -> torch.Tensor:
        assert not any(p.requires_grad for p in self.parameters())
        assert self.net.recompute == frozenset(range(2) if recompute else ())
        asked.append(x.requires_grad)
        return forward(self, x, *arguments)

    monkeypatch.setattr(Denoiser, "forward", watched)
    options = ("--sampler=dps", "--sampler-opt=num_steps=2", *recompute)
    results = [
        gen(home, tmp_path / "gen", "plain", "--degradation=Box", *options),
        Runner().invoke(
            calculate_metrics.main,
            [
                "gen-uncond", f"--net={home}/plain.safetensors", f"--outdir={tmp_path}/uncond",
                "--images=1", *options,
            ],
        ),
        restored(home, tmp_path / "photo", "plain", "--samples=1", *options),
    ]  # fmt: skip
    for result in results:
        assert result.exit_code == 0, (result.exception, result.output)
    assert len(asked) >= 6 and all(asked)


def test_a_prior_recomputes_nothing(home: Path, tmp_path: Path) -> None:
    prior = GaussianMixture.gaussian(torch.zeros(768), torch.eye(768), (3, 16, 16))
    prior_path, cpu = tmp_path / "prior.safetensors", torch.device("cpu")
    save_weights(prior_path, prior, {})
    with pytest.raises(ValueError, match="--recompute is for networks, and --net names an analyt"):
        load_frozen(prior_path, cpu, "fp32", recompute=True)
    assert len(load_frozen(prior_path, cpu, "fp32")) == 1


def test_results_do_not_depend_on_the_batch(home: Path, tmp_path: Path) -> None:
    found = []
    for batch in ("1", "3"):
        out = tmp_path / batch
        arguments = ("--sampler=dps", "--sampler=ddrm", "--sampler=mcgdiff", *QUICK, *PARTICLES)
        result = gen(
            home, out, "plain", "--degradation=MotionBlur", "--noise-level=0.1", *arguments,
            f"--batch={batch}",
        )  # fmt: skip
        assert result.exit_code == 0, result.output
        found.append([cell["psnr"]["mean"] for cell in cells(out, "MotionBlur").values()])
        particles = cells(out, "MotionBlur")["MCGdiff"]
        # All particles of a batch go through the network at once.
        assert (particles["evaluations"], particles["network_calls"]) == (2 * 4 + 1, 2 + 1)
    assert found[0] == pytest.approx(found[1], abs=2e-3)


def test_guidance_by_class(home: Path, tmp_path: Path) -> None:
    result = Runner().invoke(
        calculate_metrics.main,
        [
            "gen-uncond", f"--net={home}/classes.safetensors", f"--outdir={tmp_path}/out",
            "--images=2", "--sampler=dps", "--sampler-opt=num_steps=3", "--cfg=2", "--class=1",
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    cell = cells(tmp_path / "out", "none")["DPS"]
    assert (cell["evaluations"], cell["network_calls"]) == (3, 6)
    assert (cell["backward_passes"], cell["network_backward_passes"]) == (3, 6)


def test_a_network_that_knows_operators_takes_both_kinds(home: Path, tmp_path: Path) -> None:
    arguments = ("--sampler=heun", "--sampler=ddnm", "--sampler-opt=heun.num_steps=2")
    result = gen(
        home, tmp_path / "out", "net", "--degradation=Box", *arguments,
        "--sampler-opt=ddnm.num_steps=3",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert list(cells(tmp_path / "out", "Box")) == ["InvFusion sample (heun)", "DDNM"]
    assert "VJP" not in result.output


def test_what_cannot_serve_is_refused_before_anything_runs(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    heun = gen(home, out, "plain", "--degradation=Box", "--sampler=ddrm", "--sampler=heun")
    assert "plain.safetensors is an unconditional denoiser: --sampler heun would" in sentence(heun)
    own = f"--degradation={Unknown.__module__}.Unknown"
    for sampler, name in (("ddrm", "DDRM"), ("mcgdiff", "MCGdiff"), ("ddnm_plus", "DDNMPlus")):
        refused = sentence(gen(home, out, "plain", own, f"--sampler={sampler}"))
        assert f"sampler {name} needs the singular value decomposition" in refused
        assert "FromPhysics does not have" in refused
    option = gen(home, out, "plain", "--degradation=Box", "--sampler=dps", "--sampler-opt=zeta=-1")
    assert "DPS option zeta=-1.0 must lie between 0 and" in sentence(option)
    assert not out.exists()


def test_operators_without_an_svd(home: Path, tmp_path: Path) -> None:
    own = f"--degradation={Unknown.__module__}.Unknown"
    arguments = ("--sampler=dds", "--sampler=pigdm", "--noise-level=0.05")
    quick = ("--sampler-opt=dds.num_steps=3", "--sampler-opt=pigdm.num_steps=3")
    result = gen(home, tmp_path / "out", "plain", own, *arguments, *quick)
    assert result.exit_code == 0, result.output
    assert list(cells(tmp_path / "out", own.partition("=")[2])) == ["DDS", "ΠGDM"]


# ---- a photo


def restored(home: Path, out: Path, net: str, *arguments: str) -> Result:
    return Runner().invoke(
        restore.main,
        [
            f"--net={home / net}.safetensors", f"--image={home}/photo.png", f"--outdir={out}",
            f"--mask={home}/mask.png", *arguments,
        ],
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "calls"), [(5, 2 * 2 + 1), (32, 2 * 1 + 1)])
def test_particles_of_a_photo_in_tiles(home: Path, tmp_path: Path, batch: int, calls: int) -> None:
    """Four particles of a sample are eight tiles, of which some or all go through the network."""
    options = ("--sampler=mcgdiff", "--sampler-opt=num_steps=3", "--sampler-opt=particles=4")
    out = tmp_path / "out"
    result = restored(home, out, "plain", *options, "--samples=1", f"--batch={batch}")
    assert result.exit_code == 0, result.output
    kept = json.loads((out / "restore.json").read_text())
    assert kept["settings"]["tiles"] == 2
    metrics = kept["metrics"]
    assert metrics["evaluations"] == {"samples": 2 * 4 + 1}
    assert metrics["network_calls"] == {"samples": calls}


@pytest.mark.parametrize("sampler", ["ddrm", "dps"])
def test_a_photo_in_tiles_by_a_network_that_knows_images_alone(
    home: Path, tmp_path: Path, sampler: str
) -> None:
    options = (f"--sampler={sampler}", "--sampler-opt=num_steps=3", "--samples=2")
    result = restored(home, tmp_path / "out", "plain", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    record = json.loads((tmp_path / "out/restore.json").read_text())
    assert record["settings"]["tiles"] == 2
    passes = {"samples": 3 if sampler == "dps" else 0}
    assert record["metrics"]["evaluations"] == {"samples": 3}
    assert record["metrics"]["backward_passes"] == passes
    assert any("mean of the samples" in note for note in record["settings"]["notes"])
    pictures = [
        np.asarray(Image.open(tmp_path / f"out/{name}.png")).astype(float)
        for name in ("sample-1", "sample-2", "mmse")
    ]
    inside = (pictures[0] > 0) & (pictures[0] < 255) & (pictures[1] > 0) & (pictures[1] < 255)
    assert inside[4:9].mean() > 0.2
    assert np.abs((pictures[0] + pictures[1]) / 2 - pictures[2])[inside].max() <= 1.5
    photo = np.asarray(Image.open(home / "photo.png")).astype(float)
    assert np.abs(pictures[0] - photo)[:4].max() <= 1  # projected onto y where it was seen


def test_one_sample_is_not_written_twice(home: Path, tmp_path: Path) -> None:
    options = ("--sampler=ddrm", "--sampler-opt=num_steps=3", "--samples=1")
    result = restored(home, tmp_path / "out", "plain", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    record = json.loads((tmp_path / "out/restore.json").read_text())
    assert set(record["metrics"]["pictures"]) == {"sample-1", "pinv"}
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert {"sample-1.png", "sheet.png"} <= pictures and "mmse.png" not in pictures
    assert "mmse.png is left out: it would be the mean of one sample" in record["settings"]["notes"]


def test_a_photo_by_a_network_that_knows_operators(home: Path, tmp_path: Path) -> None:
    options = ("--sampler=ddnm", "--sampler-opt=num_steps=3", "--samples=1")
    result = restored(home, tmp_path / "out", "net", *options)
    assert result.exit_code == 0, (result.exception, result.stderr)
    record = json.loads((tmp_path / "out/restore.json").read_text())
    assert record["metrics"]["evaluations"] == {"samples": 3, "mmse": 1}


def test_refusals_of_a_photo(home: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert "--sampler dpm would ignore the photo" in sentence(restored(home, out, "plain"))
    none = restored(home, out, "plain", "--sampler=ddrm", "--samples=0")
    assert "give --samples of at least 1" in sentence(none)
    kernel = np.outer([1, 2, 1], [1, 2, 1]).astype(float)
    np.save(tmp_path / "kernel.npy", kernel)
    arguments = [
        f"--net={home}/plain.safetensors", f"--image={home}/photo.png", f"--outdir={out}",
        "--measured", f"--kernel={tmp_path}/kernel.npy", "--noise-level=0.01", "--sampler=ddrm",
    ]  # fmt: skip
    result = Runner().invoke(restore.main, arguments)
    assert "sampler DDRM needs the singular value decomposition" in sentence(result)
    assert not out.exists()
