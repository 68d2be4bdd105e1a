"""Build everything a training run needs from its settings, and train."""

import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from commands.methods import check_compiler, check_operators
from commands.operators import family_of
from datautils import DATASETS, ImageDataset, get_dataset
from datautils.identity import identity
from datautils.imagedir import ImageDir
from degradation import Family, NoDegradation, check_noise
from metrics.statistics import load_reference, reference_detectors
from networks import Denoiser, cpu, load_weights, make_config
from runtime import distributed
from runtime.environment import environment
from runtime.errors import one_sentence_errors
from runtime.files import check_folder, claimed, replacing
from runtime.launcher import first_here
from runtime.reader import arguments
from runtime.records import plain
from samplers import DPM, Heun, InDI, Sampler, one_step
from training.checkpoint import Origin, list_checkpoints
from training.config import TrainConfig
from training.curves import draw_curves
from training.loop import WEIGHTS, Heldout, Measure, train
from training.trackers import check_trackers
from training.trainer import Trainer, noise_of
from training.validation import (
    HeldoutImages,
    draw_restorations,
    draw_samples,
    heldout_distances,
    heldout_psnr,
)
from zero_shot import Unrolled

# What restores held-out images while a run of this objective trains, beside the MMSE estimate; a
# sheet is a look and no measurement: few steps are enough.
_SAMPLERS: dict[str, Sampler] = {"denoising": Heun(), "indi": InDI()}
_SHEETS: dict[str, Sampler] = {"denoising": DPM(8, eta=1), "indi": InDI(8)}


def run(
    config: TrainConfig,
    folder: Path,
    *,
    resume: bool,
    command: Sequence[str],
    accept_changes: bool = False,
) -> None:
    """Train in `folder`, alone or as one of several processes.

    accept_changes: go on with other settings or data than the run was begun with.
    """
    with distributed.process_group() as device, ExitStack() as stack:
        with one_sentence_errors():
            check_batch(config, distributed.world_size())
            check_trackers(config)
            _check_new(folder, resume)
            check_folder(folder)
            dataset = get_dataset(config.data_class, "train", **config.data)
            # Where a run goes on, a checkpoint replaces what it started from.
            goes_on = resume and _begun(folder)
            init = None if goes_on else config.init
            denoiser, family = _denoiser(config, init, dataset), _family(config)
            family.check(dataset.image_shape)
            if config.objective == "unrolled":
                check_operators({"unrolled": Unrolled()}, {"": family}, dataset.image_shape)
                if not (config.init or goes_on) and distributed.rank() == 0:
                    print(
                        "unrolled begins from random weights, in the paper from those of an "
                        "unconditional network: give them by --init FILE",
                        file=sys.stderr,
                    )
            if config.compile:
                check_compiler(device)
            if config.label_dropout and not dataset.num_classes:
                raise ValueError(
                    f"label_dropout={config.label_dropout} hides classes, but {config.data_class} "
                    "has none: give --label-drop 0"
                )
            noise = noise_of(config)
            check_noise(noise, family, dataset.image_shape)
            heldout = _heldout(config, family, dataset, device)
        with one_sentence_errors():  # all processes have come this far: they meet here
            trainer = Trainer(config, denoiser, family, device)
            trainer.progress.origin = Origin(config.fixed(), identity(dataset))
        with one_sentence_errors():
            if distributed.rank() == 0:
                stack.enter_context(claimed(folder, "is training in"))
                _check_new(folder, resume)  # another may have begun it meanwhile
        with one_sentence_errors():  # nobody else writes checkpoints any more
            if distributed.value_of_first(resume and _begun(folder)):
                trainer.resume(folder / "checkpoints", accept_changes)
            if distributed.rank() == 0:
                _record(config, folder, command, trainer)
        train(trainer, dataset, folder, heldout)
        if distributed.rank() == 0:
            draw_curves([folder], folder / "curves.png")


