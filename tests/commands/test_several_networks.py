"""`gen` with several networks: one table, each sampler on the networks that it suits."""

import json
from pathlib import Path

import pytest
import torch
from click.testing import Result
from runner import Runner

from calculate_metrics import main
from networks import Denoiser, make_config, save_weights

GEN = [
    "gen", "--data=datautils.photos.Photos", "--data-opt=resolution=16", "--data-opt=size=2",
    "--degradation=Box", "--precision=fp32", "--outdir=out",
]  # fmt: skip


@pytest.fixture(autouse=True)
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for kind in ("invfusion", "blind", "unconditional"):
        save_weights(f"{kind}.safetensors", Denoiser(make_config("tiny", kind)), {})
    save_weights("again.safetensors", Denoiser(make_config("tiny", "blind")), {})
    save_weights("larger.safetensors", Denoiser(make_config("tiny", "blind", (3, 32, 32))), {})


def gen(nets: str, samplers: str) -> Result:
    options = [f"--net={name}.safetensors" for name in nets.split()]
    options += [f"--sampler={name}" for name in samplers.split()]
    options += ["--sampler-opt=ddnm.num_steps=4"] * ("ddnm" in samplers)
    return Runner().invoke(main, [*GEN, *options])


def methods(nets: str, samplers: str) -> list[str]:
    result = gen(nets, samplers)
    assert result.exit_code == 0, result.output
    return list(json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"])


def test_each_sampler_drives_the_networks_that_it_suits() -> None:
    found = methods("invfusion blind unconditional", "mmse ddnm")
    assert [m for m in found if m != "H†y"] == ["InvFusion MMSE", "Palette MMSE", "DDNM"]


def test_zero_shot_samplers_drive_conditional_networks_where_there_is_no_other() -> None:
    found = methods("invfusion blind", "ddnm")
    assert [m for m in found if m != "H†y"] == ["DDNM", "DDNM of blind.safetensors"]


def test_two_networks_of_a_kind_have_two_names() -> None:
    found = methods("blind again", "mmse")
    assert [m for m in found if m != "H†y"] == ["Palette MMSE", "Palette MMSE of again.safetensors"]


def test_noise_that_a_network_was_not_trained_for_is_said() -> None:
    trained = {"noise_level": 0.0, "noise_range": [0.0, 0.1]}
    for kind in ("invfusion", "unconditional"):
        save_weights(f"{kind}.safetensors", Denoiser(make_config("tiny", kind)), trained)
    result = Runner().invoke(
        main,
        [*GEN, "--noise-level=0.3", "--sampler=mmse", "--sampler=ddrm", "--sampler-opt",
         "ddrm.num_steps=2", "--net=invfusion.safetensors", "--net=unconditional.safetensors"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    (line,) = [line for line in result.stderr.splitlines() if "was trained with noise" in line]
    assert line.startswith(
        "warning: invfusion.safetensors was trained with noise of 0 to 0.1, y has 0.3: expect less"
    )


def test_an_option_that_one_sampler_has_needs_no_name() -> None:
    words = [*GEN, "--net=invfusion.safetensors", "--sampler-opt=num_steps=2"]
    result = Runner().invoke(main, words)  # heun and mmse
    assert result.exit_code == 0, result.output
    record = json.loads(Path("out/metrics.json").read_text())
    assert record["settings"]["samplers"]["InvFusion sample (heun)"]["num_steps"] == 2
    words = [*GEN, "--net=invfusion.safetensors", "--sampler=heun", "--sampler=dpm"]
    result = Runner().invoke(main, [*words, "--sampler-opt=num_steps=2"])
    assert result.exit_code == 2 and "heun.num_steps, dpm.num_steps" in result.output


def test_nothing_to_measure_is_told() -> None:
    for options, words in (
        (["--baselines="], "give a --net or --baselines"),
        (["--sampler=mmse"], "--sampler mmse needs a --net"),
    ):
        result = Runner().invoke(main, [*GEN, *options])
        assert result.exit_code == 2 and words in result.output and not Path("out").exists()
    result = Runner().invoke(main, [*GEN, "--baselines=fill"])
    found = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]["Box"]
    assert result.exit_code == 0 and list(found) == ["constant fill"]


@pytest.mark.parametrize(
    ("nets", "samplers", "sentence"),
    [
        ("unconditional", "mmse", "unconditional.safetensors is an unconditional denoiser"),
        ("invfusion unconditional", "mmse", "no --sampler drives unconditional.safetensors"),
        ("invfusion unconditional", "ddnm", "no --sampler drives invfusion.safetensors"),
        ("invfusion invfusion", "mmse", "--net invfusion.safetensors is given twice"),
        ("invfusion larger", "mmse", "larger.safetensors restores images (3, 32, 32)"),
        ("invfusion absent", "mmse", "there is no weights file absent.safetensors"),
    ],
)
def test_what_does_not_fit_together(nets: str, samplers: str, sentence: str) -> None:
    result = gen(nets, samplers)
    assert result.exit_code == 2
    assert sentence in result.stderr, result.stderr
    assert not Path("out").exists()
