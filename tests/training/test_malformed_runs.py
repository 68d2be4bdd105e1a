"""Checkpoints, snapshots and logs that hold other values than a run writes."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from helpers import write_checkpoint
from safetensors.torch import load_file, save_file

from degradation import MissingPatches
from networks import Denoiser, make_config, save_weights
from runtime.files import sha256_of
from training.checkpoint import find_checkpoint, list_checkpoints
from training.config import TrainConfig
from training.log import read_log
from training.posthoc import reconstruct
from training.trainer import Trainer

Tensors = dict[str, torch.Tensor]


def trainer() -> Trainer:
    settings = {
        "preset": "tiny", "batch": 2, "ema_sigma_rel": [0.1], "ramp": 0, "precision": "fp32",
        "degradation": "MissingPatches",
    }  # fmt: skip
    config = TrainConfig.load(None, settings)
    return Trainer(config, Denoiser(make_config("tiny")), MissingPatches(), torch.device("cpu"))


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two checkpoints of a network, after one step and after two."""
    folder, model = tmp_path_factory.mktemp("written"), trainer()
    for _ in range(2):
        model.step(torch.zeros(2, 3, 16, 16, dtype=torch.uint8), torch.full((2,), -1), 0.0)
        write_checkpoint(model, folder)
    return folder


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """The same, to be changed."""
    return Path(shutil.copytree(written, tmp_path / "checkpoints"))


def sealed(path: Path, state: dict) -> None:
    """Write a record whose checksums are right, as whoever forges one does."""
    for file in path.glob("*.safetensors"):
        state["checksums"][file.name] = sha256_of(file)
    (path / "state.json").write_text(json.dumps(state))


def newest(folder: Path) -> tuple[Path, dict]:
    path = list_checkpoints(folder)[-1]
    return path, json.loads((path / "state.json").read_text())


@pytest.mark.parametrize(
    "change",
    [
        {"images": "4"}, {"images": 4.5}, {"images": None}, {"step": 1e400}, {"seconds": "soon"},
        {"skipped_in_a_row": []}, {"broken": True}, {"scaler": []}, {"meters": [["a"] * 4]},
        {"meters": {}}, {"origin": {"settings": {}}}, {"origin": 3},
    ],
    ids=str,
)  # fmt: skip
def test_counters_that_no_run_has_are_passed_over(folder, change):
    path, state = newest(folder)
    state["progress"] |= change
    sealed(path, state)
    _, progress, warnings = find_checkpoint(folder)
    assert progress.images == 2 and len(warnings) == 1
    assert f"{path}: state.json: progress: " in warnings[0]


@pytest.mark.parametrize("text", ["[" * 100_000, '{"progress":' * 100_000, "[]", "1", '"x"'])
def test_a_record_of_another_kind_falls_back_to_the_checkpoint_before(folder, text):
    (newest(folder)[0] / "state.json").write_text(text)
    _, progress, warnings = find_checkpoint(folder)
    assert progress.images == 2 and len(warnings) == 1


def shorter(tensors: Tensors) -> None:
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name].flatten()[:1].clone()  # would spread over all


def without_one(tensors: Tensors) -> None:
    tensors.pop(next(iter(tensors)))


def of_another_type(tensors: Tensors) -> None:
    name = max(tensors, key=lambda name: tensors[name].numel())
    tensors[name] = tensors[name].to(torch.int8)


@pytest.mark.parametrize("part", ["model", "average", "optimizer", "power-0.1"])
@pytest.mark.parametrize("harm", [shorter, without_one, of_another_type, dict.clear])
def test_parts_of_another_network_are_refused_and_nothing_goes(folder, part, harm):
    path, state = newest(folder)
    tensors = load_file(path / f"{part}.safetensors")
    harm(tensors)
    save_file(tensors, path / f"{part}.safetensors")
    sealed(path, state)
    with pytest.raises(ValueError, match="000000000004 belongs to a network of another"):
        trainer().resume(folder)
    assert len(list_checkpoints(folder)) == 2


@pytest.mark.parametrize("part", ["model", "average", "optimizer", "power-0.1"])
def test_a_part_that_is_missing_is_refused(folder, part):
    path, state = newest(folder)
    (path / f"{part}.safetensors").unlink()
    del state["checksums"][f"{part}.safetensors"]
    sealed(path, state)
    with pytest.raises(ValueError, match="000000000004 belongs to a network of another"):
        trainer().resume(folder)


def test_a_sound_checkpoint_goes_on(folder):
    back = trainer()
    back.resume(folder)
    assert back.progress.images == 4


@pytest.mark.parametrize("line", ["[" * 100_000, '{"images": 4', "\xff"])
def test_lines_of_a_log_that_are_cut_off_are_passed_over(tmp_path, line):
    sound = '{"images": 2, "loss": null, "heldout_psnr": {"Box": 20.5}, "other": [1]}'
    (tmp_path / "log.jsonl").write_text(f"{sound}\n{line}\n{sound}\n")
    assert read_log(tmp_path) == [json.loads(sound)] * 2


@pytest.mark.parametrize(
    "summary",
    [
        {}, {"images": 4}, {"images": "4", "sigma_rel": 0.1},
        {"images": 4, "sigma_rel": None}, {"images": True, "sigma_rel": 0.1},
    ],
    ids=str,
)  # fmt: skip
def test_a_snapshot_with_other_values_is_refused_by_name(tmp_path, summary):
    path = tmp_path / "snapshots" / "000000000004-power-0.1.safetensors"
    save_weights(path, Denoiser(make_config("tiny")), summary)
    with pytest.raises(
        ValueError, match=r"power-0\.1\.safetensors( is no snapshot of a run|: images must be)"
    ):
        reconstruct(tmp_path, 0.1)


@pytest.mark.parametrize("text", ["[" * 1000, "\xff"], ids=["deep", "bytes"])
def test_settings_that_cannot_be_read_are_refused_by_file(tmp_path, text):
    path = tmp_path / "config.yaml"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"config\.yaml is no valid YAML file"):
        TrainConfig.load(path, {})
