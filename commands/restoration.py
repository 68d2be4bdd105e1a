"""The pictures of one photo as they come: the MMSE estimate, then sample after sample."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from commands.methods import COSTS, Restorer, objective_of
from commands.options import RestoreOptions
from commands.photo import Task
from commands.sheet import Restored, write_picture
from degradation import Draws, derive_seed
from metrics.evaluate import Restore
from metrics.pixel import to_uint8
from networks import Model
from networks.presets import conditioning_of
from runtime.progress import in_words, progress, seconds_now
from samplers import NPPC, Components, Sampler, Tiled, one_step
from samplers.base import Denoiser, whole

_BACKWARD = 2  # evaluations that a backward pass takes the time of
_LONG = 20.0  # seconds of sampling that are announced


@dataclass
class Cost:
    """What samples and estimate took, by their names."""

    counts: dict[str, dict[str, float]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    images: dict[str, int] = field(default_factory=dict)

    def add(self, name: str, counts: Mapping[str, float], seconds: float, images: int) -> None:
        """Add a run for some more images: evaluations are those of an image, calls those of all."""
        found = self.counts.setdefault(name, dict.fromkeys(COSTS, 0))
        before = self.images.get(name, 0)
        self.images[name] = before + images
        for what, count in counts.items():
            total = found[what] + count
            if "network" not in what:
                total = whole((found[what] * before + count * images) / (before + images))
            found[what] = total
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds


@dataclass(frozen=True)
class Restoration:
    """How a photo is restored, once everything about it is checked."""

    options: RestoreOptions
    net: Path
    denoiser: Model
    sampler: Sampler
    task: Task
    evaluations: int  # that a sample takes
    precision: str
    baselines: Mapping[str, Restore]
    cost: Cost = field(default_factory=Cost)

    @property
    def unconditional(self) -> bool:
        """Whether the network knows images alone, and has no estimate of its own."""
        return conditioning_of(self.denoiser.config) == "unconditional"

    @property
    def seed(self) -> int:
        """Of all that is not a sample."""
        return derive_seed(self.options.seed, "restore")

    def batches(self, samples: int) -> int:
        """Calls of the network in one evaluation of so many images."""
        return math.ceil(len(self.task.tiling) * samples / self.options.batch)


def restored(restoration: Restoration) -> tuple[Restored, int | None]:
    """All pictures, and the exit code that a signal asked for: then samples may be missing.

    Estimate and samples are written as soon as they are there.
    """
    options, task = restoration.options, restoration.task
    problem = task.problem
    samples, mmse, components = problem.pinv()[:0], problem.pinv()[:0], None
    if options.components:
        components = _components(restoration)
        mmse = components.mean
    elif not restoration.unconditional:
        with progress(restoration.batches(1), "mmse", "batches") as bar:
            mmse = _run(restoration, "mmse", [restoration.seed], bar)
        write_picture(options.outdir / "mmse.png", to_uint8(_final(task, mmse)[0]))
        _announce(restoration)
    ending, beside = None, {}
    try:
        for part in _samples(restoration):
            first = len(samples) + 1
            samples = torch.cat((samples, part))
            for i, image in enumerate(_final(task, part), first):
                write_picture(options.outdir / f"sample-{i}.png", to_uint8(image))
        beside = _baselines(restoration)
    except SystemExit as stop:  # Ctrl-C or SIGTERM: what is finished is kept
        if not len(samples) + len(mmse):
            raise
        ending = int(stop.code or 0)
        task.notes.append(f"stopped after {len(samples)} of {options.samples} samples")
    if restoration.unconditional and len(samples) > 1:
        mmse = samples.mean(0, keepdim=True)
    estimates = torch.cat((samples, mmse))
    final, before = _final(task, estimates), estimates if task.exact else None
    count = len(samples)
    found = Restored(final[:count], final[count:], problem.pinv(), before, beside, components)
    return found, ending


def _samples(restoration: Restoration) -> Iterator[Tensor]:
    """The samples, as many at once as a batch of the network holds; each from its own seed."""
    options = restoration.options
    seeds = [derive_seed(options.seed, "restore", i) for i in range(options.samples)]
    step = max(1, options.batch // len(restoration.task.tiling))
    parts = [seeds[i : i + step] for i in range(0, len(seeds), step)]
    total = sum(restoration.batches(len(part)) for part in parts) * restoration.evaluations
    with progress(total, "samples", "batches", silent=not parts) as bar:
        for part in parts:
            yield _run(restoration, "samples", part, bar)


def _final(task: Task, images: Tensor) -> Tensor:
    """Grey if the photo is, and projected onto Hx = y if y is exact."""
    if task.grey:
        images = images.mean(1, keepdim=True).expand_as(images)
    return task.problem.expand(len(images)).project(images) if task.exact else images


def _announce(restoration: Restoration) -> None:
    """Say how long the samples will take, by the seconds of one estimate, if that is long."""
    options = restoration.options
    passes = 1 + _BACKWARD * ("gradient" in restoration.sampler.needs)
    passes *= 1 if options.cfg is None else 2
    seconds = restoration.cost.seconds["mmse"] * passes * restoration.evaluations * options.samples
    if seconds > _LONG:
        print(f"samples: about {in_words(seconds)}; --samples 0 leaves them out", flush=True)


def _baselines(restoration: Restoration) -> dict[str, Tensor]:
    problem = restoration.task.problem
    draws = Draws([restoration.seed], problem.y.device)
    beside = {}
    for title, method in restoration.baselines.items():
        start = seconds_now(problem.y.device)
        beside[title] = method(problem, problem.pinv()[:0], draws)
        restoration.cost.seconds[title.lower()] = seconds_now(problem.y.device) - start
    return beside


def _components(restoration: Restoration) -> Components:
    """The "mmse" estimate and the components that were asked for, in one evaluation."""
    count, problem = restoration.options.components, restoration.task.problem
    draws = Draws([restoration.seed], problem.y.device)
    noise = draws.normal(problem.degradation.image_shape, "latent")
    restorer = Restorer(restoration.denoiser, NPPC(), restoration.precision)
    start = seconds_now(noise.device)
    mean, components, deviations = restorer.components(problem, noise)
    one = {"evaluations": 1, "network_calls": 1}
    restoration.cost.add("mmse", one, seconds_now(noise.device) - start, 1)
    return Components(mean, components[:, :count], deviations[:, :count])


def _run(restoration: Restoration, name: str, seeds: list[int], bar: tqdm) -> Tensor:
    """Images of the "samples" or of "mmse", `[B, C, H, W]`, one for each seed."""
    options, task = restoration.options, restoration.task
    problem, device = task.problem.expand(len(seeds)), task.problem.y.device
    draws = Draws(seeds, device)
    noise = draws.normal(problem.degradation.image_shape, "latent")
    sampler, guidance = restoration.sampler, options.cfg
    if name == "mmse":  # the estimate of a guided network would be of another distribution
        sampler, guidance = one_step(objective_of(restoration.denoiser)), None

    def tiled(denoiser: Denoiser) -> Denoiser:
        return Tiled(denoiser, task.tiling, options.batch, task.blur, task.exact, bar.update)

    restorer = Restorer(restoration.denoiser, sampler, restoration.precision, guidance, tiled)
    start = seconds_now(device)
    found = restorer(problem, noise, draws).float()
    restoration.cost.add(name, restorer.cost, seconds_now(device) - start, len(seeds))
    return found
