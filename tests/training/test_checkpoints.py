"""Checkpoints under stress, and the step that they are made of: nothing is lost or waited for."""

import errno
import json
import os
import pickle
import resource
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from helpers import write_checkpoint
from processes import Processes
from runner import Runner
from torch import Tensor

import train
from degradation import MissingPatches
from networks import Denoiser, make_config
from training import checkpoint, loop
from training.checkpoint import (
    Background,
    Progress,
    clear_unfinished,
    find_checkpoint,
    list_checkpoints,
    outdated,
    save_checkpoint,
)
from training.config import TrainConfig
from training.log import read_log
from training.trainer import Trainer

TRAIN = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "-b", "4", "--ramp=0",
    "--duration=16", "--fp32", "--workers=0", "--log-every=4", "--checkpoint-every=4",
    "--degradation=MissingPatches", "--validate-every=0", "--outdir=run",
]  # fmt: skip


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


def save(folder: Path, images: int, size: int = 8, **options: int) -> Path:
    tensors = {"w": torch.full((size,), float(images))}
    return save_checkpoint(folder, Progress(images), {"model": tensors}, **{"keep": 9} | options)


def images_of(folder: Path) -> list[int]:
    return [int(path.name) for path in list_checkpoints(folder)]


def test_counters_of_an_older_version_are_read(folder):
    path = save(folder, 4) / "state.json"
    state = json.loads(path.read_text())
    state["progress"]["position"] = []  # where a stream went on
    path.write_text(json.dumps(state))
    _, progress, warnings = find_checkpoint(folder)
    assert progress.images == 4 and not warnings


# ---- which ones stay -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "every", "gone"),
    [
        (1, 0, [4, 8, 12, 16, 20]),
        (2, 0, [4, 8, 12, 16]),
        (1, 10, [4, 8, 16]),
        (2, 10, [4, 8, 16]),
        (9, 10, []),
        (1, 8, [4, 12, 20]),
        (1, 1, []),
    ],
)
def test_the_last_ones_stay_and_the_first_after_each_multiple(keep, every, gone):
    assert outdated([4, 8, 12, 16, 20, 24], 24, keep, every) == gone


def test_the_newest_stays_where_a_damaged_one_has_a_higher_count():
    assert outdated([4, 8, 12], newest=8, keep=1, keep_every=0) == [4, 12]


def test_a_run_keeps_the_checkpoints_that_it_is_told_to(folder):
    result = Runner().invoke(train.main, [*TRAIN, "--keep-checkpoints=1", "--keep-every=8"])
    assert result.exit_code == 0, result.stderr
    assert images_of(folder / "run" / "checkpoints") == [8, 16]


def test_weights_are_written_once_for_each_checkpoint(folder, monkeypatch):
    """Not by the thread and by the run at its end, into one temporary file."""
    written, save = [], loop.save_weights

    def saved(path: Path, *arguments: object) -> None:
        written.append(path.name)
        save(path, *arguments)

    monkeypatch.setattr(loop, "save_weights", saved)
    result = Runner().invoke(train.main, TRAIN)
    assert result.exit_code == 0, result.stderr
    assert written == ["weights.safetensors"] * 4 and f"weights: run/{written[0]}" in result.stdout


# ---- disks that are full -------------------------------------------------------------------------


def test_a_full_disk_ends_the_run_in_a_sentence_and_leaves_the_last_checkpoint(folder, monkeypatch):
    write = checkpoint.write_tensors

    def full(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        if "000000000012" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, tensors, metadata)

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "write_tensors", full)
        result = Runner().invoke(train.main, TRAIN)
    assert result.exit_code == 2
    sentence = result.stderr.strip().splitlines()[-1]
    assert sentence.startswith("error: the checkpoint") and "No space left on device" in sentence
    assert "Traceback" not in result.stderr
    assert images_of(folder / "run" / "checkpoints") == [4, 8]
    assert not list((folder / "run" / "checkpoints").glob(".*"))
    result = Runner().invoke(train.main, ["--resume=run"])
    assert result.exit_code == 0, result.stderr
    assert [line["images"] for line in read_log(folder / "run")] == [4, 8, 12, 16]


def test_a_file_that_the_system_refuses_to_write_leaves_the_last_checkpoint(tmp_path):
    def limited() -> None:
        save(tmp_path, 8)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        with pytest.raises(OSError, match="cannot be written"):
            save(tmp_path, 16, size=4096)

    assert Processes(limited, errors=tmp_path / "errors.txt").codes() == [0]
    assert images_of(tmp_path) == [8]


# ---- files of another kind -----------------------------------------------------------------------


