"""`calculate_metrics.py gen`: restore a data set under each degradation and measure the result."""

import inspect
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from commands.cli import check_folder, check_once, chosen
from commands.families import families_of
from commands.files import check_new, publish, working_folder
from commands.loading import load_frozen
from commands.methods import (
    BASELINES,
    COSTS,
    Restorer,
    baseline_methods,
    check_guidance,
    check_operators,
    check_samplers,
    compile_network,
    driven,
    solvers_of,
)
from commands.ref import checked_count
from datautils import ImageDataset, dataset_class, get_dataset
from degradation import check_noise, make_noise
from metrics.distances import Distances
from metrics.evaluate import Restore, Restored, restorations
from metrics.images import ImageWriter
from metrics.measure import METRICS, PER_IMAGE, Measure
from metrics.pipeline import Stage
from metrics.pixel import check_size
from metrics.records import COLUMNS, PartialRecords, Summary, merged
from metrics.report import metrics_table, units, write_pictures
from metrics.results import write_metrics, write_per_image
from metrics.statistics import FeatureStatistics
from networks import Model
from networks.precision import DTYPES, resolve_precision
from networks.presets import conditioning_of
from runtime import distributed, signals
from runtime.errors import data_errors, one_sentence_errors
from samplers import Solver
from zero_shot import ZeroShot

_NAMES = {"invfusion": "InvFusion", "blind": "Palette"}


