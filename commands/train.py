"""Build everything a training run needs from its settings, and train."""

import json
from collections.abc import Sequence
from pathlib import Path

import torch

from commands.cli import check_folder
from datautils import ImageDataset, get_dataset
from degradation import Family, GaussianNoise, NoDegradation, get_family
from metrics.results import environment, replacing
from networks import Denoiser, make_config
from training import distributed
from training.checkpoint import list_checkpoints
from training.config import TrainConfig
from training.curves import draw_curves
from training.loop import Trainer, train
from training.validation import Validation


def run(config: TrainConfig, folder: Path, *, resume: bool, command: Sequence[str]) -> None:
    """Train in `folder`, alone or as one of several processes."""
    with distributed.process_group() as device:
        with distributed.one_sentence_errors():
            _check(config, folder, resume)
            check_folder(folder)
            dataset = get_dataset(config.data_class, "train", **config.data)
            denoiser, family = _denoiser(config, dataset), _family(config)
            family.check(dataset.image_shape)
            trainer = Trainer(config, denoiser, family, device)
            validation = _validation(config, device)
            if resume:
                trainer.resume(folder / "checkpoints")
        distributed.barrier()
        if distributed.rank() == 0:
            _record(config, folder, command)
        distributed.barrier()
        train(trainer, dataset, folder, validation)
        if distributed.rank() == 0 and validation:
            draw_curves(folder)


def _check(config: TrainConfig, folder: Path, resume: bool) -> None:
    world = distributed.world_size()
    if config.batch % world:
        raise ValueError(f"batch={config.batch} is not divisible by the {world} processes")
    if config.batch_gpu and (config.batch // world) % config.batch_gpu:
        raise ValueError(
            f"batch_gpu={config.batch_gpu} does not divide the {config.batch // world} images "
            "that each process has in a step"
        )
    started = list_checkpoints(folder / "checkpoints") or (folder / "weights.safetensors").exists()
    if not resume and started:
        raise ValueError(
            f"{folder} already holds a run: continue it with --resume {folder}, "
            "or choose another --name or --outdir"
        )


def _family(config: TrainConfig) -> Family:
    return get_family(config.degradation) if config.degradation else NoDegradation()


def _denoiser(config: TrainConfig, dataset: ImageDataset) -> Denoiser:
    conditioning = "blind" if config.blind else "invfusion"
    if not config.degradation:
        conditioning = "unconditional"
    torch.manual_seed(config.seed)
    return Denoiser(
        make_config(config.preset, conditioning, dataset.image_shape, dataset.num_classes)
    )


def _validation(config: TrainConfig, device: torch.device) -> Validation | None:
    if not config.degradation or not config.validate_every:
        return None
    return Validation(
        get_dataset(config.data_class, "heldout", **config.data),
        get_family(config.degradation),
        GaussianNoise(config.noise_level),
        count=config.validate_images,
        batch=config.batch_gpu or config.batch,
        device=device,
    )


def _record(config: TrainConfig, folder: Path, command: Sequence[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with replacing(folder / "config.yaml") as path:
        path.write_text(config.dump())
    # A line for each time the run was started.
    with (folder / "starts.jsonl").open("a") as file:
        start = {"command": list(command), "environment": environment()}
        file.write(json.dumps(start) + "\n")