class Bomb:
    """Unpickled it would leave a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("name", ["model.safetensors", "state.json"])
def test_a_pickle_is_never_opened(tmp_path, name):
    save(tmp_path, 8)
    newest = save(tmp_path, 16)
    (newest / name).write_bytes(pickle.dumps(Bomb(tmp_path / "exploded")))
    path, progress, warnings = find_checkpoint(tmp_path)
    assert progress.images == 8 and len(warnings) == 1 and str(newest) in warnings[0]
    assert not (tmp_path / "exploded").exists()


def test_folders_of_writing_and_removing_that_was_cut_short_go(tmp_path):
    folder = tmp_path / "checkpoints"
    save(folder, 8)
    for name in (".000000000016.partial", ".000000000004.old"):
        (folder / name).mkdir()
        (folder / name / "model.safetensors").write_bytes(b"half")
    unfinished = (
        *(".config.yaml.12ab.tmp", ".log.jsonl.12ab.tmp", ".wandb-id.txt.12ab.tmp"),
        *(".weights.safetensors.77.tmp", "snapshots/.000000000016-power-0.1.safetensors.77.tmp"),
        "sheets/.000000000016.png.12ab.tmp",
    )
    of_others = (".average.safetensors.78.tmp", "snapshots/.average.safetensors.78.tmp")
    for name in (*unfinished, *of_others, ".lock", "kept.tmp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"half")
    assert images_of(folder) == [8]
    clear_unfinished(tmp_path)
    assert [path.name for path in folder.iterdir()] == ["000000000008"]
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {name for name in left if "checkpoints" not in name} == {*of_others, ".lock", "kept.tmp"}
    clear_unfinished(tmp_path / "nowhere")


def test_where_all_checkpoints_are_damaged_each_is_said_to_be(tmp_path):
    for images in (8, 16):
        (save(tmp_path, images) / "model.safetensors").write_bytes(b"half")
    with pytest.raises(ValueError, match=r"no sound checkpoint.*16: model.*damaged.*8: model"):
        find_checkpoint(tmp_path)


# ---- the thread that writes ----------------------------------------------------------------------


def test_what_is_written_is_what_was_copied():
    background, gate, seen = Background(), threading.Event(), []
    tensor = torch.ones(3)
    copied = background.copied({"model": {"w": tensor}})

    def task() -> None:
        gate.wait()
        seen.append(copied["model"]["w"].clone())

    background.run(task)
    tensor.zero_()
    assert not seen  # training goes on while the thread writes
    gate.set()
    background.wait()
    assert torch.equal(seen[0], torch.ones(3))


def test_the_next_copy_waits_for_the_writing_of_the_last():
    background, order = Background(), []
    background.run(lambda: (time.sleep(0.1), order.append("written")))
    background.copied({})
    order.append("copied")
    assert order == ["written", "copied"]


@pytest.mark.parametrize("call", ["wait", "check", "copied", "run"])
def test_a_failure_is_raised_where_training_goes_on(call):
    background = Background()

    def fail() -> None:
        raise OSError("disk full")

    background.run(fail)
    while not background._task.done():
        time.sleep(0.001)
    arguments: tuple = {"copied": ({},), "run": (fail,)}.get(call, ())
    with pytest.raises(OSError, match="disk full"):
        getattr(background, call)(*arguments)
    background.wait()  # told once


# ---- nothing is waited for -----------------------------------------------------------------------


LOSS = torch.ones(())


@pytest.fixture
def no_waiting(monkeypatch) -> Callable[[], None]:
    """From its call on, asking for a value of a tensor, for which a GPU would be waited, raises."""

    def refuse(self: Tensor, *arguments: object) -> None:
        raise AssertionError("the device is waited for")

    def begin() -> None:
        for name in ("item", "tolist", "cpu", "numpy", "nonzero", "__bool__", "__float__"):
            monkeypatch.setattr(Tensor, name, refuse)

    return begin


def trainer(**options: object) -> Trainer:
    settings = {
        "preset": "tiny", "batch": 2, "clip": 1.0, "ema_sigma_rel": [0.05, 0.1], "ramp": 0,
        "degradation": "MissingPatches", "max_skipped": 3, "precision": "fp16",
    }  # fmt: skip
    config = TrainConfig.load(None, settings | options)
    return Trainer(config, Denoiser(make_config("tiny")), MissingPatches(), torch.device("cpu"))


def backward(model: Trainer) -> None:
    model.scaler.scale(torch.ones(()))  # which sets it up
    for p in model.parameters:
        p.grad = torch.ones_like(p)
    model.progress.step += 1
    model.progress.images += 2


def test_an_update_asks_the_device_for_no_value(no_waiting):
    model = trainer()
    backward(model)
    no_waiting()
    model._update(LOSS, 0.0)
    with pytest.raises(AssertionError, match="waited for"):
        model.check_skips()


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_unscaled_and_clipped_to_the_norm(precision):
    plain = trainer(precision="fp32", clip=None)
    backward(plain)
    norm = plain._update(LOSS, 0.0)
    assert norm == pytest.approx(sum(p.numel() for p in plain.parameters) ** 0.5, rel=1e-5)
    clipped = trainer(precision=precision, clip=norm.item() / 4)
    backward(clipped)
    for p in clipped.parameters:
        p.grad *= clipped.scaler.get_scale()
    assert clipped._update(LOSS, 0.0) == pytest.approx(norm.item(), rel=1e-5)
    for one, other in zip(
        plain.optimizer.state.values(), clipped.optimizer.state.values(), strict=True
    ):
        torch.testing.assert_close(other["exp_avg"], one["exp_avg"] / 4, rtol=1e-4, atol=0)


def test_the_scale_of_fp16_goes_on_after_a_resume_and_doubles_after_2000_finite_steps(tmp_path):
    model = trainer()
    model.scaler.load_state_dict(model.scaler.state_dict() | {"_growth_tracker": 1998})
    backward(model)
    model._update(LOSS, 0.0)
    write_checkpoint(model, tmp_path)
    back = trainer()
    back.resume(tmp_path)
    assert back.state()[0].scaler == {"scale": 65536.0, "good": 1999}
    backward(back)
    back._update(LOSS, 0.0)
    assert back.state()[0].scaler == {"scale": 131072.0, "good": 0}


def test_skipped_steps_are_counted_across_a_resume(tmp_path):
    model = trainer()
    for _ in range(2):
        backward(model)
        model.parameters[0].grad.fill_(torch.inf)
        model._update(LOSS, 0.0)
    write_checkpoint(model, tmp_path)
    back = trainer()
    back.resume(tmp_path)
    assert back.progress.skipped == back.progress.skipped_in_a_row == 2
    assert back.scaler.get_scale() == 16384 and back.state()[0].scaler["good"] == 0
    backward(back)
    back._update(LOSS, 0.0)
    back.check_skips()
    assert back.progress.skipped == 2 and back.progress.skipped_in_a_row == 0
