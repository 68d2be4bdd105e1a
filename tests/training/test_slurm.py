"""configs/train.sbatch under a Slurm of a few lines of shell."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

JOB = Path(__file__).resolve().parents[2] / "configs" / "train.sbatch"
# srun keeps its arguments, then does what STEP says; scancel ends it as Slurm would.
COMMANDS = {
    "srun": 'echo "$@" > srun.txt\nif [ "$STEP" != wait ]; then exit "$STEP"; fi\n'
    "echo $$ > srun.pid\ntrap 'exit 1' TERM\nwhile :; do sleep 0.05; done",
    "scancel": 'echo "$@" > scancel.txt\nkill -TERM "$(cat srun.pid)"',
    "scontrol": 'if [ "$1" = requeue ]; then echo "$@" > requeue.txt; exit; fi\n'
    "echo node7\necho node8",
}


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose commands stand for those of Slurm."""
    (tmp_path / "bin").mkdir()
    for name, text in COMMANDS.items():
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/bash\n{text}\n")
        path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name, value in {
        "SLURM_JOB_ID": "42", "SLURM_JOB_NODELIST": "node[7-8]", "SLURM_JOB_NUM_NODES": "2",
        "SLURM_GPUS_ON_NODE": "4",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    return tmp_path


def waited(path: Path) -> None:
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end, path
        time.sleep(0.01)


@pytest.mark.parametrize("code", [0, 2])
def test_a_run_that_ends_is_not_queued_again(slurm: Path, code: int, monkeypatch) -> None:
    monkeypatch.setenv("STEP", str(code))
    monkeypatch.setenv("NAME", "mine")
    assert subprocess.run(["bash", JOB]).returncode == code
    assert not Path("requeue.txt").exists()
    words = Path("srun.txt").read_text().split()
    assert {"--nnodes=2", "--nproc_per_node=4", "--rdzv_endpoint=node7:29500"} <= set(words)
    run = ["train.py", "--config", "configs/FFHQ64.yaml", "--name", "mine", "--keep-going"]
    assert words[-6:] == run


def test_a_run_whose_time_ends_writes_a_checkpoint_and_is_queued_again(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STEP", "wait")
    job = subprocess.Popen(["bash", JOB])
    waited(Path("srun.pid"))
    job.send_signal(signal.SIGUSR1)
    assert job.wait(30) == 0
    assert Path("scancel.txt").read_text().split() == ["--signal=TERM", "42"]
    assert Path("requeue.txt").read_text().split() == ["requeue", "42"]
