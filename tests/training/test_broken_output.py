"""A run whose output breaks goes on without its bar."""

import os
import sys

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


@pytest.mark.parametrize("broken", [1, 2])
def test_a_run_goes_on_to_its_end(tmp_path, broken):
    def run() -> None:
        reading, writing = os.pipe()
        os.close(reading)  # as head does it when it has seen enough
        os.dup2(writing, broken)  # stdout, stderr
        sys.argv = ["train.py", *OPTIONS, f"--outdir={tmp_path / 'run'}"]
        train.main()

    errors = tmp_path / "errors.txt"
    Processes(run, errors=errors).codes()  # click ends with 1 where it cannot print
    assert [p.name for p in list_checkpoints(tmp_path / "run/checkpoints")][-1] == "000000000016"
    assert (tmp_path / "run/weights.safetensors").exists()
