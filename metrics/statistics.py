"""Statistics of features over any number of images, and files of them to compare with.

A reference file is one `.safetensors`: for each detector `<name>/mean` and `<name>/covariance` in
float64, `<name>/features` of the first images in float32 (for kernel distances) and, as JSON, which
weights computed them from which images. EDM's `.npz` files (Karras et al. 2022: arrays `mu` and
`sigma` of Inception features) are read too. Nothing is ever unpickled.
"""

import datetime
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from datautils.identity import Identity
from metrics.detectors import DISTANCES, Detector, load_detector
from metrics.distances import frechet_distance, kernel_distance, square_root, within
from runtime.environment import environment
from runtime.files import check_floats, write_tensors
from runtime.records import parse_json, plain, record

METADATA_KEY = "invfusion-reference"
FORMAT_VERSION = 1
KEPT = 10_000  # images whose features kernel distances compare, the first ones of a set


class FeatureStatistics:
    """Count, sum and sum of outer products of features, in float64 on the features' device.

    Batches and processes change them by rounding only. They are sums of differences from the mean
    of the first batch: features far from 0 lose no digits. keep: also the features of the images
    below KEPT, on the CPU.
    """

    def __init__(self, keep: bool = False) -> None:
        self.count, self.keep = 0, keep
        self._kept: list[tuple[Tensor, Tensor]] = []  # indices, features
        self._shift: Tensor  # [d]
        self._sum: Tensor  # [d], and the next one [d, d]: of features less the shift
        self._outer: Tensor

    def update(self, features: Tensor, indices: Tensor | None = None) -> None:
        """Take in the finite features `[B, d]` of a detector.

        indices: `[B]`, of the images in their set; needed to keep their features.
        """
        if len(features) == 0:
            return
        features = features.double()
        if self.count == 0:
            self._start(features.mean(0))
        if self.keep:
            assert indices is not None
            chosen = indices < KEPT
            self._kept.append((indices[chosen], features.cpu()[chosen].float()))
        features = features - self._shift
        self.count += len(features)
        self._sum += features.sum(0)
        self._outer += features.mT @ features

    def _start(self, shift: Tensor) -> None:
        self._shift, self._sum = shift, torch.zeros_like(shift)
        self._outer = torch.zeros_like(torch.outer(shift, shift))

    def reduced(self, sum_tensor: Callable[[Tensor], Tensor], features: int) -> "Moments":
        """Mean and covariance over all processes, on every process; each must call it.

        sum_tensor: sums a tensor over the processes. features: their number d.
        """
        if self.count == 0:
            self._start(torch.zeros(features, dtype=torch.float64))
        own = torch.cat([self._sum.new_tensor([self.count]), self._sum + self.count * self._shift])
        number, total = sum_tensor(own).split([1, features])
        count, shift = int(number.item()), total / number
        # The sums of each process as differences from the mean of all, which is the same on all.
        step = self._shift - shift
        moved = torch.outer(step, self._sum)
        outer = self._outer + moved + moved.mT + self.count * torch.outer(step, step)
        flat = sum_tensor(torch.cat([self._sum + self.count * step, outer.flatten()]))
        sums, outer = flat[:features], flat[features:].view(features, features)
        kept = None
        if self.keep:
            kept = torch.zeros(min(count, KEPT), features)
            for indices, values in self._kept:
                inside = indices < len(kept)  # images that failed are not counted
                kept[indices[inside]] = values[inside]
            kept = sum_tensor(kept)
        covariance = (outer - torch.outer(sums, sums) / count) / (count - 1)
        return Moments(shift + sums / count, covariance, features=kept, images=count)


@dataclass(frozen=True)
class Moments:
    """Of one detector's features."""

    mean: Tensor  # [d], float64
    covariance: Tensor  # unbiased (n − 1), [d, d], float64; not finite for fewer than 2 images
    sha256: str | None = None  # of the detector's weights file, if it is known
    features: Tensor | None = None  # of the first images, float32 [n, d], for kernel distances
    images: int | None = None  # None of moments from a file

    @cached_property
    def root(self) -> Tensor:
        """The square root of the covariance, computed once for all methods. Raises ValueError."""
        return square_root(self.covariance)

    @cached_property
    def within(self) -> float:
        """The mean kernel of two of the features."""
        assert self.features is not None
        return within(self.features)

    def check(self) -> None:
        """Raise ValueError for fewer than 2 images, which have no covariance."""
        if self.images in (0, 1):
            raise ValueError(f"a covariance needs at least 2 images, not {self.images}")

    def distance(self, other: "Moments", kernel: bool = False) -> float:
        """Squared Fréchet distance of other images, or the kernel distance of both's features.

        Raises ValueError for a Fréchet distance of fewer than 2 images.
        """
        if kernel:
            assert self.features is not None and other.features is not None
            return kernel_distance(other.features, self.features, within_y=self.within)
        self.check()
        other.check()
        return frechet_distance(
            other.mean, other.covariance, self.mean, self.covariance, root2=self.root
        )


