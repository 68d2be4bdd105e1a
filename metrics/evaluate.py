"""The evaluation loop: dataset → operator → problem → restorations, as a stream.

Operator, noise and latent follow from each image's own seed, and images are grouped by structure,
so a restoration does not depend on the batch size or the number of processes.
"""

import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from datautils import ImageDataset
from datautils.loading import load_batches
from degradation import Draws, Family, Noise, Problem, derive_seed
from metrics.pixel import to_float, to_uint8
from runtime.progress import seconds_now

_ROWS = 4  # matrix products of fewer rows round differently: batches are padded to a multiple
_CHUNK = 4096  # images that are grouped by structure at once: the memory of a plan is bounded

# A restoration: (problem, unit noise [B, C, h, w], random draws) → images [B, C, h, w] in [-1, 1].
Restore = Callable[[Problem, Tensor, Draws], Tensor]


@dataclass(frozen=True)
class Group:
    """Images whose operators share a structure; `chunk` rises along the stream of a family."""

    degradation: str
    structure: Hashable
    indices: list[int]
    seeds: list[int]
    chunk: int

    def padded(self, values: list[int]) -> list[int]:
        """The indices or seeds with the last one repeated up to a multiple of 4."""
        return values + values[-1:] * (-len(values) % _ROWS)


@dataclass(frozen=True)
class Samples:
    """All samples of a group."""

    images: Tensor  # uint8 [K, P, C, h, w]
    finite: Tensor  # bool [P]: whether all samples of an image are finite
    seconds: float  # of all but the first


@dataclass(frozen=True)
class Restored:
    """A group restored by one method; the first `len(group.indices)` of the P images count."""

    group: Group
    method: str
    truth: Tensor  # uint8 [P, C, h, w]
    problem: Problem
    x: Tensor  # floats [P, C, h, w]
    seconds: float  # of the restoration alone
    cost: Mapping[str, float]  # what an image took on average, by name, if the method says so
    samples: Samples | None


def plan(
    families: Mapping[str, Family], indices: Sequence[int], batch: int, seed: int
) -> Iterator[Group]:
    """The groups of at most `batch` images in which an evaluation is done."""
    for name, family in families.items():
        for chunk, start in enumerate(range(0, len(indices), _CHUNK)):
            part = indices[start : start + _CHUNK]
            seeds = {index: derive_seed(seed, "image", index) for index in part}
            for structure, group in group_by_structure(family, seeds, batch):
                yield Group(name, structure, group, [seeds[i] for i in group], chunk)


def group_by_structure(
    family: Family, seeds: Mapping[int, int], batch: int
) -> Iterator[tuple[Hashable, list[int]]]:
    """Batches of at most `batch` images whose operators share a structure; seeds: by image."""
    groups: dict[Hashable, list[int]] = {}
    for index, seed in seeds.items():
        groups.setdefault(family.structure(seed), []).append(index)
    for structure, indices in groups.items():
        for start in range(0, len(indices), batch):
            yield structure, indices[start : start + batch]


def restorations(
    dataset: ImageDataset,
    families: Mapping[str, Family],
    methods: Mapping[str, Restore],
    *,
    noise: Noise,
    indices: Sequence[int],
    batch: int,
    seed: int,
    device: torch.device,
    workers: int = 0,
    samples: Mapping[str, int] = MappingProxyType({}),
) -> Iterator[Restored]:
    """Restore the images `indices` of a dataset under each family with each method.

    samples: how many of each image a method draws, where several; the first one is the restoration
    itself. workers: processes that load images. Nothing is computed before it is asked for.
    """
    groups, loading = itertools.tee(plan(families, indices, batch, seed))
    batches = load_batches(dataset, (group.padded(group.indices) for group in loading), workers)
    for group, (truth, labels) in zip(groups, batches, strict=True):
        seeds = group.padded(group.seeds)
        with torch.no_grad():
            truth = truth.to(device, non_blocking=True)
            operator = families[group.degradation].sample(
                dataset.image_shape, group.structure, seeds, device
            )
            draws = Draws(seeds, device)
            problem = noise.measure(operator, to_float(truth), draws, labels.to(device))
        for method, restore in methods.items():
            x, seconds = _timed(restore, problem, Draws(seeds, device))
            cost, count = getattr(restore, "cost", {}), samples.get(method)
            several = _samples(x, restore, problem, seeds, count) if count else None
            yield Restored(group, method, truth, problem, x, seconds, cost, several)


def _samples(
    first: Tensor, restore: Restore, problem: Problem, seeds: Sequence[int], count: int
) -> Samples:
    """Sample k of an image follows from its seed and k."""
    device, total = first.device, 0.0
    images, finite = [to_uint8(first)], first.flatten(1).isfinite().all(1)
    for k in range(1, count):
        draws = Draws([derive_seed(seed, "sample", k) for seed in seeds], device)
        x, seconds = _timed(restore, problem, draws)
        total += seconds
        images.append(to_uint8(x))
        finite &= x.flatten(1).isfinite().all(1)
    return Samples(torch.stack(images), finite, total)


def _timed(restore: Restore, problem: Problem, draws: Draws) -> tuple[Tensor, float]:
    """A restoration and its seconds, unless the method itself knows what they were."""
    device = problem.y.device
    start = seconds_now(device)
    with torch.no_grad():
        x = restore(problem, draws.normal(problem.degradation.image_shape, "latent"), draws)
    elapsed = seconds_now(device) - start
    return x, getattr(restore, "seconds", elapsed)
