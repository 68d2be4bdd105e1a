"""What a run shows on the way: sheets, curves, TensorBoard, Weights & Biases."""

import importlib.util
import json
import os
import signal
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runner import Runner
from torch import Tensor

import train
from datautils.photos import Photos
from degradation import RandomDegradation, make_noise
from runtime.signals import RESUMABLE
from samplers import MMSE
from training import curves
from training.checkpoint import list_checkpoints
from training.config import TrainConfig
from training.log import read_log
from training.trackers import WeightsAndBiases, flat
from training.validation import HeldoutImages, draw_restorations

TRAIN = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "-b", "4", "--ramp=0",
    "--duration=16", "--fp32", "--workers=0", "--log-every=4", "--checkpoint-every=8",
    "--degradation=MissingPatches", "--validate-every=8", "--validate-images=2",
    "--sheet-every=8", "--sheet-images=2", "--objective=mmse",
]  # fmt: skip


def run(*options: object) -> None:
    result = Runner().invoke(train.main, [str(option) for option in options])
    assert result.exit_code == 0, result.stderr


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("trackers") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        run(*TRAIN, "--outdir", folder)
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture.convert("RGB")).astype(int)


def test_sheets_are_of_the_same_images_and_are_in_the_log(finished):
    names = [line["sheet"] for line in read_log(finished) if "sheet" in line]
    assert names == ["sheets/000000000008.png", "sheets/000000000016.png"]
    early, late = (pixels(finished / name) for name in names)
    assert early.shape == late.shape
    half = early.shape[1] // 2  # originals and measurements stand on the left
    assert np.array_equal(early[:, :half], late[:, :half]) and not np.array_equal(early, late)


def test_a_sheet_of_the_default_settings_is_one_picture(tmp_path):
    """Of the mixture that is trained on: 16 rows."""
    families = {type(part).__name__: part for part in RandomDegradation().parts()}
    config = TrainConfig()
    data, cpu = Photos(16, "heldout", size=8), torch.device("cpu")
    images = HeldoutImages(data, families, make_noise(), 4, cpu)
    rows = len(families) * config.sheet_images
    assert rows > 12  # more than a page of an evaluation
    path, zeros = tmp_path / "sheet.png", lambda x, sigma, problem: torch.zeros_like(x)
    draw_restorations(images, config.sheet_images, {"MMSE": MMSE()}, zeros, path)
    assert list(tmp_path.iterdir()) == [path]
    assert pixels(path).shape[0] > rows * 128


