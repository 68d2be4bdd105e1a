"""What a training run leaves: weights, log, curves, and when it ends."""

import itertools
import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from runs import BATCH, PowerCutError, batches, make_trainer, photos, run, settings, weights

from networks import load_weights, read_summary
from training import loop
from training.checkpoint import (
    list_checkpoints,
)
from training.curves import draw_curves
from training.log import read_log
from training.loop import Heldout, train
from training.schedule import learning_rate
from training.trainer import Trainer

# ---- what a run leaves ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Trainer]:
    """A run of six steps with a validation every two."""
    folder = tmp_path_factory.mktemp("finished")
    config = settings(validate_every=2 * BATCH, decay=4)
    return folder, run(folder, config, lambda denoiser: {"MotionBlur": 20.0, "Box": 10.0})


def test_exported_weights_are_the_average(finished):
    folder, trainer = finished
    exported = load_weights(folder / "weights.safetensors")
    torch.testing.assert_close(exported.state_dict(), trainer.average.state_dict(), rtol=0, atol=0)
    assert exported.config == trainer.denoiser.config
    pairs = zip(exported.parameters(), trainer.denoiser.parameters(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)


def test_exported_weights_say_how_they_were_trained(finished):
    summary = read_summary(finished[0] / "weights.safetensors")
    expected = {
        "images": 6 * BATCH, "steps": 6, "degradation": "RandomDegradation", "noise_level": 0.05,
        "precision": "fp32", "data": "datautils.photos.Photos", "skipped_steps": 0,
    }  # fmt: skip
    assert {key: summary[key] for key in expected} == expected and summary["seconds"] >= 0


def test_average_follows_the_weights_with_the_decay_of_the_schedule():
    trainer = make_trainer(settings())
    expected = [p.double() for p in weights(trainer)]
    for _ in range(3):
        trainer.step(*next(batches(1)), 0.0)
        decay = 0.5 ** (BATCH / 8)
        expected = [
            decay * old + (1 - decay) * new
            for old, new in zip(expected, weights(trainer), strict=True)
        ]
    for average, value in zip(trainer.average.parameters(), expected, strict=True):
        torch.testing.assert_close(average.double(), value, rtol=1e-5, atol=1e-7)


def test_every_line_of_the_log_is_json_with_the_numbers_of_a_report(finished):
    text = (finished[0] / "log.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert text.endswith("\n") and lines == read_log(finished[0])
    reports = [line for line in lines if "loss" in line]
    assert [line["images"] for line in reports] == [BATCH * i for i in range(1, 7)]
    assert [line["step"] for line in reports] == [1, 2, 3, 4, 5, 6]
    for line in reports:
        assert math.isfinite(line["loss"]) and line["images_per_second"] > 0
        assert line["skipped"] == 0
        fraction = (line["images"] - BATCH) / (6 * BATCH)
        expected = learning_rate(settings(decay=4), line["images"], fraction)
        assert line["lr"] == pytest.approx(expected)
    assert all(a["seconds"] <= b["seconds"] for a, b in pairwise(lines))


def test_the_log_holds_the_validations_from_the_first_image_on(finished):
    lines = [line for line in read_log(finished[0]) if "heldout_psnr" in line]
    assert [line["images"] for line in lines] == [0, 2 * BATCH, 4 * BATCH, 6 * BATCH]
    assert all(line["heldout_psnr"] == {"MotionBlur": 20.0, "Box": 10.0} for line in lines)


def test_reports_are_means_over_the_steps_between_them(tmp_path):
    run(tmp_path / "each", settings())
    run(tmp_path / "third", settings(log_every=3 * BATCH))
    each = [line["loss"] for line in read_log(tmp_path / "each")]
    third = read_log(tmp_path / "third")
    assert [line["step"] for line in third] == [3, 6]
    means = [sum(each[:3]) / 3, sum(each[3:]) / 3]
    assert [line["loss"] for line in third] == pytest.approx(means, rel=1e-5)


def test_a_run_may_end_by_the_clock(tmp_path, monkeypatch):
    seconds = itertools.count(0, 0.5)  # a look at the clock takes half a second
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    trainer = run(tmp_path, settings(duration=2**30, max_minutes=15 / 60, cooldown=1.0))
    last = [line for line in read_log(tmp_path) if "loss" in line][-1]
    assert 0 < trainer.progress.images < 2**30 and last["images"] == trainer.progress.images
    assert 4 < last["step"] < 30
    assert 0 < last["lr"] < 5e-4  # the cooldown follows the clock too
    assert (tmp_path / "weights.safetensors").exists()
    assert int(list_checkpoints(tmp_path / "checkpoints")[-1].name) == last["images"]


@pytest.mark.parametrize("options", [{"duration": 4 * BATCH}, {"max_minutes": 15 / 60}], ids=str)
def test_a_run_that_ended_and_was_killed_while_it_measured_measures_again(
    tmp_path, monkeypatch, options
):
    seconds = itertools.count(0, 0.5)
    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: next(seconds)))
    config = settings(**{"duration": 2**30, "checkpoint_every": 2**30} | options)

    def measure(fail: bool) -> Trainer:
        def distances(denoiser: Callable) -> dict[str, dict[str, float]]:
            if fail:
                raise PowerCutError
            return {"Box": {"fd": 1.0}}

        trainer = make_trainer(config)
        if (tmp_path / "checkpoints").exists():
            trainer.resume(tmp_path / "checkpoints")
        train(trainer, photos(), tmp_path, Heldout(distances=distances))
        return trainer

    with pytest.raises(PowerCutError):
        measure(fail=True)
    assert not any("heldout_distance" in line for line in read_log(tmp_path))
    for _ in range(2):  # and once only
        ended = measure(fail=False).progress.images
        lines = [line for line in read_log(tmp_path) if "heldout_distance" in line]
        assert [line["images"] for line in lines] == [ended]
    assert len(list_checkpoints(tmp_path / "checkpoints")) == 1


def drawn(folder: Path, lines: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """The left and right half of the curves of a log."""
    (folder / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    path = draw_curves([folder], folder / "curves.png")
    with Image.open(path) as picture:
        pixels = np.asarray(picture.convert("L"))
    return pixels[:, : pixels.shape[1] // 2], pixels[:, pixels.shape[1] // 2 :]


@pytest.mark.drawn
def test_curves_show_losses_and_validations(finished, tmp_path):
    lines = read_log(finished[0])
    psnr, loss = drawn(tmp_path, lines)
    reports = [line for line in lines if "loss" in line]
    values = [line["loss"] for line in reports]
    for line, value in zip(reports, reversed(values), strict=True):
        line["loss"] = value
    same, other = drawn(tmp_path, lines)
    assert np.array_equal(psnr, same) and not np.array_equal(loss, other)
    empty, _ = drawn(tmp_path, reports)  # a run without validation
    assert (empty < 160).sum() < (psnr < 160).sum()


@pytest.mark.parametrize("text", [None, "", "{"])
def test_a_folder_without_a_log_is_no_run(tmp_path, text):
    if text is not None:
        (tmp_path / "log.jsonl").write_text(text)
    if text == "":
        assert read_log(tmp_path) == []
        return
    with pytest.raises(ValueError, match="no training run"):
        read_log(tmp_path)
