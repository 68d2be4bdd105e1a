"""Working folders and small networks for the tests of commands."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from calling import DATA, DISTANCES, Detector, call, network
from helpers import ONE_LEVEL
from photo_files import kernel_array, save, scene

from networks import (
    Denoiser,
    make_config,
    save_weights,
)


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Untrained networks."""
    home = tmp_path_factory.mktemp("nets")
    torch.manual_seed(0)
    configs = {
        "plain": make_config("tiny", network=ONE_LEVEL),
        "blind": make_config("tiny", "blind", network=ONE_LEVEL),
        "classes": make_config("tiny", num_classes=3, network=ONE_LEVEL),
        "unconditional": make_config("tiny", "unconditional", network=ONE_LEVEL),
    }
    files = {name: home / f"{name}.safetensors" for name in configs}
    for name, config in configs.items():
        save_weights(files[name], Denoiser(config), {})
    return files


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


@pytest.fixture
def config(folder: Path) -> str:
    """Options of a run of a few steps that is quick."""
    settings = {
        "preset": "tiny", "data": {"resolution": 16}, "degradation": "MotionBlur", "batch": 4,
        "duration": 8, "precision": "fp32", "workers": 0, "lr": 1e-3, "ramp": 8, "decay": None,
        "log_every": 4, "validate_every": 8, "validate_images": 2, "sheet_every": 0,
        "network": ONE_LEVEL,
    }  # fmt: skip
    (folder / "quick.yaml").write_text(yaml.safe_dump(settings))
    return "--config=quick.yaml"


@pytest.fixture
def photo_folder(folder: Path) -> Path:
    """A working folder with a photo of 40×56 pixels, a mask and a kernel for it, and no GPU."""
    save("photo.png", scene(40, 56))
    save("small.png", scene(16, 16))
    visible = np.full((40, 56), 255.0)
    visible[10:14, :], visible[:, 30:33] = 0, 0
    save("mask.png", visible)
    np.save("kernel.npy", kernel_array())
    return folder


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Three networks, a detector, and reference statistics by it."""
    folder = tmp_path_factory.mktemp("commands")
    torch.jit.script(Detector()).save(folder / "six.pt")
    network(folder / "net.safetensors")
    network(folder / "classes.safetensors", classes=4)
    network(folder / "plain.safetensors", "unconditional", classes=4)
    result = call(folder, "ref", *DATA, "--dest", "ref.safetensors", *DISTANCES[2:])
    assert result.exit_code == 0, result.output
    return folder
