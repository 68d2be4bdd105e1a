"""`calculate_metrics.py gen-uncond`: draw images from a denoiser without any measurement."""

import json
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from commands.cli import check_folder, chosen
from commands.files import check_new, publish, working_folder
from commands.loading import load_frozen
from commands.methods import Restorer, check_guidance, check_samplers, compile_network, solvers_of
from degradation import Draws, Problem, derive_seed
from metrics.distances import Distances
from metrics.evaluate import seconds_now
from metrics.images import ImageWriter, image_name
from metrics.pipeline import Stage
from metrics.pixel import to_uint8
from metrics.report import metrics_table, units
from metrics.results import write_grid, write_metrics
from metrics.statistics import FeatureStatistics
from networks.precision import DTYPES, resolve_precision
from runtime import distributed, signals
from runtime.errors import data_errors, one_sentence_errors

_METRICS = ("fid", "fd")
_COLUMNS = 8  # of grid.png
_SEVERAL = 1024  # classes that are drawn at once


@dataclass
class Unconditional:
    """The options of `gen-uncond`, in the words of its help text."""

    net: Path
    outdir: Path
    images: int
    batch: int
    classes: tuple[int, ...]
    metrics: str
    ref: Path | None
    detectors: tuple[str, ...]
    any_count: bool
    sampler: str
    sampler_opt: dict[str, str]
    cfg: float | None
    precision: str
    compiled: bool
    recompute: bool
    pictures: int
    save_images: bool
    seed: int

    def run(self) -> None:
        """Generate, measure, write the result files and print the table."""
        with distributed.process_group() as device:
            with one_sentence_errors():
                self._build(device)
            with data_errors(), working_folder(self.outdir) as folder:
                self._generate(folder, device)
                distributed.barrier()
                self._finish(folder)

    def _build(self, device: torch.device) -> None:
        self.names = chosen("metric", self.metrics, _METRICS)
        solver = solvers_of([self.sampler], self.sampler_opt)[self.sampler]
        self.precision = resolve_precision(self.precision, device)
        denoiser = load_frozen(self.net, device, DTYPES[self.precision], self.recompute)
        if self.compiled:
            compile_network(denoiser, device)
        check_samplers(self.net, [self.sampler])
        self.config = denoiser.config
        self._check_classes()
        check_guidance(self.cfg, denoiser, self.net)
        check_folder(self.outdir)
        check_new(self.outdir, self.save_images)
        self.restorer = Restorer(denoiser, solver, DTYPES[self.precision], self.cfg)
        self.distances = Distances.of(
            self.names,
            self.ref,
            self.detectors,
            device,
            images=self.images,
            image_shape=self.config.image_shape,
            any_count=self.any_count,
        )
        self.statistics = {metric: FeatureStatistics() for metric in self.distances.detectors}
        self.shown: dict[int, Tensor] = {}
        self.failed = 0
        self.seconds = {"sample": 0.0, "features": 0.0, "write": 0.0}

    def _check_classes(self) -> None:
        known = self.config.num_classes
        if self.classes and not known:
            raise ValueError(f"--class: {self.net} was trained without classes")
        for label in self.classes:
            if not 0 <= label < known:
                raise ValueError(f"--class {label} must lie between 0 and {known - 1}")

    def _generate(self, folder: Path, device: torch.device) -> None:
        rank = distributed.rank()
        own = range(rank, self.images, distributed.world_size())
        bar = tqdm(total=len(own), unit="img", desc="generating", disable=rank != 0)
        with bar, ImageWriter(folder / "images") as writer:
            self.writer = writer if self.save_images else None
            with Stage[tuple[Sequence[int], Tensor]](self._measure, device) as stage:
                for start in range(0, len(own), self.batch):
                    signals.heed_termination()
                    indices = own[start : start + self.batch]
                    began = seconds_now(device)
                    images = self._sample(indices, device)
                    self.seconds["sample"] += seconds_now(device) - began
                    stage.put((indices, images))
                    bar.update(len(indices))
        self.seconds["write"] = writer.seconds

    @torch.no_grad()
    def _sample(self, indices: Sequence[int], device: torch.device) -> Tensor:
        """Image i follows from its own seed, whatever the batch."""
        draws = Draws([derive_seed(self.seed, "image", i) for i in indices], device)
        shape = self.config.image_shape
        problem = Problem.without_measurement(
            len(indices), shape, self._labels(indices).to(device), device
        )
        return self.restorer(problem, draws.normal(shape, "latent"), draws)

    def _labels(self, indices: Sequence[int]) -> Tensor:
        """The classes asked for in turn; with none asked for, drawn uniformly for each image."""
        if not self.config.num_classes:
            return torch.full((len(indices),), -1)
        if self.classes:
            return torch.tensor([self.classes[i % len(self.classes)] for i in indices])
        draws = Draws([derive_seed(self.seed, "image", i) for i in indices])
        return draws.integers(0, self.config.num_classes - 1, (), "class")

    @torch.no_grad()
    def _measure(self, item: tuple[Sequence[int], Tensor]) -> None:
        indices, x = item
        start = time.perf_counter()
        finite = x.flatten(1).isfinite().all(1)
        self.failed += len(finite) - int(finite.sum())
        images = to_uint8(x)
        for metric, detector in self.distances.detectors.items():
            self.statistics[metric].update(detector(images)[finite])
        pixels = images.cpu()
        for i, index in enumerate(indices):
            if index < self.pictures:
                self.shown[index] = pixels[i].clone()
            if self.writer:
                self.writer.put(image_name(index), pixels[i])
        self.seconds["features"] += time.perf_counter() - start

    def _finish(self, folder: Path) -> None:
        failed = sum(distributed.gather(self.failed))
        values = {}
        for metric, detector in self.distances.detectors.items():
            total = self.statistics[metric].reduced(distributed.sum_tensor, detector.features)
            if distributed.rank() == 0:
                value = math.nan if failed else self.distances.value(metric, total)
                values[metric] = {"mean": value, "count": total.count}
        shares = distributed.gather((self.shown, self.seconds))
        if distributed.rank():
            return
        pictures = {index: image for share in shares for index, image in share[0].items()}
        if pictures:
            self._write_grid(folder, [pictures[index] for index in sorted(pictures)])
        if self.save_images and self.config.num_classes:
            self._write_labels(folder / "images" / "dataset.json")
        stages = {
            stage: sum(share[1][stage] for share in shares) / self.images for stage in self.seconds
        }
        cell = values | self.restorer.cost | {"seconds_per_image": stages["sample"]}
        named = {"none": {self.sampler: cell}}
        record = {
            "units": units(self.compiled),
            "values": named,
            "not_finite": failed,
            "stages": stages,
        }
        write_metrics(folder, record, self._settings())
        images = ["images"] if self.save_images else []
        publish(folder, self.outdir, [*images, "grid.png", "metrics.json"])
        print(metrics_table(named, self.names, self.compiled))
        print(f"results: {self.outdir}")

    def _write_grid(self, folder: Path, images: list[Tensor]) -> None:
        rows: list[list[Tensor | None]] = [
            [*images[i : i + _COLUMNS], *[None] * (i + _COLUMNS - len(images))]
            for i in range(0, len(images), _COLUMNS)
        ]
        write_grid(folder / "grid.png", rows, [""] * _COLUMNS)

    def _write_labels(self, path: Path) -> None:
        """EDM's dataset.json, so that the images can be trained on or measured by class."""
        with path.open("w") as file:
            file.write('{"labels": [')
            for i, line in enumerate(self._label_lines()):
                file.write(f",\n{line}" if i else line)
            file.write("]}\n")

    def _label_lines(self) -> Iterator[str]:
        for start in range(0, self.images, _SEVERAL):
            indices = range(start, min(start + _SEVERAL, self.images))
            for index, label in zip(indices, self._labels(indices).tolist(), strict=True):
                yield json.dumps([image_name(index), label])

    def _settings(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return options | {
            "processes": distributed.world_size(),
            "solver": asdict(self.restorer.solver),  # type: ignore[call-overload]
            "detector_files": self.distances.provenance(),
        }