@dataclass
class _Origin:
    sha256: str | None


@dataclass
class _Description:
    """What a reference file says about itself."""

    format: Any  # of any version
    detectors: dict[str, _Origin]
    images: int
    image_shape: tuple[int, int, int] | None = None
    dataset: Identity | None = None

    def __post_init__(self) -> None:
        if self.images < 1:
            raise ValueError(f"images {self.images} must be at least 1")


@dataclass(frozen=True)
class Reference:
    """What a reference file holds. None if the file does not have it."""

    path: Path
    detectors: dict[str, Moments]
    images: int | None = None
    image_shape: tuple[int, ...] | None = None
    dataset: Identity | None = None
    description: Mapping[str, Any] | None = None

    def check(
        self,
        detector: Detector,
        images: int,
        image_shape: tuple[int, ...],
        allow_any_count: bool = False,
        kernel: bool = False,
    ) -> None:
        """Raise ValueError if a distance to this reference would be meaningless, as it is for a
        matrix that is no covariance.

        images: how many are compared with it; image_shape: theirs. What the file does not say is
        not checked. kernel: it is a kernel distance, which does not depend on the number.
        """
        name = detector.name
        moments = self.moments(name)
        if moments.sha256 not in (None, detector.sha256):
            raise ValueError(
                f"{self.path} was made with other weights of '{name}': SHA-256 "
                f"{moments.sha256:.8}…, not {detector.sha256:.8}…"
            )
        if len(moments.mean) != detector.features:
            raise ValueError(
                f"{self.path} has {len(moments.mean)} features of '{name}', and the detector gives "
                f"{detector.features}"
            )
        try:
            _ = moments.root  # kept for the distances
        except ValueError as error:
            raise ValueError(f"the covariance of '{name}' in {self.path} {error}") from None
        if kernel and moments.features is None:
            raise ValueError(
                f"{self.path} has no features of single images, which a kernel distance needs: "
                "write a new one with `calculate_metrics.py ref`"
            )
        if self.image_shape not in (None, tuple(image_shape)):
            raise ValueError(f"{self.path} is of images {self.image_shape}, not {image_shape}")
        if self.images not in (None, images) and not (allow_any_count or kernel):
            raise ValueError(
                f"{self.path} is of {self.images} images, not {images}, and Fréchet distances "
                "depend on the number of images: accept with --any-count"
            )

    def check_dataset(self, dataset: Identity) -> None:
        """ValueError for restorations of another data set than that of the reference."""
        if self.dataset is not None and self.dataset.digest != dataset.digest:
            raise ValueError(
                f"{self.path} is of {self.dataset}, and {dataset} are restored: accept with "
                "--any-count"
            )

    def moments(self, name: str) -> Moments:
        """Those of a detector; ValueError where the file has none of it."""
        if name not in self.detectors:
            known = ", ".join(self.detectors)
            raise ValueError(f"{self.path} has no features of '{name}'; it has {known}")
        return self.detectors[name]


def save_reference(
    path: Path,
    moments: Mapping[str, tuple[Moments, Detector]],
    provenance: Mapping[str, Any],
) -> None:
    """Write the statistics of one set of images, `{detector name: (moments, detector)}`.

    provenance: what JSON can hold about the images: `image_shape`, `data`, `split`. Raises OSError,
    and ValueError for fewer than 2 images.
    """
    tensors, detectors = {}, {}
    for name, (own, detector) in moments.items():
        own.check()
        tensors[f"{name}/mean"] = own.mean.cpu()
        tensors[f"{name}/covariance"] = own.covariance.cpu()
        if own.features is not None:
            tensors[f"{name}/features"] = own.features
        detectors[name] = {"sha256": detector.sha256, "features": detector.features}
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    description = {
        **provenance,
        "format": FORMAT_VERSION,
        "detectors": detectors,
        "images": max(own.images or 0 for own, _ in moments.values()),
        "created": {"time": now, **environment()},
    }
    metadata = {METADATA_KEY: json.dumps(plain(description), allow_nan=False)}
    write_tensors(path, tensors, metadata)


