"""`calculate_metrics.py gen`: build everything an evaluation needs from its options, and run it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from commands.cli import check_folder
from datautils import ImageDataset, get_dataset
from degradation import Draws, GaussianNoise, Problem, get_family
from metrics import baselines
from metrics.evaluate import METRICS, Restore, Results, evaluate
from metrics.pixel import to_float
from metrics.report import write_report
from networks import Denoiser, GaussianPrior, load_weights
from networks.presets import conditioning_of
from samplers import CountingDenoiser, Solver, make_solver
from training import distributed
from training.data import DTYPES

_NAMES = {"invfusion": "InvFusion", "blind": "blind", "unconditional": "unconditional"}
_BASELINES = ("pinv", "fill", "smooth", "gaussian")
_GAUSSIAN_CROPS = 16_000
_GAUSSIAN_LIMIT = 4096  # values of an image: the covariance is their square


@dataclass
class Restorer:
    """A trained denoiser driven by a solver; remembers the evaluations an image takes."""

    denoiser: Denoiser
    solver: Solver
    precision: torch.dtype
    evaluations: int = 0

    def __call__(self, problem: Problem, noise: Tensor, draws: Draws) -> Tensor:
        counter = CountingDenoiser(self.denoiser)
        enabled = self.precision != torch.float32
        with torch.autocast(noise.device.type, self.precision, enabled=enabled):
            restored = self.solver(counter, noise, problem, draws)
        self.evaluations = counter.calls
        return restored


@dataclass
class Generation:
    """The options of `gen`, in the words of its help text."""

    net: Path
    data: str
    data_opt: dict[str, Any]
    degradations: tuple[str, ...]
    outdir: Path
    images: int | None
    batch: int
    metrics: str
    samplers: tuple[str, ...]
    sampler_opt: dict[str, str]
    baselines: str
    noise_level: float
    precision: str
    pictures: int
    seed: int

    def run(self) -> None:
        """Restore, measure, write the result files and print the table."""
        with distributed.process_group() as device:
            with distributed.one_sentence_errors():
                families = {name.removeprefix("degradation."): get_family(name)
                            for name in self.degradations}  # fmt: skip
                metrics = _chosen("metric", self.metrics, METRICS)
                chosen = _chosen("baseline", self.baselines, _BASELINES)
                solvers = self._solvers()
                denoiser = load_weights(self.net, device)
                noise = GaussianNoise(self.noise_level)
                check_folder(self.outdir)
                dataset = self._dataset(denoiser)
                for family in families.values():
                    family.check(dataset.image_shape)
                count = self._count(dataset)
                restorers = self._restorers(denoiser, solvers)
                methods = self._baselines(chosen, dataset) | restorers
            results = evaluate(
                dataset,
                families,
                methods,
                noise=noise,
                metrics=metrics,
                indices=range(distributed.rank(), count, distributed.world_size()),
                batch=self.batch,
                seed=self.seed,
                device=device,
                pictures=self.pictures,
                progress=distributed.rank() == 0,
            )
            merged = Results()
            for part in distributed.gather(results):
                merged.merge(part)
            if distributed.rank() == 0:
                counts = {
                    name: m.evaluations for name, m in methods.items() if isinstance(m, Restorer)
                }
                print(write_report(self.outdir, merged, metrics, self._settings(count), counts))
                print(f"results: {self.outdir}")

    def _solvers(self) -> dict[str, Solver]:
        options: dict[str, dict[str, str]] = {name: {} for name in self.samplers}
        for key, value in self.sampler_opt.items():
            name, _, option = key.rpartition(".")
            if not name and len(self.samplers) == 1:
                name = self.samplers[0]
            if name not in options:
                known = ", ".join(f"{sampler}.{option}" for sampler in self.samplers)
                raise ValueError(f"--sampler-opt {key} must name the sampler: {known}")
            options[name][option] = value
        return {name: make_solver(name, chosen) for name, chosen in options.items()}

    def _dataset(self, denoiser: Denoiser) -> ImageDataset:
        dataset = get_dataset(self.data, "heldout", **self.data_opt)
        expected, found = denoiser.config.image_shape, dataset.image_shape
        if found != expected:
            raise ValueError(f"{self.net} restores images {expected}, but {self.data} has {found}")
        return dataset

    def _baselines(self, chosen: list[str], dataset: ImageDataset) -> dict[str, Restore]:
        methods: dict[str, Restore] = {}
        if "pinv" in chosen:
            methods["H†y"] = lambda problem, noise, draws: baselines.pinv(problem)
        if "fill" in chosen:
            methods["constant fill"] = lambda problem, noise, draws: baselines.constant_fill(
                problem
            )
        if "smooth" in chosen:
            methods["smooth prior"] = lambda problem, noise, draws: baselines.smooth(problem)
        if "gaussian" in chosen:
            prior = self._gaussian(dataset)
            methods["Gaussian MMSE"] = lambda problem, noise, draws: prior.posterior_mean(problem)
        return methods

    def _gaussian(self, dataset: ImageDataset) -> GaussianPrior:
        training = get_dataset(self.data, "train", **self.data_opt)
        if torch.Size(dataset.image_shape).numel() > _GAUSSIAN_LIMIT:
            raise ValueError(
                "the gaussian baseline needs the full covariance of an image: "
                f"{dataset.image_shape} is too large, leave it out of --baselines"
            )
        count = min(_GAUSSIAN_CROPS, len(training))
        bar = tqdm(range(count), "crops for the Gaussian", disable=distributed.rank() != 0)
        crops = [training[i][0] for i in bar]
        return GaussianPrior.fit(to_float(torch.stack(crops)))

    def _restorers(self, denoiser: Denoiser, solvers: Mapping[str, Solver]) -> dict[str, Restore]:
        kind = conditioning_of(denoiser.config)
        if kind == "unconditional":
            raise ValueError(
                f"{self.net} is an unconditional denoiser: these samplers would ignore y"
            )
        titles = {"mmse": f"{_NAMES[kind]} MMSE"}
        return {
            titles.get(name, f"{_NAMES[kind]} sample ({name})"): Restorer(
                denoiser, solver, DTYPES[self.precision]
            )
            for name, solver in solvers.items()
        }

    def _count(self, dataset: ImageDataset) -> int:
        available = len(dataset)
        if self.images is not None and self.images > available:
            raise ValueError(f"--images {self.images}: {self.data} has only {available}")
        return self.images or available

    def _settings(self, count: int) -> dict[str, Any]:
        return asdict(self) | {"images": count, "processes": distributed.world_size()}


def _chosen(kind: str, text: str, known: Mapping | tuple[str, ...]) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown {kind} '{name}'; known are {', '.join(known)}")
    return names
