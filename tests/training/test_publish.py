"""Weights in half precision to hand out, and runs that start from weights."""

from pathlib import Path

import pytest
import torch
from runner import Runner
from safetensors.torch import load_file

import train
from networks import Denoiser, load_weights, make_config, read_summary, save_weights
from runtime import signals
from training.publish import main

RUN = [
    "--preset=tiny", "--data-opt=resolution=16", "--data-opt=size=8", "--degradation=Box",
    "--ramp=0", "--batch=4", "--workers=0", "--precision=fp32", "--validate-images=2",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


@pytest.fixture
def net(folder: None) -> Denoiser:
    torch.manual_seed(0)
    denoiser = Denoiser(make_config("tiny"))
    save_weights("net.safetensors", denoiser, {"images": 5})
    return denoiser


def test_what_is_handed_out_names_no_folder(net: Denoiser) -> None:
    save_weights("net.safetensors", net, {"images": 5, "init": "/home/me/begun.safetensors"})
    assert Runner().invoke(main, ["net.safetensors", "out.safetensors"]).exit_code == 0
    assert read_summary("out.safetensors") == {"images": 5, "init": "begun.safetensors"}
    for file in (Path(train.__file__).parent / "checkpoints").glob("*.safetensors"):
        assert "/" not in (read_summary(file).get("init") or ""), file


def trained(*arguments: str) -> dict[str, torch.Tensor]:
    result = Runner().invoke(train.main, [*RUN, *arguments])
    assert result.exit_code == 0, result.output
    return load_weights("run/weights.safetensors").state_dict()


def test_half_the_bytes_and_the_same_weights_to_half_precision(net: Denoiser) -> None:
    result = Runner().invoke(main, ["net.safetensors", "half.safetensors"])
    assert result.exit_code == 0, result.output
    sizes = [Path(name).stat().st_size for name in ("net.safetensors", "half.safetensors")]
    assert sizes[1] < 0.55 * sizes[0]
    assert read_summary("half.safetensors") == {"images": 5}
    half = load_weights("half.safetensors").state_dict()
    for name, tensor in net.state_dict().items():
        assert half[name].dtype == torch.float32
        torch.testing.assert_close(half[name], tensor, rtol=2**-11, atol=2**-25)


def test_a_weight_beyond_half_precision(net: Denoiser) -> None:
    next(net.parameters()).data.flatten()[0] = 1e5
    save_weights("net.safetensors", net, {})
    result = Runner().invoke(main, ["net.safetensors", "half.safetensors"])
    assert result.exit_code == 2 and "1e+05" in result.stderr
    assert not Path("half.safetensors").exists()


def test_a_run_starts_from_weights(net: Denoiser) -> None:
    """With a learning rate of almost nothing it ends there, too."""
    tensors = trained("--outdir=run", "--init=net.safetensors", "--lr=1e-12", "--duration=8")
    for name, tensor in net.state_dict().items():
        torch.testing.assert_close(tensors[name], tensor, rtol=0, atol=1e-6)
    assert read_summary("run/weights.safetensors")["init"] == "net.safetensors"
    Path("net.safetensors").unlink()  # a resumed run has a checkpoint instead
    resumed = Runner().invoke(train.main, ["--resume=run", "--duration=12"])
    assert resumed.exit_code == 0, resumed.output
    summary = read_summary("run/weights.safetensors")
    assert (summary["init"], summary["images"]) == ("net.safetensors", 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["--blind-train"], "levels="),
        (["--data-opt=resolution=32"], "image_shape"),
        (["--noise-range=[0, 0.1]"], "noise_conditioning=False True"),
        (["--init=absent.safetensors"], "absent.safetensors"),
    ],
)
def test_weights_of_another_architecture(net: Denoiser, changes: list[str], words: str) -> None:
    arguments = [*RUN, "--outdir=run", "--init=net.safetensors", "--duration=8", *changes]
    result = Runner().invoke(train.main, arguments)
    assert result.exit_code == 2
    assert any(word in result.stderr for word in words.split()), result.stderr
    assert not Path("run").exists()


def test_a_stopped_run_has_the_weights_of_its_checkpoint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "asked_to_end", lambda: True)
    result = Runner().invoke(train.main, [*RUN, "--outdir=run", "--validate-every=0"])
    assert result.exit_code == signals.RESUMABLE
    assert read_summary("run/weights.safetensors")["images"] == 4
    average = load_file("run/checkpoints/000000000004/average.safetensors")
    for name, tensor in load_weights("run/weights.safetensors").state_dict().items():
        assert torch.equal(tensor, average[name])