def load_reference(path: str | Path) -> Reference:
    """A file of `save_reference`, or EDM's `.npz`, whose detector is "inception".

    Raises FileNotFoundError, and ValueError for one that is damaged or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no reference file {path}")
    if path.suffix in (".pkl", ".pickle", ".pt", ".pth"):
        raise ValueError(
            f"{path} is a pickle, and pickles are never opened here: give a .safetensors file of "
            "`calculate_metrics.py ref`, or an .npz with the arrays mu and sigma"
        )
    reference = _load_npz(path) if path.suffix == ".npz" else _load_safetensors(path)
    for name, moments in reference.detectors.items():
        d = moments.mean.numel()
        shapes = tuple(moments.mean.shape), tuple(moments.covariance.shape)
        if d == 0 or shapes != ((d,), (d, d)):
            raise ValueError(f"{path} has a mean and covariance of '{name}' of shapes {shapes}")
        features = moments.features
        if features is not None and (features.shape[1:] != (d,) or len(features) < 2):
            raise ValueError(f"{path} has features of '{name}' of shape {tuple(features.shape)}")
    return reference


def _load_npz(path: Path) -> Reference:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            mean, covariance = (torch.from_numpy(arrays[name]) for name in ("mu", "sigma"))
    except KeyError as error:
        raise ValueError(f"{path} does not have the arrays mu and sigma") from error
    except Exception as error:  # damaged files fail in as many ways as there are bytes
        raise ValueError(
            f"{path} is damaged, or holds pickled objects, which are never opened here"
        ) from error
    check_floats(path, {"inception/mean": mean, "inception/covariance": covariance})
    return Reference(path, {"inception": Moments(mean, covariance)})


def _load_safetensors(path: Path) -> Reference:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            text = (file.metadata() or {}).get(METADATA_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is no safetensors file, or it is damaged or cut off") from error
    if text is None:
        raise ValueError(f"{path} is no reference file of `calculate_metrics.py ref`")
    what = f"the description inside {path}"
    try:
        values = parse_json(text)
    except ValueError as error:
        raise ValueError(f"{what} is damaged: {error}") from None
    found = record(_Description, values, what, others=True)
    if found.format != FORMAT_VERSION:
        raise ValueError(
            f"{path} has reference format {found.format}, and this version of the project reads "
            f"{FORMAT_VERSION} only"
        )
    check_floats(path, tensors)
    detectors = {}
    try:
        for name, origin in found.detectors.items():
            mean, covariance = tensors[f"{name}/mean"], tensors[f"{name}/covariance"]
            features = tensors.get(f"{name}/features")
            detectors[name] = Moments(mean, covariance, origin.sha256, features)
    except KeyError as error:
        raise ValueError(f"{path} does not hold what its description says: {error}") from None
    return Reference(path, detectors, found.images, found.image_shape, found.dataset, values)


@dataclass(frozen=True)
class Distances:
    """Detectors by metric (fid, cfid, ...) and the reference statistics; both may be none."""

    detectors: dict[str, Detector]
    reference: Reference | None

    def value(self, metric: str, moments: Moments) -> float:
        """The distance of images, by a metric, from the reference."""
        assert self.reference is not None
        reference = self.reference.moments(self.detectors[metric].name)
        return reference.distance(moments, DISTANCES[metric].kernel)

    def provenance(self) -> dict[str, Any]:
        """What the distances were computed with: SHA-256 of the detectors, the reference."""
        if self.reference is None:
            return {}
        return {
            "detectors": {d.name: d.sha256 for d in self.detectors.values()},
            "images": self.reference.images,
            "description": self.reference.description,
        }


def reference_detectors(
    reference: Reference,
    files: Mapping[str, str],
    device: torch.device,
    image_shape: tuple[int, int, int],
    trusted: bool,
) -> dict[str, Detector]:
    """The detectors that a reference was made with, by metric.

    files: their weights by name, else those in the cache. Raises ValueError if `files` names
    another one, or if one cannot be loaded.
    """
    for name in files:
        reference.moments(name)  # is there
    found = {}
    for name in reference.detectors:
        spec = f"{name}={files[name]}" if name in files else name
        metric = "fid" if name == "inception" else "fd"
        found[metric] = load_detector(spec, device, image_shape, trusted)
    return found


def compared(metric: str, count: int) -> int:
    """How many of `count` images a distance compares: kernel distances take the first ones."""
    return min(count, KEPT) if DISTANCES[metric].kernel else count
