"""`calculate_metrics.py` called as its users call it, with small networks on small photos."""

import json
from pathlib import Path

import torch
from click.testing import Result
from helpers import ONE_LEVEL
from runner import Runner

from calculate_metrics import main
from networks import Denoiser, make_config, save_weights

DATA = ("--data-opt", "resolution=16", "--data-opt", "size=8")
FAST = ("--sampler", "heun", "--sampler-opt", "num_steps=2", "--batch", 4)
DISTANCES = ("--ref", "ref.safetensors", "--detector", "six.pt", "--trust-detector")


class Detector(torch.nn.Module):
    """Six features of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        x = images.float() / 255
        return torch.cat((x.mean((2, 3)), x.var((2, 3))), 1)


def network(
    path: Path, conditioning: str = "invfusion", classes: int = 0, changes: dict | None = ONE_LEVEL
) -> Path:
    torch.manual_seed(0)
    denoiser = Denoiser(make_config("tiny", conditioning, None, classes, changes))
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.03 * torch.randn(p.shape))
    save_weights(path, denoiser, {})
    return path


def call(home: Path, command: str, *arguments: object) -> Result:
    """Run a command; words that are files of `home` are given as their paths."""
    words = [str(a) for a in arguments]
    paths = [
        str(home / w) if w.endswith((".safetensors", ".pt", ".npz")) and "/" not in w else w
        for w in words
    ]
    return Runner().invoke(main, [command, *paths])


def gen(home: Path, outdir: Path, *arguments: object) -> Result:
    return call(
        home, "gen", "--net", "net.safetensors", *DATA, *FAST, "--outdir", outdir,
        "--degradation", "degradation.MissingPatches", *arguments,
    )  # fmt: skip


def uncond(home: Path, outdir: Path, *arguments: object, net: str = "plain") -> Result:
    return call(
        home, "gen-uncond", "--net", f"{net}.safetensors", "--outdir", outdir, "--images", 6,
        "--sampler-opt", "num_steps=2", *arguments,
    )  # fmt: skip


def metrics(folder: Path) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def refused(result: Result, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert lines[-1].lower().startswith("error: ")
    for word in words:
        assert word in lines[-1]
