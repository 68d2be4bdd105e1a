"""`calculate_metrics.py gen` without a degradation: draw images from a network alone.

This is an evaluation whose one family measures nothing; its images are grey and have classes.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from commands import methods
from commands.checks import chosen
from commands.evaluation import Evaluation, gathered, run, settings_of, stages_of
from commands.options import UNUSED, GenOptions
from commands.results import IMAGES, check_new, results_of
from degradation import Draws, GaussianNoise, NoDegradation, derive_seed
from metrics.detectors import DISTANCES
from metrics.images import image_name, write_grid
from metrics.measure import Measure
from metrics.report import metrics_rows, units
from metrics.results import write_metrics
from metrics.sampled import SampleRecords
from networks.precision import resolve_precision
from runtime import distributed
from runtime.files import writing
from runtime.tables import table
from samplers import MMSE, InDI

_METRICS = tuple(metric for metric, found in DISTANCES.items() if not found.projected)
_IMAGES, _PICTURES = 50_000, 64
_COLUMNS = 8  # of grid.png
_FROM_Y = ("mmse", "indi", "nppc")  # objectives of networks that start from y


@dataclass
class Blank:
    """Grey images with the classes that are to be drawn; -1 for a network without classes."""

    image_shape: tuple[int, int, int]
    num_classes: int
    labels: Sequence[int]

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full(self.image_shape, 128, dtype=torch.uint8), self.labels[index]


def _labels(options: GenOptions, count: int, known: int) -> list[int]:
    """Of so many images: the classes asked for take turns, else each image has any of the known
    ones, uniformly. -1 if none are known."""
    if not known:
        return [-1] * count
    if options.classes:
        return [options.classes[i % len(options.classes)] for i in range(count)]
    draws = Draws([derive_seed(options.seed, "image", i) for i in range(count)])
    return draws.integers(0, known - 1, (), "class").tolist()


def draw(options: GenOptions) -> None:
    """Draw, measure, write the result files and print the table."""
    run(options, build, _finish)


def build(options: GenOptions, device: torch.device) -> Evaluation:
    """Everything that an option can get wrong comes first. Raises ValueError."""
    options.check_unconditional()
    names = chosen("metric", options.metrics or "", _METRICS)
    (name,) = options.samplers or ("heun",)
    sampler = methods.samplers_of([name], options.sampler_opt, options.sampler_preset)[name]
    precision = resolve_precision(options.precision, device)
    (net,) = options.nets
    denoiser = methods.load_frozen(net, device, precision, options.recompute, options.compiled)
    objective = methods.objective_of(denoiser)
    if isinstance(sampler, MMSE | InDI) or objective in _FROM_Y:
        raise ValueError(
            f"{net} (objective {objective}) by --sampler {name} estimates images and draws none: "
            "give weights of the objective denoising, and a sampler such as heun or dpm"
        )
    methods.check_objective(net, denoiser, name, sampler)
    classes = denoiser.config.num_classes
    if options.classes and not classes:
        raise ValueError(f"--class: {net} was trained without classes")
    for label in options.classes:
        if not 0 <= label < classes:
            raise ValueError(f"--class {label} must lie between 0 and {classes - 1}")
    methods.check_guidance(options.cfg, denoiser, net)
    check_new(options.outdir, results_of(options))
    count, shape = options.images or _IMAGES, denoiser.config.image_shape
    distances = methods.distances_of(names, options, device, count, shape)
    restorers = {"": methods.Restorer(denoiser, sampler, precision, options.cfg)}
    if distributed.rank() == 0:
        print(f"no --degradation: drawing {count} images from the network alone")
    return Evaluation(
        options=options,
        device=device,
        families={"": NoDegradation()},
        noise=GaussianNoise(),
        dataset=Blank(shape, classes, _labels(options, count, classes)),
        count=count,
        names=names,
        distances=distances,
        methods={**restorers},
        restorers=restorers,
        precision=precision,
        samples={},
        pictures=_PICTURES if options.pictures is None else options.pictures,
    )


def _finish(drawing: Evaluation, folder: Path, measure: Measure, samples: SampleRecords) -> None:
    """Bring the processes' shares together; the first writes the files and prints the table."""
    options = drawing.options
    shares, found = gathered(drawing, measure)
    if distributed.rank():
        return
    shown = {i: images[""] for share in shares for (_, i), images in share.pictures.items()}
    if shown:
        images: list[Tensor | None] = [shown[index] for index in sorted(shown)]
        images += [None] * (-len(images) % _COLUMNS)
        rows = [images[i : i + _COLUMNS] for i in range(0, len(images), _COLUMNS)]
        write_grid(folder / "grid.png", rows, [""] * _COLUMNS)
    if options.save_images and drawing.dataset.num_classes:
        _write_labels(folder / IMAGES / "dataset.json", drawing)
    sampler = drawing.restorers[""].sampler
    named = {"none": {sampler.title or (options.samplers or ("heun",))[0]: found["", ""]}}
    record = {
        "units": units(options.compiled),
        "values": named,
        "not_finite": sum(share.failed["", ""] for share in shares),
        "stages": stages_of(drawing, shares),
    }
    settings = {k: v for k, v in settings_of(drawing).items() if k not in UNUSED}
    settings["sampler"] = settings["samplers"][""]
    settings |= {"pictures": drawing.pictures, "samplers": options.samplers}
    write_metrics(folder, record, settings)
    print(table(*metrics_rows(named, drawing.names, options.compiled)))


def _write_labels(path: Path, drawing: Evaluation) -> None:
    """EDM's dataset.json, so that the images can be trained on or measured by class."""
    assert isinstance(drawing.dataset, Blank)
    labels = enumerate(drawing.dataset.labels)
    lines = ",\n".join(json.dumps([image_name(i), label]) for i, label in labels)
    with writing(path):
        path.write_text(f'{{"labels": [{lines}]}}\n')
