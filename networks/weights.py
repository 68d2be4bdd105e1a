"""A trained network, or a fitted prior, as one self-describing `.safetensors` file.

The tensors are those of its `state_dict()`; the metadata holds one JSON text that says what they
belong to and how it was trained. Nothing is ever unpickled.
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from networks.analytic import GaussianMixture, PriorConfig
from networks.denoiser import Denoiser
from networks.invfusion import NetworkConfig
from networks.layers import WithoutInitialisation
from networks.presets import conditioning_of
from runtime.files import check_floats, write_tensors
from runtime.records import parse_json, plain, record

METADATA_KEY = "invfusion"
FORMAT_VERSION = 1
_MIXTURE = "Gaussian mixture"

Model = Denoiser | GaussianMixture
"""What a weights file holds."""


@dataclass
class _Description:
    """What a file says about itself."""

    format: Any  # of any version
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    kind: str | None = None


@dataclass
class _Summary:
    """What of a training summary is used."""

    images: int = 0
    noise_level: float = 0.0
    noise_range: tuple[float, ...] = ()
    poisson_peak: float | None = None
    mse_train: bool = False  # of earlier versions, for the objective mmse


def save_weights(path: str | os.PathLike[str], denoiser: Model, summary: dict[str, Any]) -> None:
    """Write the weights, the configuration and a training summary that JSON can hold.

    The file appears under its name only when it is complete and on the disk; a save that fails
    raises OSError and leaves an older file as it was.
    """
    description = {
        "format": FORMAT_VERSION,
        "conditioning": conditioning_of(denoiser.config),
        "config": dataclasses.asdict(denoiser.config),
        "summary": summary,
    }
    if isinstance(denoiser, GaussianMixture):
        description["kind"] = _MIXTURE
    metadata = {METADATA_KEY: json.dumps(plain(description))}
    tensors = {
        name.replace("_orig_mod.", ""): tensor.detach().cpu().contiguous()  # torch.compile's prefix
        for name, tensor in denoiser.state_dict().items()
    }
    write_tensors(Path(path), tensors, metadata)


def load_weights(path: str | os.PathLike[str], device: torch.device | str = "cpu") -> Model:
    """The network of a file written by `save_weights`, in float32 and evaluation mode, or its
    prior, in float64.

    Raises FileNotFoundError if there is no such file, and ValueError, whose message names
    the file, when it is damaged, of another kind, or does not fit its own description.
    """
    path = Path(path)
    with _opened(path) as (file, description):
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    check_floats(path, tensors)
    if description.kind == _MIXTURE:
        return _mixture(path, description, tensors).to(device)
    config = _config(path, description)
    with torch.device(device), WithoutInitialisation():
        denoiser = Denoiser(config)
    check_tensors(path, tensors, denoiser.state_dict())
    denoiser.load_state_dict(tensors)
    return denoiser.eval()


def read_summary(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The training summary of a weights file, without its tensors; errors as in `load_weights`."""
    with _opened(Path(path)) as (_, description):
        record(_Summary, description.summary, f"the summary inside {path}", others=True)
    return description.summary


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, _Description]]:
    """A weights file, and what it says about itself."""
    if path.is_dir():
        raise ValueError(f"{path} is a folder: give the weights.safetensors of a run")
    if not path.exists():
        raise FileNotFoundError(f"there is no weights file {path}")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            yield file, _description(path, (file.metadata() or {}).get(METADATA_KEY))
    except SafetensorError as error:
        if path.suffix in (".pt", ".pth", ".pkl"):
            raise ValueError(
                f"{path} is a PyTorch pickle, and pickles are never opened here: give a "
                ".safetensors file written by save_weights"
            ) from error
        raise ValueError(f"{path} is no safetensors file, or it is damaged or cut off") from error


def _description(path: Path, text: str | None) -> _Description:
    """What a file says about itself, in a format that this version knows."""
    if text is None:
        raise ValueError(
            f"{path} holds tensors, but does not say of which network: it was not written by "
            "save_weights"
        )
    what = f"the description inside {path}"
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{what} is damaged: {error}") from None
    description = record(_Description, values, what, others=True)
    if description.format != FORMAT_VERSION:
        raise ValueError(
            f"{path} has weights format {description.format}, and this version of the project "
            f"reads {FORMAT_VERSION} only"
        )
    return description


def _config(path: Path, description: _Description) -> NetworkConfig:
    what = f"the network described inside {path}"
    values = dict(description.config)
    if values.pop("consistent", False):  # a field of earlier versions
        raise ValueError(f"{what} is a `consistent` one, which this version no longer has")
    if description.summary.get("mse_train"):
        values.setdefault("objective", "mmse")
    return record(NetworkConfig, values, what)


def _mixture(
    path: Path, description: _Description, tensors: Mapping[str, Tensor]
) -> GaussianMixture:
    what = f"the prior described inside {path}"
    config = record(PriorConfig, description.config, what, others=True)
    copies = {name: tensor.clone() for name, tensor in tensors.items()}
    try:
        basis = copies.pop("basis", None)
        return GaussianMixture(**copies, basis=basis, image_shape=config.image_shape)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{what} cannot be built: {error}") from error


def check_tensors(
    source: str | Path, tensors: Mapping[str, Tensor], expected: Mapping[str, Tensor]
) -> None:
    """Raise ValueError unless the tensors have the names and shapes that are expected."""
    found, wanted = ({k: tuple(t.shape) for k, t in of.items()} for of in (tensors, expected))
    problems = [f"'{k}' is missing" for k in wanted if k not in found]
    problems += [f"'{k}' is unknown" for k in found if k not in wanted]
    changed = [k for k in wanted if k in found and found[k] != wanted[k]]
    problems += [f"'{k}' is {found[k]} instead of {wanted[k]}" for k in changed]
    if problems:
        raise ValueError(f"the weights of {source} do not fit the network: {problems[0]}")
