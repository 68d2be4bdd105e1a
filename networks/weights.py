"""A trained network, or a fitted prior, as one self-describing `.safetensors` file.

The tensors are those of its `state_dict()`; the metadata holds one JSON text that says what they
belong to and how it was trained. Nothing is ever unpickled.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from networks.analytic import GaussianMixture
from networks.denoiser import Denoiser
from networks.invfusion import LevelConfig, NetworkConfig
from networks.presets import conditioning_of
from runtime.files import check_floats, regular

METADATA_KEY = "invfusion"
FORMAT_VERSION = 1
_MIXTURE = "Gaussian mixture"

Model = Denoiser | GaussianMixture
"""What a weights file holds."""


def save_weights(path: str | os.PathLike[str], denoiser: Model, summary: dict[str, Any]) -> None:
    """Write the weights, the configuration and a training summary that JSON can hold.

    The file appears under its name only when it is complete and on the disk; a save that fails
    raises OSError and leaves an older file as it was.
    """
    path = Path(path)
    description = {
        "format": FORMAT_VERSION,
        "conditioning": conditioning_of(denoiser.config),
        "config": dataclasses.asdict(denoiser.config),
        "summary": summary,
    }
    if isinstance(denoiser, GaussianMixture):
        description["kind"] = _MIXTURE
    metadata = {METADATA_KEY: json.dumps(description)}
    tensors = {
        name.replace("_orig_mod.", ""): tensor.detach().cpu().contiguous()  # torch.compile's prefix
        for name, tensor in denoiser.state_dict().items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.touch()
        mode = unfinished.stat().st_mode
        try:
            save_file(tensors, unfinished, metadata)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(f"{path} cannot be written: {error}") from error
        unfinished.chmod(mode)  # as the umask has it: safetensors lets only the owner read
        with unfinished.open("r+b") as file:
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_weights(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
    """The network of a file written by `save_weights`, in float32 and evaluation mode, or its
    prior, in float64.

    Raises FileNotFoundError when there is no such file, and ValueError, in a sentence that names
    the file, when it is damaged, of another kind, or does not fit its own description.
    """
    path = Path(path)
    with _opened(path) as file:
        description = _description(path, file)
        if description.get("kind") == _MIXTURE:
            return _mixture(path, description, file).to(device)
        config = _config(path, description)
        with torch.device("meta"):  # nothing is initialised only to be overwritten
            denoiser = Denoiser(config)
        tensors = _tensors(path, file)
        check_tensors(path, tensors, denoiser.state_dict())
        denoiser.to_empty(device=device).load_state_dict(tensors)
    return denoiser.eval()


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training summary of a weights file, without its tensors; errors as in `load_weights`."""
    path = Path(path)
    with _opened(path) as file:
        return _description(path, file).get("summary", {})


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        with safe_open(regular(path), framework="pt", device="cpu") as file:
            yield file
    except SafetensorError as error:
        if _is_pickle(path):
            raise ValueError(
                f"{path} is a PyTorch pickle, and pickles are never opened here: give a "
                ".safetensors file written by save_weights"
            ) from error
        raise ValueError(f"{path} is no safetensors file, or it is damaged or cut off") from error


def _is_pickle(path: Path) -> bool:
    """Whether a file begins like what torch.save writes, today or in the past."""
    with path.open("rb") as file:
        start = file.read(9)
    # A safetensors file, too, may begin with this byte, of its header's length; the header follows.
    old = start[:1] == b"\x80" and start[8:] != b"{"
    return start[:4] == b"PK\x03\x04" or old


def _description(path: Path, file: Any) -> dict[str, Any]:
    """What the file says about itself, in a format that this version knows."""
    text = (file.metadata() or {}).get(METADATA_KEY)
    if text is None:
        raise ValueError(
            f"{path} holds tensors, but does not say of which network: it was not written by "
            "save_weights"
        )
    try:
        description = json.loads(text)
        version = description["format"]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the description inside {path} is damaged") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has weights format {version}, and this version of the project reads "
            f"{FORMAT_VERSION} only"
        )
    return description


def _config(path: Path, description: Mapping[str, Any]) -> NetworkConfig:
    try:
        fields = dict(description["config"])
        levels = tuple(LevelConfig(**level) for level in fields.pop("levels"))
        shape = tuple(fields.pop("image_shape"))
        if fields.pop("consistent", False):  # a field of earlier versions
            raise ValueError("it is a `consistent` network, which this version no longer has")
        return NetworkConfig(image_shape=shape, levels=levels, **fields)
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the network described inside {path} cannot be built: {error}") from error


def _mixture(path: Path, description: Mapping[str, Any], file: Any) -> GaussianMixture:
    tensors = {name: tensor.clone() for name, tensor in _tensors(path, file).items()}
    try:
        channels, h, w = description["config"]["image_shape"]
        basis = tensors.pop("basis", None)
        return GaussianMixture(**tensors, basis=basis, image_shape=(channels, h, w))
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"the prior described inside {path} cannot be built: {error}") from error


def _tensors(path: Path, file: Any) -> dict[str, Tensor]:
    """All tensors of a file, checked to be finite numbers."""
    tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_floats(path, tensors)
    return tensors


def check_tensors(
    source: str | Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless the tensors have the names and shapes that are expected."""
    problems = (
        *(f"'{name}' is missing" for name in expected if name not in tensors),
        *(f"'{name}' is unknown" for name in tensors if name not in expected),
        *(
            f"'{name}' is {tuple(tensor.shape)} instead of {tuple(expected[name].shape)}"
            for name, tensor in tensors.items()
            if name in expected and tensor.shape != expected[name].shape
        ),
    )
    if problems:
        raise ValueError(f"the weights of {source} do not fit the network: {problems[0]}")
