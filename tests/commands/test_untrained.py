"""Restorations without a trained network beside those of a network, by the commands."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from photo_files import load
from PIL import Image

import calculate_metrics
import restore
from networks import Denoiser, make_config, save_weights

FAST = ["--baseline-opt=outer=2", "--baseline-opt=inner=1"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    save_weights("net.safetensors", Denoiser(make_config("tiny", "blind")), {})


def gen(*options: str) -> Result:
    arguments = [
        "gen", "--net=net.safetensors", "--data-opt=resolution=16", "--data-opt=size=8",
        "--degradation=MissingPatches", "--images=3", "--sampler=mmse",
        "--precision=fp32", *options,
    ]  # fmt: skip
    return CliRunner().invoke(calculate_metrics.main, arguments)


def test_aseqdip_stands_in_tables_whatever_the_batch() -> None:
    tables = []
    for batch in (1, 3):
        result = gen(f"--batch={batch}", f"--outdir=out{batch}", "--baselines=pinv,aseqdip", *FAST)
        assert result.exit_code == 0, result.output
        metrics = json.loads(Path(f"out{batch}/metrics.json").read_text())
        values = metrics["metrics"]["values"]["MissingPatches"]
        assert {"H†y", "ASeqDIP", "Palette MMSE"} == set(values)
        assert values["ASeqDIP"]["evaluations"] == 0
        assert metrics["settings"]["baseline_opt"] == {"outer": "2", "inner": "1"}
        tables.append(values["ASeqDIP"]["psnr"]["mean"])
    assert tables[0] == tables[1]


def test_aseqdip_is_a_picture_beside_those_of_the_network() -> None:
    Image.new("RGB", (20, 18), "red").save("photo.png")
    words = ["--net=net.safetensors", "--image=photo.png", "--degradation=MissingPatches"]
    words += ["--samples=0", "--outdir=out", "--baselines=aseqdip", *FAST]
    result = CliRunner().invoke(restore.main, words)
    assert result.exit_code == 0, result.output
    assert load("out/aseqdip.png").shape == (3, 18, 20)
    record = json.loads(Path("out/restore.json").read_text())["metrics"]
    assert set(record["pictures"]) == {"mmse", "aseqdip", "pinv"}
    assert set(record["pictures"]["aseqdip"]) == {"psnr", "consistency"}
    assert set(record["seconds"]) == {"mmse", "aseqdip"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--baselines=pinv", *FAST], "--baseline-opt aseqdip"),
        (["--baselines=aseqdip", "--baseline-opt=steps=2"], "aseqdip steps outer"),
        (["--baselines=aseqdip", "--baseline-opt=outer=0"], "aseqdip outer=0 1"),
        (["--baselines=aseqdip", "--baseline-opt=lr=0"], "aseqdip lr=0 above"),
        (["--baselines=aseqdip", "--baseline-opt=weight=-1"], "aseqdip weight=-1 least"),
    ],
)
def test_options_that_are_none_are_refused(options: list[str], words: str) -> None:
    result = gen("--outdir=out", *options)
    assert result.exit_code == 2 and not Path("out").exists()
    (line,) = result.stderr.strip().splitlines()
    assert all(word in line for word in words.split()), line
