"""`calculate_metrics.py gen` without a degradation: draw images from a network alone."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.cli import chosen
from commands.files import check_new, publish, results_of, working_folder
from commands.methods import (
    Restorer,
    check_guidance,
    check_objective,
    distances_of,
    kept,
    load_network,
    samplers_of,
)
from commands.options import UNUSED, GenOptions
from degradation import Draws, Problem, derive_seed
from metrics.distances import Distances, compared
from metrics.features import DISTANCES
from metrics.images import ImageWriter, image_name
from metrics.keeping import Kept
from metrics.pipeline import Stage
from metrics.pixel import to_uint8
from metrics.report import metrics_table, units
from metrics.results import write_grid, write_metrics
from metrics.statistics import FeatureStatistics
from networks.precision import resolve_precision
from runtime import distributed, signals
from runtime.errors import data_errors, one_sentence_errors
from runtime.files import writing
from runtime.progress import progress

_METRICS = tuple(metric for metric, found in DISTANCES.items() if not found.projected)
_IMAGES, _PICTURES = 50_000, 64
_COLUMNS = 8  # of grid.png
_SEVERAL = 1024  # classes that are drawn at once


@dataclass(frozen=True)
class Drawing:
    """What is drawn, once everything about it is checked."""

    options: GenOptions
    name: str
    """Of the sampler."""
    restorer: Restorer
    count: int
    pictures: int
    names: list[str]
    """Metrics."""
    distances: Distances
    precision: str

    def labels(self, indices: Sequence[int]) -> Tensor:
        """The classes asked for in turn; with none asked for, drawn uniformly for each image."""
        known = self.restorer.denoiser.config.num_classes
        if not known:
            return torch.full((len(indices),), -1)
        if classes := self.options.classes:
            return torch.tensor([classes[i % len(classes)] for i in indices])
        draws = Draws([derive_seed(self.options.seed, "image", i) for i in indices])
        return draws.integers(0, known - 1, (), "class")

    @torch.no_grad()
    def sample(self, indices: Sequence[int], device: torch.device, method: Kept) -> Tensor:
        """Image i follows from its own seed and does not depend on the batch."""
        draws = Draws([derive_seed(self.options.seed, "image", i) for i in indices], device)
        shape = self.restorer.denoiser.config.image_shape
        labels = self.labels(indices).to(device)
        problem = Problem.without_measurement(len(indices), shape, labels, device)
        return method(problem, draws.normal(shape, "latent"), draws)


@dataclass
class Share:
    """What one process found."""

    statistics: dict[str, FeatureStatistics]
    shown: dict[int, Tensor] = field(default_factory=dict)
    failed: int = 0
    cost: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(
        default_factory=lambda: {"sample": 0.0, "features": 0.0, "write": 0.0}
    )


def draw(options: GenOptions) -> None:
    """Draw, measure, write the result files and print the table."""
    with distributed.process_group() as device:
        with one_sentence_errors():
            drawing = build(options, device)
        results = results_of(options)
        with data_errors(), working_folder(options.outdir, results, resumes=True) as folder:
            if distributed.rank() == 0:
                print(f"no --degradation: drawing {drawing.count} images from the network alone")
            share = _draw(drawing, folder, device)
            distributed.barrier()
            _finish(drawing, share, folder)


def build(options: GenOptions, device: torch.device) -> Drawing:
    """Everything that an option can get wrong comes first. Raises ValueError."""
    options.check_unconditional()
    names = chosen("metric", options.metrics or "", _METRICS)
    (name,) = options.samplers or ("heun",)
    sampler = samplers_of([name], options.sampler_opt, options.sampler_preset)[name]
    precision = resolve_precision(options.precision, device)
    (net,) = options.nets
    denoiser = load_network(net, device, precision, options)
    check_objective(net, denoiser, {name: sampler})
    _check_classes(options.classes, denoiser.config.num_classes, net)
    check_guidance(options.cfg, denoiser, net)
    check_new(options.outdir, results_of(options))
    count = options.images or _IMAGES
    distances = distances_of(names, options, device, count, denoiser.config.image_shape)
    restorer = Restorer(denoiser, sampler, precision, options.cfg)
    pictures = _PICTURES if options.pictures is None else options.pictures
    title = sampler.title or name
    return Drawing(options, title, restorer, count, pictures, names, distances, precision)


def _check_classes(classes: Sequence[int], known: int, net: Path) -> None:
    if classes and not known:
        raise ValueError(f"--class: {net} was trained without classes")
    for label in classes:
        if not 0 <= label < known:
            raise ValueError(f"--class {label} must lie between 0 and {known - 1}")


def _draw(drawing: Drawing, folder: Path, device: torch.device) -> Share:
    """This process's images; drawing, measuring and writing run side by side."""
    options, rank = drawing.options, distributed.rank()
    own = range(rank, drawing.count, distributed.world_size())
    detectors = drawing.distances.detectors
    share = Share({m: FeatureStatistics(DISTANCES[m].kernel) for m in detectors})
    method = kept({"": drawing.restorer}, options, folder)[""]
    assert isinstance(method, Kept)
    with (
        progress(len(own), "drawing", "images", silent=rank != 0) as bar,
        ImageWriter(folder / "images") as writer,
    ):
        saving = writer if options.save_images else None

        def measure(item: tuple[Sequence[int], Tensor]) -> None:
            _measure(drawing, share, saving, *item)

        with Stage[tuple[Sequence[int], Tensor]](measure, device) as stage:
            for start in range(0, len(own), options.batch):
                signals.heed_termination()
                indices = own[start : start + options.batch]
                images = drawing.sample(indices, device, method)
                share.cost = method.cost
                share.seconds["sample"] += method.seconds
                stage.put((indices, images))
                bar.update(len(indices))
    share.seconds["write"] = writer.seconds
    return share


