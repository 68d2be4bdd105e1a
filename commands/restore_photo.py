"""`restore.py`: restore one photo, several times over, and keep what was found."""

import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from commands import methods
from commands.checks import chosen
from commands.options import PHOTO_OPT, PHOTO_SAMPLER, RestoreOptions
from commands.photo import Task, pose
from commands.restoration import Restoration, restored
from commands.results import check_new, working_folder
from commands.sheet import Restored, write_restored
from metrics.pixel import consistency, psnr, to_uint8
from metrics.report import title_of
from networks import Model
from networks.precision import resolve_precision
from networks.presets import conditioning_of
from runtime import signals
from runtime.errors import one_sentence_errors
from runtime.tables import table
from samplers import Heun, check_operator, evaluations_of

_FEW = 16  # steps of Heun's, below which samples have too much detail (docs/samplers.md)
_NEW = ("restore.json", "*")  # the folder holds nothing yet
SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints" / "photos64-invfusion-eps.safetensors"


def restore(options: RestoreOptions) -> None:
    """Restore the photo, write the folder and print a table."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with one_sentence_errors():
        if options.components:  # which such a network has in place of samples
            if options.sampler:
                raise ValueError("--components come in place of samples: leave out --sampler")
            options = replace(options, samples=0, sampler="nppc", sampler_opt={})
        restoration = _build(options, device)
    task = restoration.task
    for note in task.notes:
        print(note)
    if options.samples:
        plan = {
            "tile": len(task.tiling),
            "sample": options.samples,
            "evaluation": restoration.evaluations,
        }
        print(" × ".join(f"{n} {what}{'s' * (n > 1)}" for what, n in plan.items()), flush=True)
    with signals.orderly_end(), working_folder(options.outdir, _NEW) as folder:
        with torch.no_grad():
            found, ending = restored(restoration)
        metrics = _metrics(restoration, found)
        write_restored(folder, task, found, metrics, _settings(restoration))
    print(_summary(metrics))
    failed = _warn(restoration, metrics)
    print(f"restored: {options.outdir}" + (f" ({task.notes[-1]})" if ending else ""))
    if ending or failed:
        sys.exit(ending or 1)


def _build(options: RestoreOptions, device: torch.device) -> Restoration:
    """Everything that an option can get wrong comes first. Raises ValueError."""
    net = options.net or SHIPPED
    if options.net is None and not net.is_file():
        raise ValueError(
            f"{net} is missing: get it back by `git checkout -- checkpoints`, or name other "
            "weights by --net"
        )
    name, sampler_opt = options.sampler, options.sampler_opt
    if name is None:
        name, sampler_opt = PHOTO_SAMPLER, PHOTO_OPT | sampler_opt
    sampler = methods.samplers_of([name], sampler_opt, options.sampler_preset)[name]
    wanted = chosen("baseline", options.baselines, ["aseqdip"])
    baselines = methods.aseqdip_of(wanted, options.baseline_opt)
    check_new(options.outdir, _NEW)
    precision = resolve_precision(options.precision, device)
    denoiser = methods.load_frozen(net, device, precision, options.recompute)
    _check_network(options, net, denoiser)
    methods.check_conditioning(net, denoiser, name, sampler, "the photo")
    if options.samples:
        methods.check_objective(net, denoiser, name, sampler)
    task = pose(options, denoiser.config.image_shape, device)
    if options.components and len(task.tiling) > 1:
        height, width = task.tiling.side
        raise ValueError(
            f"--components are of {height}×{width} pixels, and {options.image} is larger: use "
            "--fit resize, or crop it"
        )
    check_operator(sampler, task.problem.degradation)
    evaluations = evaluations_of(sampler, denoiser.config.image_shape)
    task.notes += _notes(options, net, denoiser, task)
    if isinstance(sampler, Heun) and sampler.num_steps < _FEW:
        task.notes.append(
            f"heun with num_steps={sampler.num_steps} leaves noise in its samples: take {_FEW} or "
            "more, or --sampler dpm"
        )
    return Restoration(options, net, denoiser, sampler, task, evaluations, precision, baselines)


def _check_network(options: RestoreOptions, net: Path, denoiser: Model) -> None:
    """Raise ValueError if the network does not fit what the options ask for."""
    config = denoiser.config
    known = getattr(config, "out_mult", 1) - 1
    if options.components > known:
        trained = f"gives {known}" if known else "gives none: it was not trained for nppc"
        raise ValueError(f"--components {options.components}: {net} {trained}")
    if conditioning_of(config) == "unconditional" and not options.samples:
        raise ValueError(
            f"{net} is an unconditional denoiser, which has no estimate of its own: give --samples "
            "of at least 1"
        )
    if config.image_shape[0] != 3:
        raise ValueError(f"{net} restores {config.image_shape[0]} channels, a photo has 3")
    label = options.class_label
    if label is not None and label >= config.num_classes:
        there = f"classes 0 to {config.num_classes - 1}" if config.num_classes else "no classes"
        raise ValueError(f"--class {label}: {net} was trained with {there}")
    methods.check_guidance(options.cfg, denoiser, net)
    if options.cfg is not None and label is None:
        raise ValueError("--cfg guides towards a class: give its number by --class")


def _notes(options: RestoreOptions, net: Path, denoiser: Model, task: Task) -> list[str]:
    """What the user should know of what is left out, and of the noise."""
    notes = []
    if task.measurement is None:
        notes.append("measurement.png is left out: what was measured is no picture")
    unconditional = conditioning_of(denoiser.config) == "unconditional"
    if unconditional and options.samples < 2:
        notes.append("mmse.png is left out: it would be the mean of one sample")
    elif unconditional:
        notes.append("mmse.png is the mean of the samples: the network knows images alone")
    if options.samples == 1:
        notes.append("std.png is left out: it takes two --samples or more")
    return notes + methods.other_noise(net, denoiser, task.problem.levels.mean().item())


# ---- what is kept


def _metrics(restoration: Restoration, restored: Restored) -> dict[str, Any]:
    """What is known of every picture, by its name, and what it took."""
    task, cost, named = restoration.task, restoration.cost, restored.images()
    images = torch.stack([*named.values()])
    problem = task.problem.expand(len(images))
    columns = {"consistency": consistency(problem.degradation, images, problem.y)}
    failed = ~(columns["consistency"] <= _limit(task))  # or not a number
    failed[-1] = False  # H†y
    if restoration.unconditional:  # its "mmse" is their mean
        count = len(restored.samples)
        failed[count : count + len(restored.mmse)] |= failed[:count].any()
    if task.truth is not None:
        truth = task.truth[None].to(images.device).expand(len(images), -1, -1, -1)
        columns["psnr"] = psnr(to_uint8(images), truth).masked_fill(failed, math.nan)
    if restored.before is not None:
        others = problem[: len(restored.before)]  # the rest is not projected
        columns["consistency_before_projection"] = consistency(
            others.degradation, restored.before, others.y
        )
    pictures: dict[str, dict[str, float]] = {name: {} for name in named}
    for column, values in columns.items():
        for name, value in zip(named, values.tolist(), strict=False):
            pictures[name][column] = value
    found = restored.components
    costs = {w: {name: counts[w] for name, counts in cost.counts.items()} for w in methods.COSTS}
    return {
        "pictures": pictures,
        "standard_deviations": None if found is None else found.deviations[0],
        "noise_level": task.problem.levels.mean().item(),
        "units": {
            "psnr": "dB, of uint8 images",
            "consistency": "mean of (y − Hx)²",
            "standard_deviations": "of images in [-1, 1], along each component",
        },
        "deviation_white_at": restored.deviation and restored.deviation[1],
        **costs,
        "seconds": cost.seconds,
    }


def _limit(task: Task) -> float:
    """More mean (y − Hx)² than images in [-1, 1] and the noise can explain."""
    gain = max(1.0, task.problem.degradation.largest_gain.max().item())
    return 4 * gain**2 + 4 * task.problem.levels.square().max().item()


def _warn(restoration: Restoration, metrics: Mapping[str, Any]) -> bool:
    """Name the samples that are not finite or far from y. Returns whether all of them are."""
    limit, sampler = _limit(restoration.task), type(restoration.sampler).__name__
    samples = [name for name in metrics["pictures"] if name.startswith("sample-")]
    found = {name: metrics["pictures"][name]["consistency"] for name in samples}
    failed = {name: value for name, value in found.items() if not value <= limit}
    for name, value in failed.items():
        print(f"warning: {name} of {sampler} failed, its consistency is {value:.2g}")
    return len(failed) == len(samples) > 0


def _settings(restoration: Restoration) -> dict[str, Any]:
    task, operator = restoration.task, restoration.task.problem.degradation
    return asdict(restoration.options) | {
        "net": restoration.net,
        "precision": restoration.precision,
        "sampler": type(restoration.sampler).__name__,
        "sampler_options": asdict(restoration.sampler),  # type: ignore[call-overload]
        "operator": type(operator).__name__,
        "image_shape": operator.image_shape,
        "measurements": int(operator.rows.sum()),
        "tile": task.tiling.side,
        "tiles": len(task.tiling),
        "notes": task.notes,
    }


def _summary(metrics: Mapping[str, Any]) -> str:
    columns = "psnr", "consistency_before_projection", "consistency"
    rows = [[name, *map(values.get, columns)] for name, values in metrics["pictures"].items()]
    level = metrics["noise_level"]
    title = f"consistency, of the truth {level**2:.2g}" if level else "consistency"
    headers = ["picture", title_of("psnr"), "consistency before projection", title]
    return table(headers, rows)
