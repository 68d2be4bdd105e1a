"""Credentials stay out of every record; what only looks a little like one stays in it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runner import Runner

import calculate_metrics
import train
from metrics.detectors import Detector
from metrics.records import write_metrics
from metrics.statistics import FeatureStatistics, save_reference
from networks import Denoiser, make_config, read_summary, save_weights
from runtime.credentials import CUT, plain
from training.config import TrainConfig

SECRET = "s3cret-abcdef"
OPTIONS = {
    "token": SECRET,
    "path": f"https://me:{SECRET}@host/a.zip?sig=1&token={SECRET}",
    "header": f"Authorization: Bearer {SECRET}",
}


@pytest.mark.parametrize(
    ("value", "left"),
    [
        (OPTIONS["path"], f"https://{CUT}@host/a.zip?sig=1&token={CUT}"),
        ({"api_key": "x", "n": 3}, {"api_key": CUT, "n": 3}),
        (["--data-opt", f"hf_token={SECRET}"], ["--data-opt", f"hf_token={CUT}"]),
        (f"curl -H 'Bearer {SECRET}'", f"curl -H 'Bearer {CUT}'"),
        ("load hf_abcdefghijklmnopqrst", f"load {CUT}"),
        ({"token": None, "tokens": 64}, {"token": None, "tokens": 64}),
        ("https://host/a@b/c", "https://host/a@b/c"),
        ("data/ffhq64.zip", "data/ffhq64.zip"),
        ("patches of 4 tokens", "patches of 4 tokens"),
    ],
)
def test_credentials_are_cut_out(value: Any, left: Any) -> None:
    assert plain(value) == left


def test_no_record_holds_a_credential(tmp_path: Path) -> None:
    statistics = FeatureStatistics()
    statistics.update(torch.eye(3))
    moments = statistics.reduced(lambda value: value, 3)
    detector = Detector("own", "0" * 64, 3, lambda x: x, torch.device("cpu"))
    save_reference(tmp_path / "r.safetensors", {"own": (moments, detector)}, {"opt": OPTIONS})
    save_weights(tmp_path / "w.safetensors", Denoiser(make_config("tiny")), {"opt": OPTIONS})
    write_metrics(tmp_path, {}, {"opt": OPTIONS})
    (tmp_path / "config.yaml").write_text(TrainConfig(data=dict(OPTIONS)).dump())
    files = list(tmp_path.iterdir())
    assert len(files) == 4
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        assert CUT.encode() in path.read_bytes()


def test_a_prior_says_what_it_was_fitted_to_without_the_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "guarded.py").write_text(
        "from datautils.photos import Photos\n\n\n"
        "class Guarded(Photos):\n"
        "    def __init__(self, split: str, token: str):\n"
        f"        assert token == '{SECRET}'\n"
        "        super().__init__(resolution=16, split=split, size=8)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    words = [f"--data-opt=token={SECRET}", "--data=guarded.Guarded"]
    result = Runner().invoke(
        calculate_metrics.main, ["prior", *words, "--dest=p.safetensors", "--workers=0"]
    )
    assert result.exit_code == 0, result.output
    assert read_summary("p.safetensors")["data_opt"] == {"token": CUT}


def test_a_run_goes_on_when_its_credential_is_given_again(tmp_path: Path) -> None:
    config = replace(TrainConfig(), data={"token": SECRET})
    (tmp_path / "config.yaml").write_text(config.dump())
    result = Runner().invoke(train.main, ["--resume", str(tmp_path), "--dry-run"])
    assert result.exit_code == 2 and "--data-opt token=" in result.stderr
    config.check_resumes(TrainConfig.load(tmp_path / "config.yaml", {}))
    assert yaml.safe_load(config.dump())["data"] == {"token": CUT}
