"""Photos, masks and kernels in the working folder, and `restore.py` called on them."""

import json
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from runner import Runner
from scipy.ndimage import gaussian_filter
from torch import Tensor

import restore

CPU = torch.device("cpu")
SHAPE = (3, 16, 16)
PICTURES = {"measurement.png", "pinv.png", "mmse.png", "sheet.png", "restore.json"}


def scene(h: int, w: int) -> np.ndarray:
    """A smooth colour picture with an edge, float `[h, w, 3]` in 0..255."""
    noise = np.random.default_rng(0).normal(size=(h, w, 3))
    smooth = gaussian_filter(noise, (3, 3, 0))
    smooth[h // 3 :, w // 2 :] += 2 * smooth.std()
    return 127.5 + 45 * smooth / smooth.std()


def save(path: str, pixels: np.ndarray) -> None:
    Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8)).save(path)


def load(path: str | Path) -> Tensor:
    return torch.from_numpy(np.array(Image.open(path).convert("RGB"))).permute(2, 0, 1)


def kernel_array() -> np.ndarray:
    """A blur of 5×4 pixels that is off its centre and symmetric in nothing."""
    kernel = np.zeros((5, 4))
    kernel[1, 1], kernel[2, 2], kernel[2, 3], kernel[3, 3] = 4, 3, 2, 1
    return kernel / kernel.sum()


def contents() -> dict[str, bytes | None]:
    return {str(p): p.read_bytes() if p.is_file() else None for p in Path().rglob("*")}


def run(net: Path, *arguments: str, image: str = "photo.png", samples: int = 2) -> dict:
    """The record that a restoration leaves; its pictures are those of the photo, and complete."""
    quick = ["--sampler=euler", "--sampler-opt=num_steps=3", f"--samples={samples}"]
    result = Runner().invoke(
        restore.main, [f"--net={net}", f"--image={image}", "--outdir=out", *quick, *arguments]
    )
    assert result.exit_code == 0, (result.exception, result.stderr[-500:])
    assert "restored: out" in result.stdout
    expected = PICTURES | {f"sample-{i + 1}.png" for i in range(samples)}
    expected |= {"std.png"} if samples > 1 else set()
    record = json.loads(Path("out/restore.json").read_text())
    if record["settings"]["operator"] in ("DenseMatrix", "NullOperator"):  # y is no picture
        expected -= {"measurement.png"}
    found = {path.name for path in Path("out").iterdir()}
    assert found == expected
    h, w = record["settings"]["image_shape"][1:]
    for name in found - {"sheet.png", "measurement.png", "restore.json"}:
        assert load(f"out/{name}").shape == (3, h, w)
    assert record["metrics"]["evaluations"] == {"samples": 3, "mmse": 1}
    assert record["environment"]["torch"] == torch.__version__
    return record


def refusal(*arguments: str) -> str:
    """The sentence with which arguments are refused, leaving everything as it was."""
    before = contents()
    result = Runner().invoke(restore.main, list(arguments))
    assert result.exit_code == 2, (result.exception, result.stderr[-500:])
    assert contents() == before
    line = result.stderr.splitlines()[-1]
    assert line.lower().startswith("error: ")
    return line
