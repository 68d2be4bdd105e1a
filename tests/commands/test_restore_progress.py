"""What `restore.py` says while it works, and what it takes without --net and --sampler."""

import io
import itertools
import json
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from runner import Runner
from zero_shot_cases import QUICK

import restore
from commands import restoration, sheet
from degradation import Draws, GaussianNoise, MissingPatches
from networks import Denoiser, make_config, save_weights
from runtime import progress
from samplers import CountingDenoiser, evaluations_of, make_sampler, sampler_names

SHAPE = (3, 16, 16)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A network in the place of the weights that ship, and a photo."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    path = tmp_path / "checkpoints" / "photos64-invfusion.safetensors"
    save_weights(path, Denoiser(make_config("tiny")), {})
    monkeypatch.setattr("commands.restore_photo.SHIPPED", path)
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save("photo.png")
    return path


@pytest.mark.parametrize("name", sampler_names())
def test_evaluations_are_those_that_a_restoration_takes(name: str) -> None:
    sampler, draws = QUICK.get(name) or make_sampler(name), Draws([1])
    operator = MissingPatches().sample(SHAPE, MissingPatches().structure(1), [1])
    problem = GaussianNoise(0).measure(operator, torch.zeros(1, *SHAPE), draws)
    counter = CountingDenoiser(lambda x, sigma, problem: 0.5 * x, 1)
    with torch.no_grad():
        sampler(counter, draws.normal(SHAPE, "latent"), problem, draws)
    told = evaluations_of(sampler, SHAPE)
    assert told == counter.calls > 0 or (name == "adaptive" and 22 >= told > counter.calls > 2)


