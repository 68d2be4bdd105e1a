"""Checkpoints: whole or not there, checked when read, the newest kept."""

from pathlib import Path
from typing import Any

import pytest
import torch
from runs import make_trainer, settings
from torch import Tensor, nn

from training import checkpoint
from training.checkpoint import (
    Progress,
    find_checkpoint,
    list_checkpoints,
    load_parts,
    save_checkpoint,
)

# ---- checkpoints ---------------------------------------------------------------------------------


State = tuple[nn.Module, nn.Module, torch.optim.Adam]


def state(seed: int, width: int = 3, steps: int = 2) -> State:
    """A model, an average and an optimiser that has made some steps."""
    torch.manual_seed(seed)
    model, average = nn.Linear(width, 2), nn.Linear(width, 2)
    optimizer = torch.optim.Adam(model.parameters(), 0.1)
    for _ in range(steps):
        advance(model, optimizer)
    return model, average, optimizer


def advance(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model(torch.ones(1, model.in_features)).square().sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def parts(model: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    moments = optimizer.state_dict()["state"]
    return {
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimizer": {f"{i}/{key}": t for i, entry in moments.items() for key, t in entry.items()},
    }


def load_checkpoint(folder: Path, *into: Any) -> tuple[Progress, list[str]]:
    """Load the newest sound checkpoint into (model, average, optimiser)."""
    model, average, optimizer = into
    path, progress, warnings = find_checkpoint(folder)
    loaded = load_parts(path)
    model.load_state_dict(loaded["model"])
    average.load_state_dict(loaded["average"])
    entries: dict = {}
    for name, tensor in loaded["optimizer"].items():
        index, key = name.split("/")
        entries.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": entries, "param_groups": groups})
    return progress, warnings


def save(folder: Path, images: int, seed: int = 0, keep: int = 9, keep_every: int = 0) -> State:
    saved = state(seed)
    progress = Progress(images=images, step=images)
    save_checkpoint(folder, progress, parts(*saved), keep, keep_every)
    return saved


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def damage(path: Path) -> None:
    """Change one byte in the middle, so that the size stays."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_checkpoint_comes_back_bit_for_bit(tmp_path):
    saved = state(0)
    progress = Progress(
        images=96, step=12, seconds=1.5, skipped=3, skipped_in_a_row=1, scaler={"scale": 8.0},
        meters=[[0.1, 1 / 3, 2.0, 2.0, 2.0]],
    )  # fmt: skip
    save_checkpoint(tmp_path, progress, parts(*saved), keep=1)
    loaded = state(1, steps=0)
    assert load_checkpoint(tmp_path, *loaded) == (progress, [])
    for old, new in zip(saved, loaded, strict=True):
        torch.testing.assert_close(old.state_dict(), new.state_dict(), rtol=0, atol=0)
    assert loaded[2].state_dict()["state"][0]["exp_avg_sq"].ne(0).all()
    for model, _, optimizer in (saved, loaded):
        advance(model, optimizer)
    assert torch.equal(saved[0].weight, loaded[0].weight)


@pytest.mark.parametrize("name", ["model", "average", "optimizer"])
@pytest.mark.parametrize("harm", [damage, Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_checkpoint_is_passed_over_with_a_warning(tmp_path, name, harm):
    older, _, _ = save(tmp_path, 8, seed=0)
    save(tmp_path, 16, seed=1)
    newest = list_checkpoints(tmp_path)[-1]
    harm(newest / f"{name}.safetensors")
    loaded = state(2, steps=0)
    progress, warnings = load_checkpoint(tmp_path, *loaded)
    assert progress.images == 8
    assert torch.equal(loaded[0].weight, older.weight)
    assert len(warnings) == 1 and str(newest) in warnings[0] and name in warnings[0]


@pytest.mark.parametrize("text", ["", "{", "{}", "null"])
def test_a_damaged_record_of_a_checkpoint_is_passed_over(tmp_path, text):
    save(tmp_path, 8)
    save(tmp_path, 16)
    (list_checkpoints(tmp_path)[-1] / "state.json").write_text(text)
    progress, warnings = load_checkpoint(tmp_path, *state(2))
    assert progress.images == 8 and len(warnings) == 1


def test_no_sound_checkpoint_is_refused(tmp_path):
    save(tmp_path, 8)
    damage(list_checkpoints(tmp_path)[0] / "model.safetensors")
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match="no sound checkpoint"):
            load_checkpoint(folder, *state(1))


@pytest.mark.parametrize("files", [0, 1, 2])
def test_a_save_that_fails_leaves_nothing(tmp_path, monkeypatch, files):
    save(tmp_path, 8)
    write, written = checkpoint.write_tensors, []

    def failing(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        if len(written) == files:
            raise OSError("disk full")
        written.append(path)
        write(path, tensors, metadata)

    monkeypatch.setattr(checkpoint, "write_tensors", failing)
    with pytest.raises(OSError, match="disk full"):
        save(tmp_path, 16)
    assert names(tmp_path) == ["000000000008"]


def test_what_a_killed_save_left_is_ignored_and_replaced(tmp_path, monkeypatch):
    save(tmp_path, 8)
    with monkeypatch.context() as patch:  # as if the process had been killed before the rename
        replace = checkpoint.os.replace

        def killed(old: Path, new: Path) -> None:
            if Path(old).is_dir():
                raise OSError
            replace(old, new)

        patch.setattr(checkpoint.os, "replace", killed)
        patch.setattr(checkpoint.shutil, "rmtree", lambda *args, **kwargs: None)
        with pytest.raises(OSError):
            save(tmp_path, 16)
    assert len(names(tmp_path)) == 2
    assert [path.name for path in list_checkpoints(tmp_path)] == ["000000000008"]
    assert load_checkpoint(tmp_path, *state(1))[0].images == 8
    save(tmp_path, 16)
    assert names(tmp_path) == ["000000000008", "000000000016"]


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_checkpoints_are_kept(tmp_path, keep):
    counts = [8, 900, 16_000, 10**12 - 1]
    for images in counts:
        save(tmp_path, images, keep=keep)
    assert [int(path.name) for path in list_checkpoints(tmp_path)] == counts[-keep:]


def test_a_damaged_newer_checkpoint_does_not_crowd_out_the_one_just_written(tmp_path):
    save(tmp_path, 8)
    save(tmp_path, 16)
    damage(list_checkpoints(tmp_path)[-1] / "model.safetensors")
    save(tmp_path, 12, keep=1)  # after going on from 8
    assert load_checkpoint(tmp_path, *state(1))[0].images == 12


def test_a_checkpoint_of_the_same_count_is_replaced(tmp_path):
    save(tmp_path, 8, seed=0)
    model, _, _ = save(tmp_path, 8, seed=1)
    loaded = state(2)
    load_checkpoint(tmp_path, *loaded)
    assert torch.equal(loaded[0].weight, model.weight) and names(tmp_path) == ["000000000008"]


def test_a_checkpoint_of_another_architecture_is_refused_in_a_sentence(tmp_path):
    save(tmp_path, 8)
    with pytest.raises(ValueError, match="another architecture") as error:
        make_trainer(settings()).resume(tmp_path)
    assert "\n" not in str(error.value) and "000000000008" in str(error.value)
