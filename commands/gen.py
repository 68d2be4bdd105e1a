"""`calculate_metrics.py gen` with a degradation: restore a data set and measure the result."""

import inspect
import math
import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from commands import methods
from commands.calibrate import calibrated, sample_counts
from commands.checks import check_once, checked_count, chosen
from commands.evaluation import Evaluation, gathered, run, settings_of, stages_of
from commands.methods import Restorer
from commands.operators import families_of
from commands.options import GenOptions
from commands.results import check_new, results_of
from datautils import ImageDataset, get_dataset
from datautils.identity import Identity, classes_of, identity
from degradation import check_noise, make_noise
from metrics.evaluate import Restore
from metrics.examples import write_examples
from metrics.images import enhanced
from metrics.measure import METRICS, Measure, check_images
from metrics.report import metrics_rows, units, write_pictures
from metrics.results import summarised, write_merged, write_metrics
from metrics.sampled import SampleRecords, calibration_table
from networks import Model, NetworkConfig, read_summary
from networks.analytic import PriorConfig
from networks.precision import resolve_precision
from networks.presets import conditioning_of
from runtime import distributed
from runtime.records import record
from runtime.tables import table
from samplers import NPPC, InDI, Sampler
from zero_shot import ZeroShot

_NAMES = {"invfusion": "InvFusion", "blind": "Palette"}
_METRICS = "psnr,ssim,consistency"
_SAMPLERS = ("heun", "mmse")
_PICTURES = 3

Values = dict[str, dict[str, dict[str, Any]]]  # degradation, method, metric
Pictures = dict[tuple[str, int], dict[str, Tensor]]  # degradation and image, title


def evaluate(options: GenOptions, further: Mapping[str, Restore] = MappingProxyType({})) -> Values:
    """Restore, measure, write the result files and print the table; the first process has the
    values. further: methods besides those of the options, by title."""
    return run(options, partial(build, further=further), _finish)


def build(options: GenOptions, device: torch.device, further: Mapping[str, Restore]) -> Evaluation:
    """Everything that an option can get wrong comes first. Raises ValueError."""
    if options.classes:
        raise ValueError("--class draws images of a class: leave out --degradation")
    families = families_of(options.degradations, options.degradation_opt)
    names = chosen("metric", _METRICS if options.metrics is None else options.metrics, METRICS)
    wanted = chosen("baseline", options.baselines, methods.BASELINES)
    if not (options.nets or wanted or further):
        raise ValueError("there is nothing to measure: give a --net or --baselines")
    if options.samplers and not options.nets:
        raise ValueError(f"--sampler {options.samplers[0]} needs a --net")
    noise = make_noise(options.noise_level, options.poisson_peak)
    if (options.noise_level or options.poisson_peak) and {"cfid", "cfd"} & set(names):
        raise ValueError(
            "cfid and cfd project onto Hx = y, which is defined without noise only: "
            f"leave them out of --metrics {options.metrics}, or the noise out"
        )
    names_of_samplers = options.samplers or _SAMPLERS * bool(options.nets)
    samplers = methods.samplers_of(names_of_samplers, options.sampler_opt, options.sampler_preset)
    precision = resolve_precision(options.precision, device)
    check_once("--net", [str(net) for net in options.nets])
    nets = {
        net: methods.load_frozen(net, device, precision, options.recompute, options.compiled)
        for net in options.nets
    }
    restorers = _restorers(options, precision, nets, samplers)
    check_new(options.outdir, results_of(options))
    dataset = get_dataset(options.data, options.split, **options.data_opt)
    if getattr(dataset, "split", options.split) != options.split and distributed.rank() == 0:
        print(
            f"measuring all of {options.data}. `train.py --data {options.data}` holds out the last "
            "twentieth, at most 512 images: give --data-opt heldout=N to measure the last N",
            file=sys.stderr,
        )
    for net, denoiser in nets.items():
        _check_fits(options, net, denoiser, dataset)
        _warn_of_classes(options, net, denoiser, dataset)
        if not options.poisson_peak and distributed.rank() == 0:
            for note in methods.other_noise(net, denoiser, options.noise_level):
                print(f"warning: {note}", file=sys.stderr)
    check_images(names, device, dataset.image_shape)
    for family in families.values():
        family.check(dataset.image_shape)
        check_noise(noise, family, dataset.image_shape)
    methods.check_operators(samplers, families, dataset.image_shape)
    count = checked_count(options.images, dataset, options.data)
    shape, own = dataset.image_shape, identity(dataset)
    distances = methods.distances_of(names, options, device, count, shape, own)
    named = methods.baseline_methods(wanted, options, dataset) | restorers
    if taken := named.keys() & further:
        raise ValueError(f"the name {min(taken)} is taken: choose another")
    return Evaluation(
        options, device, families, noise, dataset, count, names, distances, {**further, **named},
        restorers, precision, sample_counts(restorers, options.samples),
        _PICTURES if options.pictures is None else options.pictures,
    )  # fmt: skip