@dataclass
class Generation:
    """The options of `gen`, in the words of its help text."""

    nets: tuple[Path, ...]
    data: str
    data_opt: dict[str, Any]
    split: str
    degradations: tuple[str, ...]
    degradation_opt: dict[str, str]
    outdir: Path
    images: int | None
    batch: int
    metrics: str
    ref: Path | None
    detectors: tuple[str, ...]
    any_count: bool
    samplers: tuple[str, ...]
    sampler_opt: dict[str, str]
    cfg: float | None
    baselines: str
    noise_level: float
    poisson_peak: float | None
    precision: str
    compiled: bool
    recompute: bool
    pictures: int
    save_images: bool
    workers: int
    seed: int

    def run(self) -> None:
        """Restore, measure, write the result files and print the table."""
        with distributed.process_group() as device:
            with one_sentence_errors():
                self._build(device)
            with data_errors(), working_folder(self.outdir) as folder:
                start = time.perf_counter()
                measure = self._measure(folder, device)
                self.stages["total"] = time.perf_counter() - start
                distributed.barrier()
                self._finish(folder, measure)

    def _build(self, device: torch.device) -> None:
        """Everything that an option can get wrong comes first."""
        self.families = families_of(self.degradations, self.degradation_opt)
        self.names = chosen("metric", self.metrics, METRICS)
        wanted = chosen("baseline", self.baselines, BASELINES)
        self.noise = make_noise(self.noise_level, self.poisson_peak)
        noisy = self.noise_level or self.poisson_peak
        if noisy and any(n in ("cfid", "cfd") for n in self.names):
            raise ValueError(
                "cfid and cfd project onto Hx = y, which is defined without noise only: "
                f"leave them out of --metrics {self.metrics}, or the noise out"
            )
        solvers = solvers_of(self.samplers, self.sampler_opt)
        self.precision = resolve_precision(self.precision, device)
        check_once("--net", [str(net) for net in self.nets])
        nets = {net: self._network(net, device) for net in self.nets}
        pairs = driven(nets, solvers)
        for net, name in pairs:
            check_samplers(net, [name])
        check_folder(self.outdir)
        check_new(self.outdir, self.save_images)
        dataset = self._dataset(nets)
        check_size(self.names, dataset.image_shape)
        for family in self.families.values():
            family.check(dataset.image_shape)
            check_noise(self.noise, family, dataset.image_shape)
        check_operators(solvers, self.families, dataset.image_shape)
        self.count = checked_count(self.images, dataset, self.data)
        self.distances = Distances.of(
            self.names,
            self.ref,
            self.detectors,
            device,
            images=self.count,
            image_shape=dataset.image_shape,
            any_count=self.any_count,
        )
        self.restorers = self._restorers(nets, solvers, pairs)
        self.methods: dict[str, Restore] = baseline_methods(
            wanted, dataset, lambda: get_dataset(self.data, "train", **self.data_opt)
        )
        self.methods |= self.restorers
        self.dataset, self.stages = dataset, {"load": 0.0}

    def _measure(self, folder: Path, device: torch.device) -> Measure:
        """This process's share; loading, restoring, measuring and writing run side by side."""
        rank = distributed.rank()
        indices = range(rank, self.count, distributed.world_size())
        stream = restorations(
            self.dataset,
            self.families,
            self.methods,
            noise=self.noise,
            indices=indices,
            batch=self.batch,
            seed=self.seed,
            device=device,
            workers=self.workers,
        )
        total = len(indices) * len(self.families) * len(self.methods)
        bar = tqdm(total=total, unit="img", desc="restoring", disable=rank != 0)
        per_image = [name for name in self.names if name in PER_IMAGE]
        with (
            bar,
            PartialRecords(folder / f"{rank}.csv", per_image) as records,
            ImageWriter(folder / "images") as writer,
        ):
            measure = Measure(
                records,
                self.names,
                self.distances.detectors,
                device,
                self.pictures,
                writer if self.save_images else None,
            )
            with Stage[Restored](measure, device) as stage:
                waited = time.perf_counter()
                for restored in stream:
                    signals.heed_termination()
                    self.stages["load"] += time.perf_counter() - waited - restored.seconds
                    bar.set_postfix(family=restored.group.degradation, method=restored.method)
                    stage.put(restored)
                    bar.update(len(restored.group.indices))
                    waited = time.perf_counter()
        self.stages |= {"restore": sum(measure.restoring.values())} | measure.seconds
        self.stages["write"] = writer.seconds
        return measure

    def _finish(self, folder: Path, measure: Measure) -> None:
        """Bring the processes' shares together; the first writes the files and prints the table."""
        distances = self._distances(measure)
        shares = distributed.gather((measure.restoring, measure.pictures, self.stages))
        if distributed.rank():
            return
        order, per_image = list(self.families), measure.metrics
        parts = [folder / f"{rank}.csv" for rank in range(distributed.world_size())]
        summary, columns = Summary(per_image), [*COLUMNS, *per_image]
        rows = summary.over(merged(parts, order, per_image))
        write_per_image(folder, rows, columns)
        pictures = {key: images for share in shares for key, images in share[1].items()}
        grids = write_pictures(folder / "grid.png", pictures, order) if pictures else []
        values = self._values(summary, distances, [share[0] for share in shares])
        total = self.count * len(self.families) * len(self.methods)
        stages = {stage: sum(share[2][stage] for share in shares) / total for stage in self.stages}
        record = {"units": units(self.compiled), "values": values, "stages": stages}
        write_metrics(folder, record, self._settings())
        images = ["images"] if self.save_images else []
        names = [*images, *(grid.name for grid in grids), "per_image.csv", "metrics.json"]
        publish(folder, self.outdir, names)
        print(metrics_table(values, self.names, self.compiled))
        text = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in stages.items())
        print(f"ms an image on each process: {text}")
        for degradation, methods in values.items():
            for method, cell in methods.items():
                if any(math.isnan(cell[name]["mean"]) for name in self.names):
                    print(f"warning: {method} on {degradation} left images that are not finite")
        print(f"results: {self.outdir}")

    def _distances(self, measure: Measure) -> dict[tuple[str, str, str], float]:
        """Over all processes, on the first; NaN where a restoration was not finite."""
        values = {}
        for degradation in self.families:
            for method in self.methods:
                key = degradation, method
                failed = sum(distributed.gather(measure.failed.get(key, 0)))
                for metric, detector in self.distances.detectors.items():
                    own = measure.statistics.get((*key, metric), FeatureStatistics())
                    total = own.reduced(distributed.sum_tensor, detector.features)
                    if distributed.rank() == 0:  # roots of large matrices: once is enough
                        value = self.distances.value(metric, total) if not failed else math.nan
                        values[(*key, metric)] = value
        return values

    def _values(
        self,
        summary: Summary,
        distances: Mapping[tuple[str, str, str], float],
        restoring: list[dict[tuple[str, str], float]],
    ) -> dict[str, dict[str, dict[str, Any]]]:
        values = summary.result()
        for degradation, methods in values.items():
            for method, cell in methods.items():
                for metric in self.distances.detectors:
                    value = distances[degradation, method, metric]
                    cell[metric] = {"mean": value, "count": self.count}
                restorer = self.restorers.get(method)
                cell |= restorer.cost if restorer else dict.fromkeys(COSTS, 0)
                seconds = sum(share.get((degradation, method), 0.0) for share in restoring)
                cell["seconds_per_image"] = seconds / self.count
        return values

    def _network(self, net: Path, device: torch.device) -> Model:
        denoiser = load_frozen(net, device, DTYPES[self.precision], self.recompute)
        if self.compiled:
            compile_network(denoiser, device)
        return denoiser

    def _dataset(self, nets: Mapping[Path, Model]) -> ImageDataset:
        dataset = get_dataset(self.data, self.split, **self.data_opt)
        for net, denoiser in nets.items():
            self._check_fits(net, denoiser, dataset)
        return dataset

    def _check_fits(self, net: Path, denoiser: Model, dataset: ImageDataset) -> None:
        """Raise ValueError if a network is of other images or classes than the data set."""
        expected, found = denoiser.config.image_shape, dataset.image_shape
        if found != expected:
            options = inspect.signature(dataset_class(self.data)).parameters
            option = next((name for name in ("resolution", "size") if name in options), None)
            way_out = f": give --data-opt {option}={expected[1]}" if option else ""
            raise ValueError(
                f"{net} restores images {expected}, but {self.data} has {found}{way_out}"
            )
        known = denoiser.config.num_classes
        if known and dataset.num_classes > known:
            raise ValueError(
                f"{net} knows {known} classes, but {self.data} has {dataset.num_classes}"
            )
        if self.cfg is not None and known and not dataset.num_classes:
            raise ValueError(f"--cfg {self.cfg} guides by class, but {self.data} has no classes")

    def _restorers(
        self,
        nets: Mapping[Path, Model],
        solvers: Mapping[str, Solver],
        pairs: Sequence[tuple[Path, str]],
    ) -> dict[str, Restorer]:
        restorers: dict[str, Restorer] = {}
        for net, name in pairs:
            check_guidance(self.cfg, nets[net], net)
            title = _title(name, solvers[name], conditioning_of(nets[net].config))
            if title in restorers:  # another network of this kind
                title += f" of {net}"
            precision = DTYPES[self.precision]
            restorers[title] = Restorer(nets[net], solvers[name], precision, self.cfg)
        return restorers

    def _settings(self) -> dict[str, Any]:
        options = {name: getattr(self, name) for name in self.__dataclass_fields__}
        solvers = {name: asdict(r.solver) for name, r in self.restorers.items()}  # type: ignore[call-overload]
        return options | {
            "images": self.count,
            "processes": distributed.world_size(),
            "solvers": solvers,
            "detector_files": self.distances.provenance(),
        }


def _title(name: str, solver: Solver, conditioning: str) -> str:
    """What a method is called in tables and pictures."""
    if isinstance(solver, ZeroShot):
        return name
    trained = _NAMES[conditioning]
    return f"{trained} MMSE" if name == "mmse" else f"{trained} sample ({name})"
