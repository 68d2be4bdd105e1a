"""A run whose output has no reader goes on without its bar."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from training.checkpoint import list_checkpoints

PROGRAM = Path(__file__).resolve().parents[2] / "train.py"
OPTIONS = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "-b4", "--duration=16",
    "--ramp=0", "--fp32", "--workers=0", "--log-every=4", "--checkpoint-every=8",
    "--degradation=MissingPatches", "--validate-every=0",
]  # fmt: skip


@pytest.mark.parametrize("broken", ["stdout", "stderr"])
def test_a_run_goes_on_to_its_end(tmp_path: Path, broken: str) -> None:
    reading, writing = os.pipe()
    os.close(reading)  # as head does it when it has seen enough
    folder = tmp_path / "run"
    out, err = (writing if broken == name else subprocess.DEVNULL for name in ("stdout", "stderr"))
    command = [sys.executable, PROGRAM, *OPTIONS, f"--outdir={folder}"]
    subprocess.run(
        command, stdout=out, stderr=err, timeout=120
    )  # click ends with 1: it cannot print
    os.close(writing)
    assert [p.name for p in list_checkpoints(folder / "checkpoints")][-1] == "000000000016"
    assert (folder / "weights.safetensors").exists()
