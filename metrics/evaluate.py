"""The evaluation loop: dataset → operator → problem → restorations → metrics.

Operator, noise and latent follow from each image's own seed, and images are grouped by structure,
so results do not depend on the batch size or the number of processes.
"""

import time
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from datautils import ImageDataset
from degradation import Draws, Family, GaussianNoise, Problem, derive_seed
from metrics.pixel import consistency, psnr, ssim, summarize, to_float, to_uint8

_ROWS = 4  # matrix products of fewer rows round differently: batches are padded to a multiple

# A restoration: (problem, unit noise [B, C, h, w], random draws) → images [B, C, h, w] in [-1, 1].
Restore = Callable[[Problem, Tensor, Draws], Tensor]
# A metric: (problem, restored float images, restored uint8, true uint8) → [B].
Metric = Callable[[Problem, Tensor, Tensor, Tensor], Tensor]

METRICS: dict[str, Metric] = {
    "psnr": lambda problem, x, restored, truth: psnr(restored, truth),
    "ssim": lambda problem, x, restored, truth: ssim(restored, truth),
    "consistency": lambda problem, x, restored, truth: consistency(
        problem.degradation, x, problem.y
    ),
}


@dataclass
class Results:
    """Per-image values, pictures of the first images, and the seconds each method took."""

    rows: list[dict[str, Any]] = field(default_factory=list)
    pictures: dict[tuple[str, int], dict[str, Tensor]] = field(default_factory=dict)
    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    def merge(self, other: "Results") -> None:
        """Take in the results of another process."""
        self.rows += other.rows
        self.pictures |= other.pictures
        for key, seconds in other.seconds.items():
            self.add_seconds(key, seconds)

    def add_seconds(self, key: tuple[str, str], seconds: float) -> None:
        """Count time for a method under a degradation."""
        self.seconds[key] = self.seconds.get(key, 0.0) + seconds


def group_by_structure(
    family: Family, seeds: Mapping[int, int], batch: int
) -> Iterator[tuple[Hashable, list[int]]]:
    """Batches of at most `batch` image indices whose operators share a structure.

    seeds: the seed of every image index.
    """
    groups: dict[Hashable, list[int]] = {}
    for index, seed in seeds.items():
        groups.setdefault(family.structure(seed), []).append(index)
    for structure, indices in groups.items():
        for start in range(0, len(indices), batch):
            yield structure, indices[start : start + batch]


@torch.no_grad()
def evaluate(
    dataset: ImageDataset,
    families: Mapping[str, Family],
    methods: Mapping[str, Restore],
    *,
    noise: GaussianNoise,
    metrics: Sequence[str],
    indices: Sequence[int],
    batch: int,
    seed: int,
    device: torch.device,
    pictures: int = 0,
    progress: bool = True,
) -> Results:
    """Restore the images `indices` of a dataset under each family with each method.

    The first `pictures` images of every family are kept for a grid.
    """
    results = Results()
    seeds = {index: derive_seed(seed, "image", index) for index in indices}
    total = len(seeds) * len(families) * len(methods)
    with tqdm(total=total, unit="img", desc="restoring", disable=not progress) as bar:
        for name, family in families.items():
            for structure, group in group_by_structure(family, seeds, batch):
                padded = group + group[-1:] * (-len(group) % _ROWS)
                own = [seeds[index] for index in padded]
                truth, problem = _pose(dataset, family, structure, noise, padded, own, device)
                shown = [index for index in group if index < pictures]
                _keep_measurements(results, name, shown, group, truth, problem)
                for method, restore in methods.items():
                    bar.set_postfix(family=name, method=method)
                    start = _now(device)
                    # A problem of its own: no method profits from what another has computed.
                    draws = Draws(own, device)
                    x = restore(problem[:], draws.normal(truth.shape[1:], "latent"), draws)
                    results.add_seconds((name, method), _now(device) - start)
                    restored = to_uint8(x).cpu()
                    values = _measure(metrics, problem, x, restored, truth.cpu())
                    for i, index in enumerate(group):
                        row = {"degradation": name, "image": index, "structure": str(structure)}
                        row |= {"method": method} | {m: values[m][i] for m in metrics}
                        results.rows.append(row)
                        if index in shown:
                            results.pictures[name, index][method] = restored[i]
                    bar.update(len(group))
    return results


def _now(device: torch.device) -> float:
    """Seconds on a clock, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def _pose(
    dataset: ImageDataset,
    family: Family,
    structure: Hashable,
    noise: GaussianNoise,
    indices: Sequence[int],
    seeds: Sequence[int],
    device: torch.device,
) -> tuple[Tensor, Problem]:
    """The images of these indices, uint8 `[B, C, h, w]`, and the problems to restore them."""
    items = [dataset[index] for index in indices]
    truth = torch.stack([image for image, _ in items]).to(device)
    labels = torch.tensor([label for _, label in items], device=device)
    operator = family.sample(dataset.image_shape, structure, seeds, device)
    return truth, noise.measure(operator, to_float(truth), Draws(seeds, device), labels)


def _measure(
    metrics: Sequence[str], problem: Problem, x: Tensor, restored: Tensor, truth: Tensor
) -> dict[str, list[float]]:
    """Values of each metric; a restoration that is not finite has none, which shows in the mean."""
    failed = ~x.flatten(1).isfinite().all(1).cpu()
    values = {m: METRICS[m](problem, x, restored, truth).cpu() for m in metrics}
    return {m: value.masked_fill(failed, torch.nan).tolist() for m, value in values.items()}


def _keep_measurements(
    results: Results,
    name: str,
    shown: Sequence[int],
    group: Sequence[int],
    truth: Tensor,
    problem: Problem,
) -> None:
    picture = problem.degradation.measurement_image(problem.y)
    for index in shown:
        i = group.index(index)
        images = {"original": truth[i].cpu()}
        if picture is not None:
            images["measurement"] = to_uint8(picture[i]).cpu()
        results.pictures[name, index] = images


def summarise(results: Results, metrics: Sequence[str]) -> dict[str, dict[str, dict[str, Any]]]:
    """{degradation: {method: {metric: mean, standard error and count}}} of the per-image rows."""
    table: dict[str, dict[str, dict[str, Any]]] = {}
    for row in results.rows:
        table.setdefault(row["degradation"], {}).setdefault(row["method"], {})
    for degradation, methods in table.items():
        for method, cell in methods.items():
            chosen = [
                row
                for row in results.rows
                if (row["degradation"], row["method"]) == (degradation, method)
            ]
            for metric in metrics:
                cell[metric] = summarize(torch.tensor([row[metric] for row in chosen]))
            seconds = results.seconds[degradation, method]
            cell["seconds_per_image"] = seconds / len(chosen)
    return table