@pytest.mark.drawn
def test_curves_of_several_runs_are_drawn_into_one_picture(finished, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    lines = [line | {"loss": 2.0} if "loss" in line else line for line in read_log(finished)]
    lines.append({"images": 20, "loss": None, "step": 5})  # no step was finite
    (other / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    pictures = {}
    for name, runs in {"one": [finished] * 2, "two": [finished, other]}.items():
        out = tmp_path / f"{name}.png"
        result = Runner().invoke(curves.main, [*map(str, runs), "--dest", str(out)])
        assert result.exit_code == 0, result.stderr
        pictures[name] = pixels(out)
    assert not np.array_equal(pictures["one"], pictures["two"])


def test_curves_of_a_folder_that_is_no_run_are_refused(finished, tmp_path):
    out = tmp_path / "curves.png"
    result = Runner().invoke(curves.main, [str(finished), str(tmp_path), "--dest", str(out)])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert str(tmp_path) in result.stderr and not out.exists()


def test_sigterm_within_a_sheet_leaves_a_checkpoint_and_no_picture(finished, tmp_path, monkeypatch):
    """Not even one that the trackers would look for."""
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    estimate = MMSE.__call__

    def ended(*arguments: object) -> Tensor:
        os.kill(os.getpid(), signal.SIGTERM)
        return estimate(*arguments)

    options = [*TRAIN, "--validate-every=0", "--tensorboard", "--outdir", tmp_path / "run"]
    with monkeypatch.context() as patch:
        patch.setattr(MMSE, "__call__", ended)
        result = Runner().invoke(train.main, [str(option) for option in options])
    assert result.exit_code == RESUMABLE, result.stderr
    assert [p.name for p in list_checkpoints(tmp_path / "run" / "checkpoints")] == ["000000000008"]
    assert not (tmp_path / "run" / "sheets").exists()
    run("--resume", tmp_path / "run")
    names = [line["sheet"] for line in read_log(tmp_path / "run") if "sheet" in line]
    assert names == ["sheets/000000000008.png", "sheets/000000000016.png"]
    for name in names:
        assert np.array_equal(pixels(tmp_path / "run" / name), pixels(finished / name))


def test_numbers_of_a_line_by_name():
    line = {
        "loss": 1.5,
        "heldout_psnr": {"Box": 20, "Blur": None},
        "sheet": "x.png",
        "a": {"b": {}},
    }
    assert dict(flat(line)) == {"loss": 1.5, "heldout_psnr/Box": 20.0}


@pytest.mark.parametrize("option", ["--tensorboard", "--wandb=project"])
def test_a_tracker_that_is_not_installed_is_asked_for_in_a_sentence(option, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    result = Runner().invoke(train.main, [*TRAIN, option, "--outdir", str(tmp_path / "run")])
    assert result.exit_code == 2 and "pip install" in result.stderr
    assert not (tmp_path / "run").exists()


def test_tensorboard_has_the_numbers_of_the_log_once(tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    options = [*TRAIN, "--tensorboard", "--sheet-every=0", "--outdir", tmp_path / "run"]
    run(*options, "--duration=12")
    run("--resume", tmp_path / "run", "--duration=16")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    found = [(event.step, event.value) for event in events.Scalars("loss")]
    lines = [line for line in read_log(tmp_path / "run") if "loss" in line]
    assert [step for step, _ in found] == [line["images"] for line in lines] == [4, 8, 12, 16]
    assert [value for _, value in found] == pytest.approx([line["loss"] for line in lines])
    assert "heldout_psnr/MissingPatches" in events.Tags()["scalars"]


def test_an_identifier_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def cut_off(path: Path, text: str) -> None:
        path.write_bytes(text.encode()[:5])
        raise OSError("no space left on device")

    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace())
    monkeypatch.setattr(Path, "write_text", cut_off)
    with pytest.raises(OSError, match="no space left"):
        WeightsAndBiases(TrainConfig(wandb="project"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_wandb_offline_keeps_a_run_and_goes_on_with_it(tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="wandb is not installed")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("WANDB_SILENT", "WANDB_X_DISABLE_STATS", "WANDB_X_DISABLE_META"):
        monkeypatch.setenv(name, "true")
    run(*TRAIN, "--wandb=project", "--outdir", tmp_path / "run")
    identifier = (tmp_path / "run" / "wandb-id.txt").read_text()
    run("--resume", tmp_path / "run", "--duration=20")
    assert (tmp_path / "run" / "wandb-id.txt").read_text() == identifier
    kept = list((tmp_path / "run" / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    end = time.monotonic() + 30  # a process of wandb writes them
    assert kept
    while not all(path.stat().st_size > 1000 for path in kept):
        assert time.monotonic() < end
        time.sleep(0.1)


def test_wandb_that_cannot_start_ends_the_run_before_its_first_step(tmp_path, monkeypatch):
    """Without a login, without a network, or with settings that it does not know."""
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

    def fail(**settings: object) -> None:
        assert settings["settings"] == {"init_timeout": 30.0}
        raise wandb.Error("1 validation error for Settings\nmode\n  Input should be 'online'")

    monkeypatch.setattr(wandb, "init", fail)
    options = [*TRAIN, "--wandb=project", "--outdir", str(tmp_path / "run")]
    result = Runner().invoke(train.main, options)
    assert result.exit_code == 2 and "Traceback" not in result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert sentence.startswith("error: Weights & Biases cannot start (1 validation error for ")
    assert "wandb login" in sentence and "WANDB_MODE=offline" in sentence
    assert not (tmp_path / "run" / "checkpoints").exists()
