"""A run whose output breaks goes on without its bar."""

import os
import sys
from pathlib import Path

import pytest
from processes import Processes

import commands.train  # noqa: F401  what is imported here, no fork has to
import train
from training.checkpoint import list_checkpoints

OPTIONS = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "-b4", "--duration=16",
    "--ramp=0", "--fp32", "--workers=0", "--log-every=4", "--checkpoint-every=8",
    "--degradation=MissingPatches", "--validate-every=0",
]  # fmt: skip


@pytest.mark.parametrize("broken", ["pipe", "/dev/full"])
def test_a_run_goes_on_to_its_end(tmp_path, broken):
    def run() -> None:
        reading, writing = os.pipe()
        os.close(reading)  # as head does it when it has seen enough
        output = writing if broken == "pipe" else os.open(broken, os.O_WRONLY)
        os.dup2(output, 1)
        sys.argv = ["train.py", *OPTIONS, f"--outdir={tmp_path / 'run'}"]
        train.main()

    errors = tmp_path / "errors.txt"
    assert Processes(run, errors=errors).codes() == [0], errors.read_text()
    assert [p.name for p in list_checkpoints(tmp_path / "run/checkpoints")][-1] == "000000000016"
    assert (tmp_path / "run/weights.safetensors").exists()
    assert "Broken pipe" not in Path(errors).read_text()