@torch.no_grad()
def _measure(
    drawing: Drawing, share: Share, writer: ImageWriter | None, indices: Sequence[int], x: Tensor
) -> None:
    start = time.perf_counter()
    finite = x.flatten(1).isfinite().all(1).cpu()
    share.failed += len(finite) - int(finite.sum())
    images = to_uint8(x)
    for metric, detector in drawing.distances.detectors.items():
        share.statistics[metric].update(detector(images)[finite], torch.tensor(indices)[finite])
    pixels = images.cpu()
    for i, index in enumerate(indices):
        if index < drawing.pictures:
            share.shown[index] = pixels[i].clone()
        if writer:
            writer.put(image_name(index), pixels[i])
    share.seconds["features"] += time.perf_counter() - start


def _finish(drawing: Drawing, share: Share, folder: Path) -> None:
    """Bring the processes' shares together; the first writes the files and prints the table."""
    failed = sum(distributed.gather(share.failed))
    values = {}
    for metric, detector in drawing.distances.detectors.items():
        total = share.statistics[metric].reduced(distributed.sum_tensor, detector.features)
        if distributed.rank() == 0:
            value = math.nan if failed else drawing.distances.value(metric, total)
            values[metric] = {"mean": value, "count": compared(metric, total.count)}
    options = drawing.options
    shares = distributed.gather((share.shown, share.seconds))
    if distributed.rank():
        return
    pictures = {index: image for shown, _ in shares for index, image in shown.items()}
    if pictures:
        _write_grid(folder, [pictures[index] for index in sorted(pictures)])
    if options.save_images and drawing.restorer.denoiser.config.num_classes:
        _write_labels(folder / "images" / "dataset.json", drawing)
    stages = {
        stage: sum(seconds[stage] for _, seconds in shares) / drawing.count
        for stage in share.seconds
    }
    cell = values | share.cost | {"seconds_per_image": stages["sample"]}
    named = {"none": {drawing.name: cell}}
    record = {
        "units": units(options.compiled),
        "values": named,
        "not_finite": failed,
        "stages": stages,
    }
    write_metrics(folder, record, _settings(drawing))
    images = ["images"] if options.save_images else []
    publish(folder, options.outdir, [*images, "grid.png", "metrics.json"])
    print(metrics_table(named, drawing.names, options.compiled))
    print(f"results: {options.outdir}")


def _write_grid(folder: Path, images: list[Tensor]) -> None:
    rows: list[list[Tensor | None]] = [
        [*images[i : i + _COLUMNS], *[None] * (i + _COLUMNS - len(images))]
        for i in range(0, len(images), _COLUMNS)
    ]
    write_grid(folder / "grid.png", rows, [""] * _COLUMNS)


def _write_labels(path: Path, drawing: Drawing) -> None:
    """EDM's dataset.json, so that the images can be trained on or measured by class."""
    with writing(path), path.open("w") as file:
        file.write('{"labels": [')
        for i, line in enumerate(_label_lines(drawing)):
            file.write(f",\n{line}" if i else line)
        file.write("]}\n")


def _label_lines(drawing: Drawing) -> Iterator[str]:
    for start in range(0, drawing.count, _SEVERAL):
        indices = range(start, min(start + _SEVERAL, drawing.count))
        for index, label in zip(indices, drawing.labels(indices).tolist(), strict=True):
            yield json.dumps([image_name(index), label])


def _settings(drawing: Drawing) -> dict[str, Any]:
    used = {k: v for k, v in asdict(drawing.options).items() if k not in UNUSED}
    return used | {
        "images": drawing.count,
        "metrics": ",".join(drawing.names),
        "pictures": drawing.pictures,
        "precision": drawing.precision,
        "processes": distributed.world_size(),
        "sampler": asdict(drawing.restorer.sampler),  # type: ignore[call-overload]
        "detector_files": drawing.distances.provenance(),
    }
