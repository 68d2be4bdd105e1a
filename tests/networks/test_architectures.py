"""Architectures of one's own, in a training configuration."""

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from runner import Runner

import train
from networks import LevelConfig, load_weights, make_config

TWO = [{"depth": 1, "width": 48, "kernel": 5, "d_head": 16}, {"depth": 2, "width": 96}]


def test_levels_replace_those_of_the_preset() -> None:
    levels = [*TWO[:1], {"depth": 2, "width": 100, "d_head": 50, "joint": False}]
    config = make_config("tiny", network={"levels": levels, "mapping_width": 64})
    assert config.levels == (
        LevelConfig(1, 48, 5, d_head=16),
        LevelConfig(2, 100, None, d_head=50, joint=False),
    )
    assert config.mapping_width == 64 and config.image_shape == (3, 16, 16)


@pytest.mark.parametrize("conditioning", ["blind", "unconditional"])
def test_levels_of_a_network_without_the_operator_are_plain(conditioning: str) -> None:
    levels = [{**level, "d_head": 16, "joint": True} for level in TWO]
    config = make_config("tiny", conditioning, network={"levels": levels})
    assert not any(level.joint for level in config.levels)


def test_a_run_of_an_own_architecture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    levels = [TWO[0], {"depth": 1, "width": 72, "d_head": 24, "joint": False}]
    settings = {
        "preset": "tiny", "network": {"levels": levels}, "degradation": "degradation.Box",
        "data": {"resolution": 16, "size": 8}, "batch": 4, "duration": 8, "ramp": 0, "workers": 0,
        "validate_images": 2, "sheet_every": 0,
    }  # fmt: skip
    Path("own.yaml").write_text(yaml.safe_dump(settings))
    result = Runner().invoke(train.main, ["--config=own.yaml", "--outdir=run"])
    assert result.exit_code == 0, result.output
    config = load_weights("run/weights.safetensors").config
    assert [(level.width, level.joint) for level in config.levels] == [(48, True), (72, False)]  # type: ignore[union-attr]
    other = Path("run/config.yaml").read_text().replace("width: 72", "width: 48")
    Path("other.yaml").write_text(other)
    arguments = ["--config=other.yaml", "--outdir=run", "--keep-going", "--duration=12"]
    resumed = Runner().invoke(train.main, arguments)
    assert resumed.exit_code == 2 and "network cannot change" in resumed.stderr


@pytest.mark.parametrize(
    ("network", "sentence"),
    [
        ({"width": 3}, "network: unknown field 'width'; known are patch, levels, mapping_width"),
        ({"image_shape": [3, 8, 8]}, "network: unknown field 'image_shape'"),
        ({"levels": 3}, "network: levels must be of the kind list, not 3"),
        ({"levels": []}, "network: a network has 1 to 16 levels"),
        ({"levels": ["wide"]}, "network: levels[0] must be a mapping"),
        ({"levels": [TWO[0], {"depth": 1}]}, "network: levels[1] lacks width"),
        ({"levels": [{**TWO[0], "dept": 1}]}, "network: levels[0] has an unknown entry 'dept'"),
        (
            {"levels": [{**TWO[0], "width": "48"}]},
            "network: levels[0]: width must be of the kind int",
        ),
        ({"levels": [{**TWO[0], "width": 50}]}, "d_head 16 must divide the width 50"),
        ({"levels": [{**TWO[0], "dropout": "x"}]}, "network: levels[0]: dropout must be"),
        ({"patch": 0}, "patch 0 must be a whole number"),
        ({"patch": 3}, "image sides 16×16 must be multiples of 6"),
    ],
)
def test_what_is_no_architecture(network: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError) as caught:
        make_config("tiny", network=network)
    assert sentence in str(caught.value)
