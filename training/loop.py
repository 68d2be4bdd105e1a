"""The training loop. Progress is counted in images, and every random number follows from the run's
seed, the step and the global number of the sample: not from the number of processes."""

import contextlib
import copy
import itertools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from datautils import ImageDataset
from datautils.loading import Batches
from degradation import Draws, Family, derive_seed, make_noise
from metrics.pixel import to_float
from networks import Denoiser, save_weights
from training import distributed
from training.augment import Augment
from training.checkpoint import Progress, load_checkpoint, save_checkpoint
from training.config import TrainConfig
from training.data import DTYPES, step_samples, training_batches
from training.log import RunLog
from training.loss import DenoisingLoss, MMSELoss, draw_sigma
from training.schedule import ema_decay, learning_rate, update_average

WEIGHTS = "weights.safetensors"
_MAX_SKIPPED = 50  # steps in a row without finite gradients before a run is given up

# Values of a denoiser for each family: held-out PSNR, Fréchet distances.
Measure = Callable[[Callable], dict[str, Any]]


class Trainer:
    """A denoiser, its average, the optimiser, and one step of training them."""

    def __init__(
        self,
        config: TrainConfig,
        denoiser: Denoiser,
        family: Family,
        device: torch.device,
    ):
        self.config, self.family, self.device = config, family, device
        self.denoiser = denoiser.to(device).train()
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        if denoiser.config.consistent:
            shape = denoiser.config.image_shape
            for structure in family.structures():
                operator = family.sample(shape, structure, [0])
                operator.check_diagonalisable("a consistent network")
        self.noise = make_noise(config.noise_level, config.poisson_peak)
        scaled = config.precision == "fp16"
        self.scaler = torch.amp.GradScaler(device.type, enabled=scaled)
        self.progress = Progress()
        self.skipped_in_a_row = 0
        self.tasks = family.structures() if config.balance else ()
        self.augment = Augment(config.augment) if config.augment else None
        loss = MMSELoss if config.mse_train else DenoisingLoss
        self.loss_module = loss(self.denoiser, max(1, len(self.tasks))).to(device)
        self.optimizer = torch.optim.Adam(self.loss_module.parameters(), config.lr, config.betas)
        parallel = distributed.world_size() > 1
        self.loss: nn.Module = (
            DistributedDataParallel(self.loss_module) if parallel else self.loss_module
        )

    def step(self, images: Tensor, labels: Tensor, fraction: float) -> Tensor:
        """One optimiser step on this process's share of the batch; returns its mean loss.

        images: uint8 `[n, C, h, w]`; fraction: share of the run that is over, in [0, 1].
        """
        config, progress = self.config, self.progress
        step_seed = derive_seed(config.seed, "step", progress.step)
        structure = self.family.structure(step_seed)
        samples = step_samples(
            progress.step, config.batch, distributed.rank(), distributed.world_size()
        )
        seeds = [derive_seed(config.seed, "sample", progress.step, i) for i in samples]
        torch.manual_seed(derive_seed(step_seed, distributed.rank()))  # dropout
        size = config.batch_gpu or len(images)
        total = torch.zeros((), device=self.device)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            last = start + size >= len(images)
            with contextlib.nullcontext() if last else self._no_sync():
                loss = self._loss(images[part], labels[part], structure, seeds[part])
                mean = loss.sum() / len(images)
                self.scaler.scale(mean).backward()
            total += mean.detach()
        progress.step += 1
        progress.images += config.batch
        self._update(fraction)
        return total

    def _loss(self, images: Tensor, labels: Tensor, structure: Any, seeds: list[int]) -> Tensor:
        config = self.config
        clean = to_float(images.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        draws = Draws(seeds, self.device)
        augment_labels = None
        if self.augment:
            clean, augment_labels = self.augment(clean, draws)
        shape = self.denoiser.config.image_shape
        operator = self.family.sample(shape, structure, seeds, self.device)
        hidden = draws.uniform((), "label dropout") < config.label_dropout
        problem = self.noise.measure(operator, clean, draws, torch.where(hidden, -1, labels))
        mmse_share = 1.0 if config.mse_train else config.mmse_share
        sigma = draw_sigma(draws, config.P_mean, config.P_std, mmse_share)
        noise = draws.normal(clean.shape[1:], "noise")
        with self.autocast():
            task = self.tasks.index(structure) if self.tasks else 0
            return self.loss(clean, sigma, noise, problem, task, augment_labels)

    def _update(self, fraction: float) -> None:
        config, progress = self.config, self.progress
        rate = learning_rate(
            progress.images,
            fraction,
            lr=config.lr,
            batch=config.batch,
            ramp=config.ramp,
            decay=config.decay,
            cooldown=config.cooldown,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.scaler.unscale_(self.optimizer)
        gradients = [p.grad for p in self.loss_module.parameters() if p.grad is not None]
        finite = math.isfinite(torch.nn.utils.get_total_norm(gradients).item())
        if finite:
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self._count_skips(finite)
        decay = ema_decay(
            progress.images, batch=config.batch, halflife=config.ema_halflife, ramp=config.ema_ramp
        )
        update_average(self.average.parameters(), self.denoiser.parameters(), decay)

    def _count_skips(self, finite: bool) -> None:
        self.skipped_in_a_row = 0 if finite else self.skipped_in_a_row + 1
        self.progress.skipped += not finite
        if self.skipped_in_a_row > _MAX_SKIPPED:
            raise RuntimeError(
                f"gradients were not finite for {self.skipped_in_a_row} steps in a row, "
                f"up to step {self.progress.step}: lower the learning rate or use bf16 or fp32"
            )

    def _no_sync(self) -> contextlib.AbstractContextManager:
        if isinstance(self.loss, DistributedDataParallel):
            return self.loss.no_sync()
        return contextlib.nullcontext()

    def autocast(self) -> torch.autocast:
        """The precision of the network's arithmetic."""
        dtype = DTYPES[self.config.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def checkpoint(self, folder: Path) -> None:
        """Write the state of training into a new folder below `folder`."""
        self.progress.scaler = self.scaler.state_dict()
        if distributed.rank() == 0:
            parts = self.loss_module, self.average, self.optimizer
            save_checkpoint(folder, self.progress, *parts, keep=self.config.keep_checkpoints)
        distributed.barrier()

    def resume(self, folder: Path) -> None:
        """Go on from the newest sound checkpoint below `folder`; ValueError where there is none."""
        self.progress, warnings = load_checkpoint(
            folder, self.loss_module, self.average, self.optimizer
        )
        if self.progress.scaler:
            self.scaler.load_state_dict(self.progress.scaler)
        if distributed.rank() == 0:
            for warning in warnings:
                print(f"warning: {warning}", flush=True)

    def estimate(self, x: Tensor, sigma: Tensor | float, problem: Any) -> Tensor:
        """The averaged denoiser in the precision of training."""
        with self.autocast():
            return self.average(x, sigma, problem)


def train(
    trainer: Trainer,
    dataset: ImageDataset,
    folder: Path,
    validate: Measure | None = None,
    distances: Measure | None = None,
) -> Path:
    """Run until the images or the minutes of the configuration are used up.

    Writes `log.jsonl`, `checkpoints/` and, at the end, the averaged weights, whose path it returns.
    """
    config, checkpoints = trainer.config, folder / "checkpoints"
    progress = trainer.progress
    batches = training_batches(
        dataset, config.batch, config.seed, progress.step, config.workers,
        skip_broken=config.skip_broken, position=progress.position,
    )  # fmt: skip
    source = _Source(batches, progress)
    clock = _Clock(progress.seconds)
    with RunLog(folder, config.duration, progress.images) as log:
        meter = _Meter()
        fraction = _fraction(config, progress.images, clock.seconds())
        if validate and not progress.images:
            _validate(trainer, validate, log, clock)
        if config.duration < config.ramp:
            log.say(
                f"warning: the run ends at {config.duration / config.ramp:.2%} of the ramp of the "
                f"learning rate ({config.ramp} images); a short run needs a shorter --ramp"
            )
        if distances and _missed(trainer, log):
            _measure(trainer, distances, log, clock)
        if fraction >= 1:
            _save_weights(trainer, folder, log, clock)
        while fraction < 1:
            distributed.heed_termination()
            loss = trainer.step(*next(batches), fraction)
            meter.losses.append(loss)
            fraction = _fraction(config, progress.images, clock.seconds())
            log.advance(config.batch, fraction)
            over = fraction >= 1
            if _due(config.log_every, progress.images, config.batch) or over:
                source.note(log)
                meter.report(log, trainer, clock)
            if validate and (_due(config.validate_every, progress.images, config.batch) or over):
                _validate(trainer, validate, log, clock)
            due = _due(config.measure_every, progress.images, config.batch) or over
            measure = due and distances is not None
            # What was learnt is safe before the long measurement begins.
            if _due(config.checkpoint_every, progress.images, config.batch) or over or measure:
                progress.seconds = clock.seconds()
                source.note(log)
                trainer.checkpoint(checkpoints)
            if over:
                _save_weights(trainer, folder, log, clock)
            if measure and distances:
                _measure(trainer, distances, log, clock)
    distributed.barrier()
    return folder / WEIGHTS


def _missed(trainer: Trainer, log: RunLog) -> bool:
    """Whether a run that goes on stopped while it measured: the checkpoint came just before."""
    config, images = trainer.config, trainer.progress.images
    due = _due(config.measure_every, images, config.batch) or images >= config.duration
    return images > 0 and due and bool(distributed.from_first(not log.measured(images)))


def _save_weights(trainer: Trainer, folder: Path, log: RunLog, clock: "_Clock") -> None:
    if distributed.rank() == 0:
        save_weights(folder / WEIGHTS, trainer.average, _summary(trainer, clock))
        log.say(f"weights: {folder / WEIGHTS}")


class _Clock:
    """Seconds of the run, those before a resume included, by the first process's clock."""

    def __init__(self, before: float):
        self.start = time.monotonic() - before

    def seconds(self) -> float:
        return time.monotonic() - self.start


class _Source:
    """Brings what the loaders of all processes met into the counters of the run."""

    def __init__(self, batches: Batches, progress: Progress):
        self.batches, self.progress, self.before = batches, progress, progress.broken
        self.said: set[str] = set()

    def note(self, log: RunLog) -> None:
        own = self.batches.skipped, self.batches.position, self.batches.faults
        skipped, positions, faults = zip(*distributed.gather(own), strict=True)
        self.progress.broken = self.before + sum(skipped)
        self.progress.position = list(itertools.chain(*positions))
        for sentence in dict.fromkeys(itertools.chain(*faults)):
            if sentence not in self.said:
                log.say(f"warning: skipped: {sentence}")
                self.said.add(sentence)


class _Meter:
    """Mean loss and speed since the last report."""

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.since = time.monotonic()

    def report(self, log: RunLog, trainer: Trainer, clock: _Clock) -> None:
        loss = float(torch.stack(self.losses).mean())
        loss = sum(distributed.gather(loss)) / distributed.world_size()
        images = len(self.losses) * trainer.config.batch
        speed = images / (time.monotonic() - self.since)
        log.write(
            images=trainer.progress.images,
            step=trainer.progress.step,
            loss=loss,
            lr=trainer.optimizer.param_groups[0]["lr"],
            images_per_second=round(speed, 2),
            skipped=trainer.progress.skipped,
            broken=trainer.progress.broken,
            seconds=round(clock.seconds(), 2),
        )
        log.show(loss=f"{loss:.3f}")
        self.__init__()  # type: ignore[misc]


def _due(every: int, images: int, batch: int) -> bool:
    """Whether the step that ended at this count passed a multiple of `every`; 0 is never."""
    return every > 0 and images // every > (images - batch) // every


def _fraction(config: TrainConfig, images: int, seconds: float) -> float:
    """Share of the run that is over, by images or minutes, the same on every process."""
    if config.max_minutes is None:
        return min(images / config.duration, 1.0)
    spent = distributed.from_first(seconds / 60 / config.max_minutes)
    return min(max(images / config.duration, spent), 1.0)


def _validate(trainer: Trainer, validate: Measure, log: RunLog, clock: _Clock) -> None:
    values = validate(trainer.estimate)
    log.write(
        images=trainer.progress.images, seconds=round(clock.seconds(), 2), heldout_psnr=values
    )
    text = ", ".join(f"{name} {value:.2f}" for name, value in values.items())
    log.say(f"{trainer.progress.images:>10} images: held-out PSNR (dB) {text}")


def _measure(trainer: Trainer, distances: Measure, log: RunLog, clock: _Clock) -> None:
    values = distances(trainer.estimate)
    log.write(
        images=trainer.progress.images, seconds=round(clock.seconds(), 2), heldout_distance=values
    )
    for name, cell in values.items():
        text = ", ".join(f"{metric} {value:.2f}" for metric, value in cell.items())
        log.say(f"{trainer.progress.images:>10} images: held-out {name} {text}")


def _summary(trainer: Trainer, clock: _Clock) -> dict[str, Any]:
    config, progress = trainer.config, trainer.progress
    return {
        "images": progress.images,
        "steps": progress.step,
        "seconds": round(clock.seconds(), 1),
        "degradation": config.degradation,
        "noise_level": config.noise_level,
        "poisson_peak": config.poisson_peak,
        "mse_train": config.mse_train,
        "augment": config.augment,
        "precision": config.precision,
        "data": config.data_class,
        "skipped_steps": progress.skipped,
    }
