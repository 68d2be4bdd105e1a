"""Runs of `train.py` and their continuation: what a folder must hold, and must not."""

import json
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
import torch
from command_lines import assert_names, refusal, success
from runner import Runner

import train
from networks import load_weights
from training.config import TrainConfig
from training.log import read_log

pytestmark = pytest.mark.usefixtures("folder")


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    return tmp_path_factory.mktemp("kept") / "run"


@pytest.fixture
def trained(config, kept):
    """A finished run of `config` in the folder run: trained once, a copy for each test."""
    if not kept.exists():
        success(train.main, [config, "--outdir=run"])
        shutil.copytree("run", kept)
    else:
        shutil.copytree(kept, "run")


@pytest.mark.drawn
def test_a_run_leaves_weights_log_curves_and_its_settings(folder, config):
    success(train.main, [config, "--name=mine", "--seed=3"])
    run = folder / "experiments" / "mine"
    names = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert names == {
        "checkpoints", "config.yaml", "curves.png", "log.jsonl", "starts.jsonl",
        "weights.safetensors",
    }  # fmt: skip
    resolved = TrainConfig.load(run / "config.yaml", {})
    assert resolved == TrainConfig.load(Path("quick.yaml"), {"seed": 3})
    (start,) = map(json.loads, (run / "starts.jsonl").read_text().splitlines())
    assert start["command"] and start["environment"]["torch"] == torch.__version__
    heldout = [line["heldout_psnr"] for line in read_log(run) if "heldout_psnr" in line]
    assert len(heldout) == 2 and all(set(psnr) == {"MotionBlur"} for psnr in heldout)


def test_a_run_is_named_after_its_preset(folder, config):
    success(train.main, [config])
    assert [path.name for path in (folder / "experiments").iterdir()] == ["tiny"]


def test_a_folder_that_holds_a_run_is_refused(config, trained):
    sentence = refusal(train.main, [config, "--outdir=run"])
    assert_names(sentence, "run --resume --outdir")


def assert_same_weights(*runs: str) -> None:
    one, other = (load_weights(Path(run, "weights.safetensors")).state_dict() for run in runs)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_resumed_run_ends_like_one_that_was_longer_from_the_start(config):
    success(train.main, [config, "--outdir=long", "--duration=16"])
    success(train.main, [config, "--outdir=short"])
    success(train.main, ["--resume=short", "--duration=16"])
    assert_same_weights("long", "short")
    losses = [
        [line["loss"] for line in read_log(Path(n)) if "loss" in line] for n in ("long", "short")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert TrainConfig.load(Path("short/config.yaml"), {}).duration == 16
    starts = Path("short/starts.jsonl").read_text().splitlines()
    assert len(starts) == 2  # every start is on record


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(trained):
    success(train.main, ["--resume=run", "--duration=16"])
    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"")
    result = success(train.main, ["--resume=run", "--duration=16"])
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and str(newest) in warnings[0]


def test_a_log_that_was_cut_in_a_line_does_not_stop_a_resumed_run(trained):
    with Path("run/log.jsonl").open("a") as file:
        file.write('{"images": 8, "st')
    success(train.main, ["--resume=run", "--duration=16"])
    assert read_log(Path("run"))[-1]["images"] == 16


@pytest.mark.parametrize("log", [None, b"\xff\xfe\n[1]\n{}\n5\n"])
def test_a_run_goes_on_where_its_log_is_lost(trained, log):
    Path("run/log.jsonl").unlink()
    if log is not None:
        Path("run/log.jsonl").write_bytes(log)
    success(train.main, ["--resume=run", "--duration=16"])
    assert read_log(Path("run"))[-1]["images"] == 16


def test_resuming_a_folder_that_is_no_run_is_refused(folder):
    (folder / "empty").mkdir()
    assert_names(refusal(train.main, ["--resume=empty"]), "empty")
    assert_names(refusal(train.main, ["--resume=nowhere"]), "nowhere")


def test_resuming_a_run_whose_checkpoints_were_removed_is_refused(trained):
    shutil.rmtree("run/checkpoints")
    assert_names(refusal(train.main, ["--resume=run"]), "run checkpoint")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(config):
    success(train.main, [config, "--outdir=whole"])
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("whole/config.yaml").read_text())
    Path("run/log.jsonl").write_text('{"images": 4, "loss": 1.0}\n')
    success(train.main, ["--resume=run"])
    assert_same_weights("whole", "run")
    assert len(read_log(Path("run"))) == len(read_log(Path("whole")))


def test_the_same_command_starts_a_run_and_goes_on_with_it(config):
    success(train.main, [config, "--outdir=long", "--duration=16"])
    success(train.main, [config, "--outdir=run", "--keep-going"])
    assert read_log(Path("run"))[-1]["images"] < 16
    sentence = refusal(train.main, [config, "--outdir=run", "--keep-going", "--lr=1"])
    assert_names(sentence, "lr resumed")
    assert_names(refusal(train.main, [config, "--outdir=run"]), "run --resume")
    success(train.main, [config, "--outdir=run", "--keep-going", "--duration=16"])
    assert_same_weights("long", "run")


def test_torchrun_may_start_a_run_again_only_if_it_then_goes_on(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    sentence = refusal(train.main, [config, "--outdir=run"])
    assert_names(sentence, "--max-restarts --keep-going")
    success(train.main, [config, "--outdir=run", "--keep-going"])


def test_a_folder_in_which_another_process_trains_is_refused(trained):
    hold = (
        "import fcntl; f = open('run/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    assert_names(refusal(train.main, ["--resume=run", "--duration=16"]), "another process run")
    other.communicate(b"\n")
    success(train.main, ["--resume=run", "--duration=16"])


def test_a_folder_in_which_another_run_ended_meanwhile_is_refused(config, monkeypatch):
    import commands.train

    claimed = commands.train.claimed

    def late(folder: Path, use: str) -> AbstractContextManager[None]:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"of another run")
        return claimed(folder, use)

    monkeypatch.setattr(commands.train, "claimed", late)
    result = Runner().invoke(train.main, [config, "--outdir=run"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert_names(result.stderr, "run --resume --name")
    assert not Path("run/config.yaml").exists()
    assert Path("run/weights.safetensors").read_bytes() == b"of another run"


@pytest.mark.parametrize("option", ["--config=quick.yaml", "--name=other", "--outdir=other"])
def test_resuming_takes_the_settings_of_the_run(config, option):
    assert_names(refusal(train.main, ["--resume=run", option]), "--config --name --outdir")


def test_resuming_another_network_is_refused(trained):
    sentence = refusal(train.main, ["--resume=run", "--blind-train"])
    assert_names(sentence, "blind resumed duration")


@pytest.mark.parametrize("change", ["--precision=fp16", "--batch=8", "--lr=1", "--seed=9"])
def test_what_makes_a_run_what_it_is_cannot_change_on_resuming(trained, change):
    name = change[2:].partition("=")[0]
    assert_names(refusal(train.main, ["--resume=run", change]), f"{name} resumed duration")


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(config):
    Path("run").mkdir()
    Path("run/log.jsonl").write_text('{"images": 0, "cut')
    success(train.main, [config, "--outdir=run"])
    assert all("images" in line for line in read_log(Path("run")))


def test_weights_that_are_not_finite_are_never_written(config):
    arguments = [config, "--outdir=run", "--lr=1e38", "--ramp=0", "--decay=none", "--duration=16"]
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 2
    assert "not finite after" in result.stderr and "lower the learning rate" in result.stderr
    assert not list(Path("run").rglob("*.safetensors"))
