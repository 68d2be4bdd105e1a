"""The training loop: steps, and what is due between them. Progress is counted in images."""

import itertools
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import closing, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from datautils import ImageDataset
from datautils.loading import Batches
from networks import save_weights
from runtime import distributed, signals
from runtime.errors import DivergedError
from runtime.tables import fixed
from training import parallel
from training.checkpoint import Background, Parts, Progress, clear_unfinished, save_checkpoint
from training.data import training_batches
from training.log import RunLog
from training.trainer import Trainer, power_part

WEIGHTS = "weights.safetensors"
# Settings that a weights file tells.
_TOLD = (
    *("batch", "degradation", "noise_level", "noise_range", "poisson_peak", "objective", "augment"),
    "init",
)

# Values of a denoiser for each family: held-out PSNR, Fréchet distances.
Measure = Callable[[Callable], dict[str, Any]]


@dataclass(frozen=True)
class Heldout:
    """What is looked at on the way, by the averaged denoiser; None leaves it out."""

    psnr: Measure | None = None
    distances: Measure | None = None
    sheet: Callable[[Callable, Path], None] | None = None


def train(
    trainer: Trainer, dataset: ImageDataset, folder: Path, heldout: Heldout = Heldout()
) -> Path:
    """Run until the images or the minutes of the configuration are used up.

    Writes `log.jsonl`, `checkpoints/`, `snapshots/`, `sheets/` and, with every checkpoint, the
    averaged weights, whose path it returns. SIGTERM or Ctrl-C ends the run after the step, with a
    checkpoint and exit code 75.
    """
    config, progress, first = trainer.config, trainer.progress, distributed.rank() == 0
    if first:
        clear_unfinished(folder)
    log = RunLog(config, folder, progress.images)
    with (
        signals.deferred_termination(),
        closing(log),
        distributed.Pulse() as pulse,
        Background() as writing,
    ):
        batches = training_batches(  # whose processes ignore signals if they start here
            dataset, config.batch, config.seed, progress.step, config.workers, config.skip_broken
        )
        with closing(batches):
            stopped = _Run(trainer, folder, heldout, log, pulse, writing, batches).go()
    distributed.barrier()
    if stopped:
        if first:
            again = f"python train.py --resume {folder}"
            print(f"stopped after {progress.images} images; this goes on: {again}")
        sys.exit(signals.RESUMABLE)
    return folder / WEIGHTS


