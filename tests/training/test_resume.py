"""Training processes are killed at random moments and go on as if nothing had happened."""

import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import matplotlib.pyplot  # noqa: F401  what is imported here, no fork has to
import pytest
import yaml
from helpers import ONE_LEVEL
from processes import Processes

import commands.train  # noqa: F401
import train
from benchmarks.resume import differences
from runtime import distributed, signals
from runtime.signals import RESUMABLE
from training import checkpoint
from training.checkpoint import list_checkpoints

CONFIG = {
    "preset": "tiny", "data": {"resolution": 16, "size": 32}, "degradation": "MissingPatches",
    "batch": 4, "duration": 48, "lr": 2e-3, "ramp": 16, "cooldown": 0.5, "noise_level": 0.05,
    "ema_halflife": 16, "ema_ramp": 0, "precision": "fp32", "workers": 0, "log_every": 8,
    "checkpoint_every": 8, "ema_sigma_rel": [0.1], "snapshot_every": 24, "augment": 0.3,
    "validate_every": 20, "validate_images": 2, "clip": 1.0, "sheet_every": 0,
    "network": ONE_LEVEL,
}  # fmt: skip


def started(*options: object, count: int = 1) -> Processes:
    """`train.py` in some processes."""
    return Processes(_train, [str(option) for option in options], count=count)


def _train(options: list[str]) -> None:
    sys.argv = ["train.py", *options]
    train.main()


HALF = ".000000000016.partial"


def _train_into_half_a_checkpoint(options: list[str]) -> None:
    """Killed when the first file of the second checkpoint is written."""

    def kill(path: Path) -> None:
        if path.parent.name == HALF:
            os.kill(os.getpid(), signal.SIGKILL)

    checkpoint._sync = kill
    _train(options)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("resume")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TQDM_DISABLE", "1")
        yield folder


@pytest.fixture(scope="module")
def whole(home: Path) -> Callable[[int], Path]:
    """The folder of a run that is left alone, by the number of processes."""
    done: dict[int, Path] = {}

    def run(count: int) -> Path:
        if count not in done:
            done[count] = home / f"whole-{count}"
            options = "--config", home / "config.yaml", "--outdir", done[count]
            assert set(started(*options, count=count).codes()) == {0}
        return done[count]

    return run


def newest(folder: Path) -> int:
    """Images of the newest checkpoint."""
    return max((int(path.name) for path in list_checkpoints(folder / "checkpoints")), default=0)


def assert_same_run(one: Path, other: Path) -> None:
    """Weights, checkpoint, snapshots bit for bit, and the log but for the clock."""
    assert len(list(one.rglob("*.safetensors"))) == 11  # two checkpoints, two snapshots, weights
    assert list(differences(one, other)) == []
    ends = [list_checkpoints(run / "checkpoints")[-1] / "state.json" for run in (one, other)]
    counters = [json.loads(end.read_text())["progress"] | {"seconds": 0} for end in ends]
    assert counters[0] == counters[1]


@pytest.mark.parametrize("count", [1, 2])
def test_a_run_killed_at_three_random_moments_ends_like_one_that_was_not(home, whole, count):
    expected = whole(count)
    chance, folder = random.Random(count), home / f"killed-{count}"
    options = "--config", home / "config.yaml", "--outdir", folder, "--keep-going"
    for images in sorted(chance.sample(range(32), 3)):
        processes = started(*options, count=count)
        while newest(folder) < images:
            assert processes.alive()
            time.sleep(0.01)
        time.sleep(chance.uniform(0, 0.1))
        processes.kill(images % count)
    assert newest(folder) < 48
    assert set(started(*options, count=count).codes()) == {0}
    assert_same_run(expected, folder)


def test_ctrl_c_spares_what_a_shell_has_started_in_the_background(interruptible):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with distributed.process_group():
        os.kill(os.getpid(), signal.SIGINT)
        assert not signals.asked_to_end()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_a_checkpoint_and_its_own_exit_code(home, whole, number, interruptible):
    expected, folder = whole(2), home / f"ended-{number}"
    options = "--config", home / "config.yaml", "--outdir", folder, "--workers", 1
    processes = started(*options, count=2)
    log = folder / "log.jsonl"
    while not (log.exists() and "loss" in log.read_text()):
        assert processes.alive()
        time.sleep(0.01)
    before = time.monotonic()
    for loader in processes.children():  # a queue tells these too
        os.kill(loader, number)
    processes.signal(number, only=0)  # the others learn of it
    assert set(processes.codes()) == {RESUMABLE}
    assert time.monotonic() - before < 30
    assert 8 <= newest(folder) < 48
    assert set(started("--resume", folder, count=2).codes()) == {0}
    assert_same_run(expected, folder)


def test_a_second_ctrl_c_does_not_wait_for_the_step(interruptible):
    with distributed.process_group(), signals.deferred_termination():
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.asked_to_end()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert not signals.asked_to_end()


def test_ctrl_c_ends_what_writes_no_checkpoint(interruptible):
    with pytest.raises(SystemExit) as ended, distributed.process_group():
        os.kill(os.getpid(), signal.SIGINT)
    assert ended.value.code == 128 + signal.SIGINT


def test_a_machine_that_does_not_see_the_folder_ends_all_with_a_sentence(home, whole):
    folder, errors = whole(2), home / "errors.txt"
    options = ["--config", str(home / "config.yaml"), "--outdir", folder.name, "--keep-going"]
    (home / "elsewhere").mkdir()

    def start() -> None:
        os.chdir(home / "elsewhere" if os.environ["RANK"] == "1" else home)
        _train(options)

    assert Processes(start, count=2, errors=errors).codes() == [2, 2]
    (sentence,) = errors.read_text().splitlines()
    assert "process 1 cannot read the checkpoint" in sentence
    assert "all machines must see the folder" in sentence
    assert not list((home / "elsewhere").iterdir())


def test_what_a_kill_left_of_a_checkpoint_is_passed_over(home, whole):
    expected, folder = whole(1), home / "partial"
    options = "--config", home / "config.yaml", "--outdir", folder, "--keep-going"
    killed = Processes(_train_into_half_a_checkpoint, [str(option) for option in options])
    assert killed.codes() == [-signal.SIGKILL]
    assert (folder / "checkpoints" / HALF / "model.safetensors").exists()
    assert set(started(*options).codes()) == {0}
    assert not list(folder.glob("checkpoints/.*"))
    assert_same_run(expected, folder)