def test_the_plan_comes_first_and_lines_follow_where_no_terminal_is(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_SECONDS", 0.0)
    arguments = ["--image=photo.png", "--degradation=MotionBlur", "--samples=1", "--outdir=out"]
    result = Runner().invoke(restore.main, [*arguments, "--batch=4"])
    assert result.exit_code == 0, result.output
    assert "6 tiles × 1 sample × 8 evaluations" in result.stdout
    lines = result.stderr.splitlines()
    assert lines[0].startswith("mmse: 0 of 2 batches")
    assert any(line.startswith("mmse: 2 of 2 batches") for line in lines)
    assert any(line.startswith("samples: 16 of 16 batches") for line in lines)
    assert "\r" not in result.stderr


def test_a_bar_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    with progress.progress(2, "samples", "batches") as bar:
        bar.update(2)
    assert "\r" in sys.stderr.getvalue() and "\n" not in sys.stderr.getvalue()  # type: ignore[attr-defined]


def test_weights_that_are_missing(shipped: Path) -> None:
    shipped.unlink()
    arguments = ["--image=photo.png", "--degradation=Box", "--outdir=out"]
    result = Runner().invoke(restore.main, arguments)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {shipped} is missing: get it back by")
    assert not Path("out").exists()


def test_a_photo_smaller_than_the_network(shipped: Path) -> None:
    Image.new("RGB", (12, 40)).save("photo.png")
    arguments = ["--image=photo.png", "--degradation=Box", "--outdir=out"]
    result = Runner().invoke(restore.main, arguments)
    assert result.exit_code == 2
    assert "photo.png is too small: it gives 40×12 pixels" in result.stderr


def test_the_estimate_comes_first_and_every_sample_when_it_is_there(
    shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[str] = []
    real = sheet.write_picture

    def write(path: Path, image: torch.Tensor) -> None:
        real(path, image)
        written.extend(sorted(other.name for other in path.parent.glob("*.png")))
        written.append("|")

    monkeypatch.setattr("commands.restoration.write_picture", write)
    arguments = ["--image=photo.png", "--degradation=MotionBlur", "--samples=2", "--outdir=out"]
    result = Runner().invoke(restore.main, [*arguments, "--batch=6"])
    assert result.exit_code == 0, result.output
    steps = [step.split() for step in " ".join(written).split("|")[:-1]]
    assert steps[0] == ["mmse.png"] and steps[1] == ["mmse.png", "sample-1.png"]
    assert steps[2] == ["mmse.png", "sample-1.png", "sample-2.png"]


def test_samples_do_not_depend_on_how_many_are_drawn_at_once(shipped: Path) -> None:
    arguments = ["--image=photo.png", "--degradation=Box", "--samples=3"]
    for out, batch in (("one", 1), ("all", 64)):
        result = Runner().invoke(
            restore.main, [*arguments, "--fit=resize", f"--outdir={out}", f"--batch={batch}"]
        )
        assert result.exit_code == 0, result.output
    for name in ("mmse", "sample-1", "sample-3", "std"):
        one, every = (np.asarray(Image.open(f"{out}/{name}.png")) for out in ("one", "all"))
        assert np.abs(one.astype(int) - every).max() <= 1
    records = [json.loads(Path(out, "restore.json").read_text()) for out in ("one", "all")]
    assert all(record["settings"]["sampler_options"]["eta"] == 1 for record in records)
    counts = [record["metrics"] for record in records]
    assert counts[0]["evaluations"] == counts[1]["evaluations"] == {"mmse": 1, "samples": 8}
    assert [count["network_calls"]["samples"] for count in counts] == [24, 8]


@pytest.mark.usefixtures("interruptible")
def test_ctrl_c_keeps_what_is_finished(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = sheet.write_picture

    def write(path: Path, image: torch.Tensor) -> None:
        real(path, image)
        if path.name == "sample-1.png":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr("commands.restoration.write_picture", write)
    arguments = ["--image=photo.png", "--degradation=MotionBlur", "--samples=3", "--outdir=out"]
    result = Runner().invoke(restore.main, [*arguments, "--batch=6"])
    assert result.exit_code == 130 and "stopped after 1 of 3 samples" in result.stdout
    assert {"mmse.png", "sample-1.png", "sheet.png"} <= set(os.listdir("out"))
    assert not Path("out/sample-2.png").exists() and not Path("out/.unfinished").exists()
    assert "sample-1" in json.loads(Path("out/restore.json").read_text())["metrics"]["pictures"]


def test_long_sampling_is_announced(shipped: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(restoration, "_LONG", 0.0)
    clock = itertools.count(0.0, 60.0)
    monkeypatch.setattr(restoration, "seconds_now", lambda device: next(clock))
    arguments = ["--image=photo.png", "--degradation=Box", "--fit=resize", "--samples=2"]
    result = Runner().invoke(restore.main, [*arguments, "--outdir=out"])
    assert result.exit_code == 0, result.output
    # a minute for one evaluation, eight of them for each sample
    assert "samples: about 16 min; --samples 0 leaves them out" in result.stdout


@pytest.mark.parametrize(("seconds", "words"), [(25, "25 s"), (2400, "40 min"), (12600, "3.5 h")])
def test_times_in_words(seconds: float, words: str) -> None:
    assert progress.in_words(seconds) == words


def test_a_grey_photo_has_grey_restorations(shipped: Path) -> None:
    Image.open("photo.png").convert("L").save("grey.png")
    for degradation in ("Box", "MotionBlur"):
        arguments = ["--image=grey.png", "--samples=1", f"--outdir={degradation}"]
        result = Runner().invoke(restore.main, [*arguments, f"--degradation={degradation}"])
        assert result.exit_code == 0, result.output
        assert "the photo is grey, so samples and estimate are made grey" in result.stdout
        for name in ("mmse", "sample-1"):
            pixels = np.asarray(Image.open(f"{degradation}/{name}.png")).astype(int)
            assert np.ptp(pixels, axis=2).max() <= 1
        pictures = json.loads(Path(degradation, "restore.json").read_text())["metrics"]["pictures"]
        assert pictures["sample-1"]["consistency"] < 1e-6


def test_few_steps_of_heun_are_warned_of(shipped: Path) -> None:
    arguments = ["--image=photo.png", "--degradation=Box", "--fit=resize", "--samples=1"]
    few = [*arguments, "--sampler=heun", "--sampler-opt=num_steps=4", "--outdir=few"]
    assert "leaves noise in its samples" in Runner().invoke(restore.main, few).stdout
    many = [*arguments, "--sampler=heun", "--sampler-opt=num_steps=16", "--outdir=many"]
    assert "leaves noise" not in Runner().invoke(restore.main, many).stdout
