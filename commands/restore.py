"""`restore.py`: restore one photo, several times over, and keep what was found."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from commands.cli import check_folder
from commands.loading import load_frozen
from commands.methods import (
    COSTS,
    check_conditioning,
    check_guidance,
    check_samplers,
    cost_of,
)
from commands.photo import Request, Task, pose
from commands.sheet import Restored, write_restored
from degradation import Draws, Problem, derive_seed
from metrics.evaluate import seconds_now
from metrics.pixel import consistency, psnr, to_uint8
from networks import Model
from networks.precision import DTYPES, resolve_precision
from networks.presets import conditioning_of
from networks.weights import read_summary
from runtime.errors import one_sentence_errors
from runtime.progress import progress
from runtime.tables import table
from samplers import (
    MMSE,
    CountingDenoiser,
    Guided,
    Solver,
    Tiled,
    check_operator,
    evaluations_of,
    make_solver,
)


@dataclass
class Restoration:
    """The options of `restore.py`, in the words of its help text."""

    request: Request
    net: Path
    out: Path
    samples: int
    sampler: str
    sampler_opt: Mapping[str, str]
    cfg: float | None
    precision: str
    recompute: bool
    batch: int
    cost: dict[str, dict[str, int]] = field(default_factory=dict, init=False)
    seconds: dict[str, float] = field(default_factory=dict, init=False)

    def run(self) -> None:
        """Restore the photo, write the folder and print a table."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        with one_sentence_errors():
            self.request.check()
            solver = make_solver(self.sampler, self.sampler_opt)
            self._check_out()
            self.precision = resolve_precision(self.precision, device)
            denoiser = load_frozen(self.net, device, DTYPES[self.precision], self.recompute)
            self._check_network(denoiser, solver)
            check_samplers(self.net, [self.sampler] if self.samples else [])
            task = pose(self.request, denoiser.config.image_shape, device)
            check_operator(solver, task.problem.degradation)
            evaluations = evaluations_of(solver, denoiser.config.image_shape)
        if task.measurement is None:
            task.notes.append("measurement.png is left out: what was measured is no picture")
        if _unconditional(denoiser) and self.samples < 2:
            task.notes.append("mmse.png is left out: it would be the mean of one sample")
        elif _unconditional(denoiser):
            task.notes.append("mmse.png is the mean of the samples: the network knows images alone")
        if self.samples < 2:
            task.notes.append("std.png is left out: it takes two --samples or more")
        task.notes += self._other_noise(denoiser, task)
        for note in task.notes:
            print(note)
        if self.samples:
            plan = {"tile": len(task.tiling), "sample": self.samples, "evaluation": evaluations}
            print(" × ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in plan.items()))
        with torch.no_grad():
            restored = self._restore(task, denoiser, solver, evaluations)
        metrics = self._metrics(task, restored)
        with one_sentence_errors():
            write_restored(self.out, task, restored, metrics, self._settings(task))
        print(_summary(metrics))
        print(f"restored: {self.out}")

    def _other_noise(self, denoiser: Model, task: Task) -> list[str]:
        """What to know of a network that was trained for one level of noise, and not for this."""
        summary, found = read_summary(self.net), task.problem.noise_level
        if summary.get("poisson_peak") or "noise_level" not in summary or _unconditional(denoiser):
            return []
        trained = summary["noise_level"]
        if levels := summary.get("noise_range"):
            trained = min(max(found.mean().item(), levels[0]), levels[1])  # the nearest
        if torch.allclose(found, torch.full_like(found, trained), rtol=0.1):
            return []
        return [
            f"{self.net} was trained with noise of {trained:g}, this photo has {found.mean():.2g}: "
            "expect less than with a network that was trained for it"
        ]

    def _check_out(self) -> None:
        check_folder(self.out)
        if self.out.is_dir() and any(self.out.iterdir()):
            raise ValueError(f"{self.out} is not empty: choose a new folder for --out")

    def _check_network(self, denoiser: Model, solver: Solver) -> None:
        config = denoiser.config
        check_conditioning(self.net, denoiser, {self.sampler: solver}, "the photo")
        if _unconditional(denoiser) and not self.samples:
            raise ValueError(
                f"{self.net} is an unconditional denoiser, which has no estimate of its own: give "
                "--samples of at least 1"
            )
        if config.image_shape[0] != 3:
            raise ValueError(f"{self.net} restores {config.image_shape[0]} channels, a photo has 3")
        label = self.request.class_label
        if label is not None and label >= config.num_classes:
            known = f"classes 0 to {config.num_classes - 1}" if config.num_classes else "no classes"
            raise ValueError(f"--class {label}: {self.net} was trained with {known}")
        check_guidance(self.cfg, denoiser, self.net)
        if self.cfg is not None and label is None:
            raise ValueError("--cfg guides towards a class: give its number by --class")

    # ---- restoring --------------------------------------------------------------------------

    def _restore(self, task: Task, denoiser: Model, solver: Solver, evaluations: int) -> Restored:
        seed, problem = self.request.seed, task.problem
        seeds = [derive_seed(seed, "restore", i) for i in range(self.samples)]
        samples = problem.pinv()[:0]
        if self.samples:
            several = problem.expand(self.samples)
            samples = self._run(
                "samples", solver, denoiser, task, several, seeds, evaluations, guide=True
            )
        if _unconditional(denoiser):
            mmse = samples.mean(0, keepdim=True) if self.samples > 1 else samples[:0]
        else:  # the estimate of a guided network would be of another distribution
            one = [derive_seed(seed, "restore")]
            mmse = self._run("mmse", MMSE(), denoiser, task, problem, one, 1, guide=False)
        pinv = problem.pinv()
        estimates = torch.cat((samples, mmse))
        final = problem.expand(len(estimates)).project(estimates) if task.exact else estimates
        samples, mmse = final[: self.samples], final[self.samples :]
        return Restored(samples, mmse, pinv, estimates if task.exact else None)

    def _run(
        self,
        name: str,
        solver: Solver,
        denoiser: Model,
        task: Task,
        problem: Problem,
        seeds: list[int],
        evaluations: int,
        guide: bool,
    ) -> Tensor:
        """Images `[B, C, H, W]`, one for each seed; keeps what it took under `name`."""
        device = problem.y.device
        draws = Draws(seeds, device)
        noise = draws.normal(problem.degradation.image_shape, "latent")
        dtype = DTYPES[self.precision]
        batches = math.ceil(len(task.tiling) * len(problem) / self.batch)
        start = seconds_now(device)
        with (
            progress(evaluations * batches, name, "batches") as bar,
            torch.autocast(device.type, dtype, enabled=dtype != torch.float32),
        ):
            network = CountingDenoiser(denoiser)
            guided = Guided(network, self.cfg) if guide and self.cfg is not None else network
            tiled = Tiled(
                guided, task.tiling, self.batch, task.blur, task.exact, progress=bar.update
            )
            counter = CountingDenoiser(tiled, len(problem))
            images = solver(counter, noise, problem, draws)
        self.seconds[name] = seconds_now(device) - start
        self.cost[name] = cost_of(counter, network)
        return images.float()

    # ---- what is kept -----------------------------------------------------------------------

    def _metrics(self, task: Task, restored: Restored) -> dict[str, Any]:
        """What is known of every picture, by its name, and what it took."""
        names = [f"sample-{i + 1}" for i in range(self.samples)]
        names += ["mmse", "pinv"] if len(restored.mmse) else ["pinv"]
        images = torch.cat((restored.samples, restored.mmse, restored.pinv))
        pictures: dict[str, dict[str, float]] = {name: {} for name in names}
        problem = task.problem.expand(len(images))
        columns = {"consistency": consistency(problem.degradation, images, problem.y)}
        if task.truth is not None:
            truth = task.truth[None].to(images.device).expand(len(images), -1, -1, -1)
            columns["psnr"] = psnr(to_uint8(images), truth)
        if restored.before is not None:
            others = problem[:-1]  # H†y is not projected
            columns["consistency_before_projection"] = consistency(
                others.degradation, restored.before, others.y
            )
        for column, values in columns.items():
            for name, value in zip(names, values.tolist(), strict=False):
                pictures[name][column] = value
        return {
            "pictures": pictures,
            "noise_level": task.problem.noise_level.mean().item(),
            "units": {"psnr": "dB, of uint8 images", "consistency": "mean of (y − Hx)²"},
            "deviation_white_at": restored.white,
            **{cost: {name: counts[cost] for name, counts in self.cost.items()} for cost in COSTS},
            "seconds": self.seconds,
        }

    def _settings(self, task: Task) -> dict[str, Any]:
        settings = asdict(self)
        request = settings.pop("request")
        for key in ("cost", "seconds"):
            del settings[key]
        operator = task.problem.degradation
        return request | settings | {
            "operator": type(operator).__name__,
            "image_shape": operator.image_shape,
            "measurements": int(operator.rows.sum()),
            "tile": task.tiling.side,
            "tiles": len(task.tiling),
            "notes": task.notes,
        }  # fmt: skip


def _unconditional(denoiser: Model) -> bool:
    return conditioning_of(denoiser.config) == "unconditional"


def _summary(metrics: Mapping[str, Any]) -> str:
    rows = [
        [
            name,
            values.get("psnr"),
            values.get("consistency_before_projection"),
            values["consistency"],
        ]
        for name, values in metrics["pictures"].items()
    ]
    level = metrics["noise_level"]
    expected = f"mean (y − Hx)², of the truth {level**2:.2g}" if level else "mean (y − Hx)²"
    return table(["picture", "PSNR (dB)", "before the projection", expected], rows)
