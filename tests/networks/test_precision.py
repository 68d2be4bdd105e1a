"""`precision: auto` takes what the device is fast at; asking a CPU for what it emulates warns."""

import json
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from runner import Runner

import calculate_metrics
import train
from networks import Denoiser, make_config, precision, read_summary, save_weights
from networks.precision import resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROCESSORS = {  # what PyTorch finds of it, and what "auto" must take
    "EPYC of 2021": ("avx avx2 sha", "fp32"),
    "Xeon of 2019": ("avx512_f avx512_vnni", "fp32"),
    "Xeon with AVX512_BF16": ("avx512_f avx512_bf16", "bf16"),
    "Xeon with AMX": ("avx512_f amx_bf16 amx_tile", "bf16"),
    "ARM with bf16": ("neon fp16_arith bf16 i8mm", "bf16"),
    "ARM without": ("neon fp16_arith", "fp32"),
}


@pytest.fixture
def found(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Sets what the CPU can do."""

    def pretend(names: str) -> None:
        can = dict.fromkeys(("avx512_bf16", "amx_fp16"), False) | dict.fromkeys(names.split(), True)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: can)

    return pretend


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_on_a_cpu(name: str, found: Callable) -> None:
    names, expected = PROCESSORS[name]
    found(names)
    assert resolve_precision("auto", CPU) == expected


def test_auto_on_a_system_of_which_nothing_is_known(
    found: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    found("neon bf16")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert resolve_precision("auto", CPU) == "fp32"


def test_pytorch_knows_these_instructions() -> None:
    there = torch.cpu.get_capabilities()
    known = [name in there for names in precision._INSTRUCTIONS.values() for name in names]
    assert any(known)


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto", GPU) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_kept_and_warns_where_it_is_emulated(
    name: str, found: Callable
) -> None:
    found("avx2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            assert resolve_precision(name, CPU) == name
    assert len(caught) == (name != "fp32")
    assert all(f"no {name} arithmetic" in str(warning.message) for warning in caught)


def test_no_warning_where_the_cpu_has_it(found: Callable) -> None:
    found("avx512_bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", CPU) == "bf16"


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision=fp8 must be auto, fp32, bf16, fp16"):
        resolve_precision("fp8", CPU)


def test_records_say_which_was_taken(
    found: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found("avx2")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    data = ["--data-opt=resolution=16", "--data-opt=size=4"]
    arguments = ["--preset=tiny", "--degradation=Box", "--batch=4", "--duration=8", "--outdir=run"]
    trained = Runner().invoke(train.main, [*arguments, *data, "--ramp=0", "--validate-every=0"])
    assert trained.exit_code == 0, trained.output
    assert "precision: fp32" in trained.stdout
    assert json.loads(Path("run/starts.jsonl").read_text())["precision"] == "fp32"
    assert read_summary("run/weights.safetensors")["precision"] == "fp32"
    save_weights("net.safetensors", Denoiser(make_config("tiny")), {})
    arguments = ["gen", "--net=net.safetensors", "--data=datautils.photos.Photos", "--outdir=out"]
    restored = Runner().invoke(
        calculate_metrics.main, [*arguments, *data, "--degradation=Box", "--sampler=mmse"]
    )
    assert restored.exit_code == 0, restored.output
    assert json.loads(Path("out/metrics.json").read_text())["settings"]["precision"] == "fp32"