def _finish(
    evaluation: Evaluation, folder: Path, measure: Measure, samples: SampleRecords
) -> Values:
    """Bring the processes' shares together; the first writes the files and prints the table."""
    options = evaluation.options
    shares, found = gathered(evaluation, measure)
    sampled = calibrated(folder, [*evaluation.families], [*evaluation.samples], samples)
    if distributed.rank():
        return {}
    order, per_image = list(evaluation.families), measure.metrics
    parts = [folder / f"{rank}.csv" for rank in range(distributed.world_size())]
    merged = write_merged(folder / "per_image.csv", parts, order, per_image)
    pictures = {key: images for share in shares for key, images in share.pictures.items()}
    if pictures:
        write_pictures(folder / "grid.png", pictures, order)
    _write_components(evaluation, folder, pictures)
    values = summarised(merged)
    for (degradation, method), cell in found.items():
        values[degradation][method] |= cell
    for degradation, cells in sampled.items():
        for method, cell in cells.items():
            values[degradation][method]["calibration"] = cell
    stages = stages_of(evaluation, shares)
    record = {"units": units(options.compiled), "values": values, "stages": stages}
    write_metrics(folder, record, settings_of(evaluation))
    if "psnr" in per_image:
        examples = [share.examples for share in shares]
        write_examples(folder, examples, order, [*evaluation.methods])
    print(table(*metrics_rows(values, evaluation.names, options.compiled, options.intervals)))
    if evaluation.samples:
        print(f"{options.samples} samples of each image:\n{calibration_table(sampled)}")
    text = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in stages.items())
    print(f"ms an image on each process: {text}")
    for degradation, cells in values.items():
        for method, cell in cells.items():
            if any(math.isnan(cell[name]["mean"]) for name in evaluation.names):
                print(f"warning: {method} on {degradation} left images that are not finite")
    return values


def _write_components(evaluation: Evaluation, folder: Path, shown: Pictures) -> None:
    """`components.png`: what networks with components say of the images that the grid shows."""
    restorers = {t: r for t, r in evaluation.restorers.items() if isinstance(r.sampler, NPPC)}

    def method(restorer: Restorer) -> Restore:
        return lambda problem, noise, draws: restorer.components(problem, noise).components

    pictures: Pictures = {}
    indices = sorted({index for _, index in shown}) if restorers else []
    for restored in evaluation.restored({t: method(r) for t, r in restorers.items()}, indices):
        family, title = restored.group.degradation, restored.method
        for index, components in zip(restored.group.indices, restored.x.cpu(), strict=False):
            images = shown[family, index]
            row = {k: v for k, v in images.items() if k in ("original", "measurement")}
            row["MMSE"] = images[title]
            row |= {f"component {k}": enhanced(w) for k, w in enumerate(components, 1)}
            pictures[f"{family}\n{title}", index] = row
    if pictures:
        labels = list(dict.fromkeys(label for label, _ in pictures))
        write_pictures(folder / "components.png", pictures, labels)


def _check_fits(options: GenOptions, net: Path, denoiser: Model, dataset: ImageDataset) -> None:
    """Raise ValueError if a network is of other images or classes than the data set."""
    expected, found = denoiser.config.image_shape, dataset.image_shape
    if found != expected:
        parameters = inspect.signature(type(dataset)).parameters
        side = next((name for name in ("resolution", "size") if name in parameters), None)
        way_out = f": give --data-opt {side}={expected[1]}" if side else ""
        raise ValueError(
            f"{net} restores images {expected}, but {options.data} has {found}{way_out}"
        )
    known = denoiser.config.num_classes
    if known and dataset.num_classes > known:
        raise ValueError(
            f"{net} knows {known} classes, but {options.data} has {dataset.num_classes}"
        )
    if options.cfg is not None and known and not dataset.num_classes:
        raise ValueError(f"--cfg {options.cfg} guides by class, but {options.data} has no classes")


def _warn_of_classes(
    options: GenOptions, net: Path, denoiser: Model, dataset: ImageDataset
) -> None:
    """Say if the data set numbers other classes than the one that a network was trained on."""
    trained, found = read_summary(net).get("dataset"), classes_of(dataset)
    if not (trained and found and denoiser.config.num_classes and distributed.rank() == 0):
        return
    names = record(Identity, trained, f"the training data in {net}", others=True).classes
    if names and names != found:
        print(
            f"warning: {net} was trained on the classes {', '.join(names)}, and {options.data} "
            f"has {', '.join(found)}: its labels mean others",
            file=sys.stderr,
        )


def _restorers(
    options: GenOptions, precision: str, nets: Mapping[Path, Model], samplers: Mapping[str, Sampler]
) -> dict[str, Restorer]:
    restorers: dict[str, Restorer] = {}
    for net, name in methods.driven(nets, samplers):
        methods.check_guidance(options.cfg, nets[net], net)
        title = _title(name, samplers[name], nets[net].config)
        if title in restorers:  # another network of this kind
            title += f" of {net}"
        if title in restorers:
            raise ValueError(f"two methods are called '{title}': give classes titles of their own")
        restorers[title] = Restorer(nets[net], samplers[name], precision, options.cfg)
    return restorers


def _title(name: str, sampler: Sampler, config: NetworkConfig | PriorConfig) -> str:
    """What a method is called in tables and pictures."""
    if isinstance(sampler, ZeroShot | InDI):
        return sampler.title or name
    trained = _NAMES[conditioning_of(config)]
    if isinstance(config, NetworkConfig) and config.fused:
        trained = "EPS" if trained == "Palette" else f"{trained} + EPS"
    return f"{trained} {sampler.title or f'sample ({name})'}"