def with_data_options(config: TrainConfig, options: dict[str, str]) -> TrainConfig:
    """The settings with more options of the data set, given as text. Raises ValueError."""
    cls, what = DATASETS.find(config.data_class), f"dataset '{config.data_class}'"
    return replace(config, data=arguments(cls, config.data | options, what, fixed=("split",)))


def with_pictures(config: TrainConfig, path: Path) -> TrainConfig:
    """The settings for a user's own pictures, which are cropped and resized to the network.

    A twentieth, at most 512, is held out. Raises DataError for what holds no pictures, and
    ValueError for too few.
    """
    side = make_config(config.preset, network=config.network).image_shape[-1]
    count = len(ImageDir(path, labels="none"))
    heldout = min(512, count // 20) or 1
    if count <= heldout:
        raise ValueError(f"--data {path} has {count} picture: give two or more")
    if first_here():
        shown = f"{count - heldout} pictures to train on, {heldout} held out, {side}×{side} pixels"
        print(f"{path}: {shown}, no classes", file=sys.stderr)
        if config.init is None:
            begin = "from random weights; --init FILE begins with others of the same architecture"
            print(f"training begins {begin}", file=sys.stderr)
    data = {"path": str(path), "heldout": heldout, "size": side, "labels": "none"}
    return replace(config, data_class="datautils.imagedir.ImageDir", data=data)


def check_names(config: TrainConfig) -> None:
    """Raise ValueError for an unknown network, data set class or family."""
    make_config(config.preset, network=config.network)
    DATASETS.find(config.data_class)
    _family(config)


def check_batch(config: TrainConfig, world: int) -> None:
    """Raise ValueError if so many processes cannot have equal shares, and these equal parts."""
    if config.batch % world:
        raise ValueError(f"batch={config.batch} is not divisible by the {world} processes")
    share = config.batch // world
    if share % min(config.batch_gpu or share, share):
        raise ValueError(
            f"batch_gpu={config.batch_gpu} does not divide the {share} images that each process "
            "has in a step"
        )


def _check_new(folder: Path, resume: bool) -> None:
    if not resume and _begun(folder):
        raise ValueError(
            f"{folder} already holds a run: continue it with --resume {folder}, "
            "or choose another --name or --outdir"
        )


def _begun(folder: Path) -> bool:
    """Whether there is something of a run to lose. One killed before its first checkpoint has
    nothing, and is resumed from its start."""
    return bool(list_checkpoints(folder / "checkpoints")) or (folder / WEIGHTS).exists()


def _family(config: TrainConfig) -> Family:
    if not config.degradation:
        return NoDegradation()
    return family_of(config.degradation, config.degradation_opt)


def _denoiser(config: TrainConfig, init: str | None, dataset: ImageDataset) -> Denoiser:
    """A new network, with the weights of the file `init` if there is one. Raises ValueError."""
    conditioning = "blind" if config.blind else "invfusion"
    unrolled = config.objective == "unrolled"  # H, y and the noise level are the sampler's
    if unrolled or not config.degradation:
        conditioning = "unconditional"
    torch.manual_seed(config.seed)
    network = make_config(
        config.preset, conditioning, dataset.image_shape, dataset.num_classes, config.network
    )
    network = replace(
        network,
        noise_conditioning=bool(config.noise_range) and not unrolled,
        objective=config.objective,
        out_mult=1 + config.components * (config.objective == "nppc"),
    )
    fresh = Denoiser(network)
    if init is None:
        return fresh
    denoiser = load_weights(init)
    if not isinstance(denoiser, Denoiser):
        raise ValueError(f"init={init} holds an analytic prior, and training starts from a network")
    # Of whatever objective, and with x and y apart or in one image: what was learnt serves all.
    theirs = denoiser.config
    network = replace(network, objective=theirs.objective, fused=theirs.fused)
    if theirs.out_mult == 1:
        network = replace(network, out_mult=1)
    for name, asked in vars(network).items():
        if (found := getattr(theirs, name)) != asked:
            raise ValueError(
                f"init={init} holds a network with {name}={found}, but the settings ask for {asked}"
            )
    state = denoiser.state_dict()
    if fresh.config.out_mult > theirs.out_mult:
        _add_components(state, fresh)
    fresh.load_state_dict(state)
    return fresh


def _add_components(state: dict[str, Tensor], fresh: Denoiser) -> None:
    """Give weights of a network without components those of a new one: they are zero."""
    name, config = "net.patch_out.proj.weight", fresh.config
    head = fresh.state_dict()[name].clone()
    pixels = config.patch**2, -1, head.shape[1]  # of a patch, then the channels of all images
    head.view(pixels)[:, : config.image_shape[0]] = state[name].view(pixels)
    state[name] = head


def _heldout(
    config: TrainConfig, family: Family, dataset: ImageDataset, device: torch.device
) -> Heldout:
    """What the run looks at on the way; all of it is checked before the first step."""
    psnr = distances = sheet = None
    if config.sheets and not config.degradation:
        sampler = _SHEETS["denoising"]
        sheet = partial(draw_samples, dataset, config.sheet_images, sampler, device)
    validated = config.validate_every and config.degradation
    measured = config.measure_every and config.ref_path
    restored = config.sheets and config.degradation
    if not (validated or measured or restored):
        return Heldout(sheet=sheet)
    images = HeldoutImages(
        get_dataset(config.data_class, "heldout", **config.data),
        {type(part).__name__: part for part in family.parts()},
        noise_of(config),
        config.batch_gpu or config.batch // distributed.world_size(),
        device,
        config.workers,
    )
    estimator = Unrolled() if config.objective == "unrolled" else one_step(config.objective)
    if validated:
        # Without a measurement an estimate cannot be compared with anything.
        families = {name: f for name, f in images.families.items() if f.measures}
        several = replace(images, families=families)
        psnr = partial(heldout_psnr, several, config.validate_images, estimator)
    if measured:
        sampler = _SAMPLERS.get(config.objective, estimator)
        distances = _distances(config, images, dataset, sampler)
    if restored:
        shown = {"MMSE": estimator}
        if config.objective in _SHEETS:
            shown["sample"] = _SHEETS[config.objective]
        sheet = partial(draw_restorations, images, config.sheet_images, shown)
    return Heldout(psnr, distances, sheet)


def _distances(
    config: TrainConfig, images: HeldoutImages, dataset: ImageDataset, sampler: Sampler
) -> Measure:
    """Checked against the reference before the first step: a wrong path must not cost hours."""
    assert config.ref_path
    reference = load_reference(config.ref_path)
    heldout = images.dataset
    count = len(heldout) if reference.images is None else reference.images
    if count > len(heldout):
        raise ValueError(
            f"{config.ref_path} is of {count} images, and {config.data_class} holds out only "
            f"{len(heldout)}: restorations are compared with statistics of the held-out images"
        )
    detectors = reference_detectors(
        reference, config.detectors, images.device, dataset.image_shape, config.trust_detector
    )
    for detector in detectors.values():
        reference.check(detector, images=count, image_shape=dataset.image_shape)
    return partial(heldout_distances, images, count, sampler, reference, detectors)


def _record(config: TrainConfig, folder: Path, command: Sequence[str], trainer: Trainer) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.yaml") as path:
        path.write_text(config.dump())
    # A line for each time the run was started.
    with (folder / "starts.jsonl").open("a") as file:
        start = {
            "command": list(command), "precision": trainer.precision,
            "onednn": cpu.uses_onednn(), "environment": environment(),
            "data": trainer.progress.origin and asdict(trainer.progress.origin.data),
        }  # fmt: skip
        file.write(json.dumps(plain(start)) + "\n")
