"""`precision: auto` takes what the device is fast at; asking a CPU for what it emulates warns."""

import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from runner import Runner

import calculate_metrics
import train
from networks import Denoiser, make_config, precision, read_summary, save_weights
from networks.precision import cpu_has, resolve_precision

CPU, GPU = torch.device("cpu"), torch.device("cuda")
PROCESSORS = {  # what Linux lists of it, and what "auto" must take
    "EPYC of 2021": ("flags\t\t: fpu avx avx2 sha_ni vaes", "fp32"),
    "Xeon of 2019": ("flags\t\t: avx512f avx512_vnni", "fp32"),
    "Xeon with AVX512_BF16": ("flags\t\t: avx512f avx512_bf16", "bf16"),
    "Xeon with AMX": ("processor : 0\nflags : avx512f amx_bf16 amx_tile", "bf16"),
    "ARM with bf16": ("Features\t: fp asimd asimdhp bf16 i8mm", "bf16"),
    "ARM without": ("Features\t: fp asimd asimdhp", "fp32"),
    "a name is no flag": ("model name : bf16\nflags : avx2", "fp32"),
}


@pytest.fixture(autouse=True)
def asked_anew() -> Iterator[None]:
    cpu_has.cache_clear()
    yield
    cpu_has.cache_clear()


@pytest.fixture
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which Linux lists what the CPU can do."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(precision, "_CPU_INFO", path)
    return path


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_on_a_cpu(name: str, listed: Path) -> None:
    text, expected = PROCESSORS[name]
    listed.write_text(text)
    assert resolve_precision("auto", CPU) == expected


def test_auto_where_nothing_is_listed(listed: Path) -> None:
    assert resolve_precision("auto", CPU) == "fp32"


@pytest.mark.parametrize(("native", "expected"), [(True, "bf16"), (False, "fp16")])
def test_auto_on_a_gpu(native: bool, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: native)
    assert resolve_precision("auto", GPU) == expected


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_a_named_precision_is_kept_and_warns_where_it_is_emulated(name: str, listed: Path) -> None:
    listed.write_text("flags : avx2")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        for _ in range(3):
            assert resolve_precision(name, CPU) == name
    assert len(caught) == (name != "fp32")
    assert all(f"no {name} arithmetic" in str(warning.message) for warning in caught)


def test_no_warning_where_the_cpu_has_it(listed: Path) -> None:
    listed.write_text("flags : avx512_bf16")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resolve_precision("bf16", CPU) == "bf16"


def test_an_unknown_precision() -> None:
    with pytest.raises(ValueError, match="precision=fp8 must be auto, fp32, bf16, fp16"):
        resolve_precision("fp8", CPU)


def test_records_say_which_was_taken(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed.write_text("flags : avx2")
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
