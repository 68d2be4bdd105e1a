"""A short run shows something: lines of progress, the loss, pictures; -h lists every setting."""

import dataclasses
from pathlib import Path

import pytest
from click.testing import Result
from PIL import Image
from runner import Runner

import train
from runtime.cli import flag
from training.config import TrainConfig

TRAIN = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "-b", "4", "--ramp=4",
    "--duration=16", "--fp32", "--workers=0", "--log-every=4", "--validate-every=8",
    "--validate-images=2", "--outdir=run",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def run(*options: str) -> Result:
    result = Runner().invoke(train.main, [*TRAIN, *options])
    assert result.exit_code == 0, result.output
    return result


@pytest.mark.drawn
def test_an_unconditional_run_prints_its_loss_and_draws_samples() -> None:
    result = run()
    lines = result.stderr.splitlines()
    assert "loss " in result.stdout and "held-out" not in result.stdout
    assert lines[0].startswith("training: 0 of 16 images")
    assert lines[-1].startswith("training: 16 of 16 images") and ", loss=" in lines[-1]
    for sheet in ("sheets/000000000008.png", "sheets/000000000016.png"):
        with Image.open(Path("run", sheet)) as picture:
            assert picture.width > 4 * 128  # four samples in a row
    with Image.open("run/curves.png") as picture:
        assert picture.width < 600  # the loss alone


def test_held_out_values_say_what_they_are_of_and_sheets_can_be_left_out() -> None:
    result = run("--degradation=MissingPatches", "--sheet-every=0")
    assert "16 images: held-out PSNR (dB) of the MMSE estimate: MissingPatches" in result.stdout
    assert not Path("run/sheets").exists() and Path("run/curves.png").exists()


def test_the_help_lists_every_setting() -> None:
    shown = Runner().invoke(train.main, ["-h"]).stdout
    for field in dataclasses.fields(TrainConfig):
        assert field.metadata["name"] == "" or flag(field).split()[-1] in shown