@dataclass
class _Run:
    """A run on its way."""

    trainer: Trainer
    folder: Path
    heldout: Heldout
    log: RunLog
    pulse: distributed.Pulse
    writing: Background
    batches: Batches

    def __post_init__(self) -> None:
        self.config, self.progress = self.trainer.config, self.trainer.progress
        self.losses: list[float] = []  # of every report
        self.saved = self.progress.images  # the count of the newest checkpoint
        self.start = time.monotonic() - self.progress.seconds
        self.reported = self.progress.images, time.monotonic()  # where the last report was made
        self.broken_before = self.progress.broken
        self.said: set[str] = set()  # what is wrong with broken images

    def go(self) -> bool:
        """Train to the end; whether a signal came before it."""
        images, config, first = self.progress.images, self.config, distributed.rank() == 0
        fraction = self._fraction(distributed.value_of_first(self._seconds()))
        over = fraction >= 1
        self.log.say(f"precision: {self.trainer.precision}")
        if config.duration < config.ramp:
            self.log.say(
                f"warning: the run ends at {config.duration / config.ramp:.2%} of the ramp of the "
                f"learning rate ({config.ramp} images); a short run needs a shorter --ramp"
            )
        if over:  # when it is resumed: the kill may have come before the weights were written
            average = self.trainer.average.state_dict()
            average = {name: parallel.whole(tensor) for name, tensor in average.items()}
            if first:
                _check_finite("average", average, images)
                self._export(WEIGHTS, average, self._summary())
            self.log.say(f"the run is at its end; weights: {self.folder / WEIGHTS}")
        stop = self._look(over, resumed=images > 0)
        while not over and not stop:
            self.trainer.step(*next(self.batches), fraction)
            asked, seconds = self.pulse.beat(signals.asked_to_end(), self._seconds() * first)
            fraction, stop = self._fraction(seconds), bool(asked)
            over = fraction >= 1
            self.log.advance(config.batch, fraction)
            if self._due(config.log_every) or over:
                self._report()
            self._write(over, stop)
            stop = stop or self._look(over)
            self.writing.check()
        if self.losses:
            self.log.say(f"loss {fixed(self.losses[0], 3)} -> {fixed(self.losses[-1], 3)}")
        return stop

    def _seconds(self) -> float:
        """Of the run, those before a resume included."""
        return time.monotonic() - self.start

    def _fraction(self, seconds: float) -> float:
        """Share of the run that is over, by images or minutes."""
        minutes, images = self.config.max_minutes, self.progress.images
        spent = seconds / 60 / minutes if minutes else 0.0
        return min(max(images / self.config.duration, spent), 1.0)

    def _due(self, every: int) -> bool:
        """Whether this step passed a multiple of `every` images; 0 is never."""
        images = self.progress.images
        return every > 0 and images // every > (images - self.config.batch) // every

    # ---- numbers ---------------------------------------------------------------------------------

    def _report(self) -> None:
        trainer, progress = self.trainer, self.progress
        trainer.check_skips()
        self._note_broken()
        loss, norm = trainer.means()
        loss = sum(distributed.gather(loss)) / distributed.world_size()
        (images, since), now = self.reported, time.monotonic()
        speed = (progress.images - images) / (now - since)
        self.reported = progress.images, now
        self.losses.append(loss)
        self.log.write(
            images=progress.images,
            step=progress.step,
            loss=loss,
            gradient_norm=norm,
            lr=trainer.optimizer.param_groups[0]["lr"],
            images_per_second=round(speed, 2),
            skipped=progress.skipped,
            broken=progress.broken,
            seconds=round(self._seconds(), 2),
        )
        skipped = {"skipped": str(progress.skipped)} if progress.skipped else {}
        self.log.show(loss=fixed(loss, 3), **skipped)

    def _note_broken(self) -> None:
        """Bring what the loaders of all processes met into the counters of the run."""
        own = self.batches.skipped, self.batches.faults
        skipped, faults = zip(*distributed.gather(own), strict=True)
        self.progress.broken = self.broken_before + sum(skipped)
        for sentence in dict.fromkeys(itertools.chain(*faults)):
            if sentence not in self.said:
                self.log.say(f"warning: skipped: {sentence}")
                self.said.add(sentence)

    # ---- held-out images -------------------------------------------------------------------------

    def _look(self, over: bool, resumed: bool = False) -> bool:
        """Restore held-out images if that is due; whether a signal to end came meanwhile."""
        config, heldout, images = self.config, self.heldout, self.progress.images
        looks = [
            ("heldout_psnr", heldout.psnr, config.validate_every),
            ("sheet", heldout.sheet and self._sheet, config.sheets),
            ("heldout_distance", heldout.distances, config.measure_every),
        ]
        try:
            for name, look, every in looks:
                due = (self._due(every) or over) and (images or name == "heldout_psnr")
                if look is None or not due:
                    continue
                # A resumed run makes up for what a kill cut short: the checkpoint came before it.
                if resumed and distributed.value_of_first(self.log.holds(name, images)):
                    continue
                self._tell(name, look(self.trainer.averaged()))
        except signals.Interrupted:
            self._write(over=False, stop=True)
            return True
        return False

    def _sheet(self, denoiser: Callable) -> str:
        """Draw a sheet; its name in the folder of the run."""
        assert self.heldout.sheet
        name = f"sheets/{self.progress.images:012d}.png"
        with suppress(signals.Interrupted):
            if distributed.rank() == 0:
                self.heldout.sheet(denoiser, self.folder / name)
        distributed.check_interrupted()
        self.log.picture(self.progress.images, self.folder / name)
        return name

    def _tell(self, name: str, values: Any) -> None:
        """What a look has found goes to the log and, if it has numbers, to the screen."""
        images, seconds = self.progress.images, round(self._seconds(), 2)
        self.log.write(images=images, seconds=seconds, **{name: values})
        if name == "heldout_psnr":
            text = ", ".join(f"{family} {fixed(value)}" for family, value in values.items())
            self.log.say(f"{images:>10} images: held-out PSNR (dB) of the MMSE estimate: {text}")
        if name == "heldout_distance":
            for family, cell in values.items():
                text = ", ".join(f"{metric} {fixed(value)}" for metric, value in cell.items())
                self.log.say(f"{images:>10} images: held-out {family} {text}")

    # ---- files -----------------------------------------------------------------------------------

    def _write(self, over: bool, stop: bool) -> None:
        """Checkpoint and snapshots if they are due: copied here, written in a thread."""
        config, images = self.config, self.progress.images
        # What was learnt is safe before a long measurement begins.
        measuring = self.heldout.distances is not None and self._due(config.measure_every)
        checkpoint = self._due(config.checkpoint_every) or over or stop or measuring
        snapshot = bool(config.ema_sigma_rel) and (self._due(config.snapshot_every) or over)
        if (checkpoint or snapshot) and self.saved != images:
            self.progress.seconds = self._seconds()
            self._note_broken()
            progress, parts = self.trainer.state()
            self.log.sync()
            if distributed.rank() == 0:
                self._start_writing(progress, parts, checkpoint, snapshot)
            self.saved = images if checkpoint else self.saved
        if over:
            self.writing.wait()
            self.log.say(f"weights: {self.folder / WEIGHTS}")

    def _start_writing(
        self, progress: Progress, parts: Parts, checkpoint: bool, snapshot: bool
    ) -> None:
        config, summary = self.config, self._summary()
        if not checkpoint:
            parts = {name: part for name, part in parts.items() if name.startswith("power-")}
        copied = self.writing.copied(parts)

        def write() -> None:
            for name, part in copied.items():  # before an older checkpoint is pruned
                _check_finite(name, part, progress.images)
            if snapshot:
                for sigma_rel in config.ema_sigma_rel:
                    name = power_part(sigma_rel)
                    path = f"snapshots/{progress.images:012d}-{name}.safetensors"
                    self._export(path, copied[name], summary | {"sigma_rel": sigma_rel})
            if checkpoint:
                folder = self.folder / "checkpoints"
                save_checkpoint(
                    folder, progress, copied, config.keep_checkpoints, config.keep_every
                )
                self._export(WEIGHTS, copied["average"], summary)

        self.writing.run(write)

    def _export(self, name: str, tensors: Mapping[str, Tensor], summary: dict[str, Any]) -> None:
        """Write a weights file of these tensors into the folder of the run."""
        denoiser = parallel.denoiser_of(self.trainer.denoiser, tensors)
        save_weights(self.folder / name, denoiser, summary)

    def _summary(self) -> dict[str, Any]:
        config, progress = self.config, self.progress
        return {name: getattr(config, name) for name in _TOLD} | {
            "images": progress.images,
            "steps": progress.step,
            "seconds": round(self._seconds(), 1),
            "precision": self.trainer.precision,
            "data": config.data_class,
            "dataset": progress.origin and asdict(progress.origin.data),
            "skipped_steps": progress.skipped,
        }


def _check_finite(part: str, tensors: Mapping[str, Tensor], images: int) -> None:
    """Raise DivergedError if a tensor is not finite: it is never written."""
    for key, tensor in tensors.items():
        if not tensor.isfinite().all():
            raise DivergedError(
                f"'{key}' of the {part} is not finite after {images} images: lower the learning "
                "rate; what was written before stays"
            )
