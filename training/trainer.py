"""One step of training, and the state that a checkpoint keeps of it.

Every random number follows from the run's seed, the step and the global number of the sample: not
from the number of processes, and a checkpoint needs no state of a generator.
"""

import copy
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from degradation import DrawnNoise, Draws, Family, Noise, derive_seed, make_noise
from metrics.pixel import to_float
from networks import Denoiser
from networks.dropout import seed_dropout
from networks.precision import DTYPES, resolve_precision
from runtime import distributed, signals
from runtime.errors import DivergedError
from training import parallel
from training.augment import augment
from training.checkpoint import Parts, Progress, check_origin, find_checkpoint, load_parts
from training.config import TrainConfig
from training.data import step_samples
from training.loss import LOSSES
from training.schedule import ema_decay, learning_rate, power_decay, power_exponent


class Trainer:
    """A denoiser, its averages, the optimiser, and one step of training them."""

    def __init__(
        self, config: TrainConfig, denoiser: Denoiser, family: Family, device: torch.device
    ):
        self.config, self.family, self.device = config, family, device
        self.noise = noise_of(config)
        self.progress = Progress()
        self.precision = resolve_precision(config.precision, device)
        self.scaler = _loss_scaler(self.precision, device)
        # Of loss and gradient norm since the last report: sums of finite values, and their numbers.
        self.sums = torch.zeros(4, dtype=torch.float64, device=device)
        # Steps without finite gradients: all, in a row, most in a row.
        self.skips = torch.zeros(3, dtype=torch.int64, device=device)

        self.denoiser = denoiser.to(device).train()
        self.average = copy.deepcopy(self.denoiser).eval().requires_grad_(False)
        levels = range(len(denoiser.config.levels))
        if wrong := [level for level in config.recompute if level not in levels]:
            raise ValueError(
                f"recompute={wrong[0]:g} is no level of the network {config.preset}: they are 0, "
                f"the finest, to {levels[-1]}"
            )
        self.denoiser.net.recompute = frozenset(map(int, config.recompute))
        if config.compile:  # the average stays as it is: it sees batches of many sizes
            self.denoiser.compile()
        self.loss_module = LOSSES[config.objective](self.denoiser).to(device)
        if config.fsdp:
            parallel.shard(self.loss_module)
            parallel.shard(self.average)
        self.loss = parallel.data_parallel(self.loss_module)
        # Only DDP puts gradients together in the order of the first backward pass.
        self._settled = not isinstance(self.loss, DistributedDataParallel)
        self.parameters = list(self.loss_module.parameters())
        self.weights = dict(self.denoiser.named_parameters())
        self.powers = {
            sigma_rel: {name: p.detach().clone() for name, p in self.weights.items()}
            for sigma_rel in config.ema_sigma_rel
        }
        # One kernel for all tensors, which clips and skips by itself.
        beta1, beta2 = config.betas
        self.optimizer = torch.optim.Adam(self.parameters, config.lr, (beta1, beta2), fused=True)
        for p in self.parameters:  # as the first step would, so that a checkpoint can fill it
            self.optimizer.state[p] = {
                "step": torch.zeros((), device=device),
                "exp_avg": torch.zeros_like(p),
                "exp_avg_sq": torch.zeros_like(p),
            }

    def step(self, images: Tensor, labels: Tensor, fraction: float) -> Tensor:
        """One optimiser step on this process's share of the batch; returns its mean loss `[]`.

        images: uint8 `[n, C, h, w]`, or float32 in [-1, 1]; fraction: share of the run that is
        over, in [0, 1]. Nothing here waits for the device (a family may, while it draws operators).
        """
        config, progress = self.config, self.progress
        self.loss_module.step = progress.step
        structure = self.family.structure(derive_seed(config.seed, "step", progress.step))
        samples = step_samples(progress.step, config.batch)
        seeds = [derive_seed(config.seed, "sample", progress.step, i) for i in samples]
        size = config.batch_gpu or len(images)
        if not self._settled:
            self._settle(images[:size], labels[:size])
        total = torch.zeros((), device=self.device)
        for start in range(0, len(images), size):
            part = slice(start, start + size)
            with parallel.accumulating(self.loss, last=start + size >= len(images)):
                loss = self._loss(images[part], labels[part], structure, seeds[part])
                mean = loss.sum() / len(images)
                self.scaler.scale(mean).backward()
            total += mean.detach()
        progress.step += 1
        progress.images += config.batch
        self._update(total, fraction)
        return total

    def means(self) -> tuple[float, float]:
        """Mean loss and gradient norm of the steps since it was asked, NaN if none was finite."""
        loss, norm = (self.sums[:2] / self.sums[2:]).tolist()
        self.sums.zero_()
        return loss, norm

    def _settle(self, images: Tensor, labels: Tensor) -> None:
        """A backward pass, always the same, in which DDP orders the gradients; no weight changes.

        Else the first step after a resume would add them up in another order than before.
        """
        structure = self.family.structure(derive_seed(self.config.seed, "settle"))
        self._loss(images, labels, structure, list(range(len(images)))).sum().backward()
        self.optimizer.zero_grad()
        self._settled = True

    def _loss(self, images: Tensor, labels: Tensor, structure: Any, seeds: list[int]) -> Tensor:
        """Loss `[n]` of images as in `step`; all that is random follows from their seeds."""
        config = self.config
        clean = to_float(images.to(self.device, non_blocking=True))
        labels = labels.to(self.device, non_blocking=True)
        draws = Draws(seeds, self.device)
        augment_labels = None
        if config.augment:
            clean, augment_labels = augment(clean, Draws(seeds), config.augment)
        shape = self.denoiser.config.image_shape
        operator = self.family.sample(shape, structure, seeds, self.device)
        hidden = draws.uniform((), "label dropout") < config.label_dropout
        problem = self.noise.measure(operator, clean, draws, torch.where(hidden, -1, labels))
        sigma = self.loss_module.levels(draws, config)
        noise = self.loss_module.noise(draws)
        seed_dropout(self.denoiser, seeds)
        with self.autocast():
            return self.loss(clean, sigma, noise, problem, augment_labels)

    def _update(self, loss: Tensor, fraction: float) -> Tensor:
        """Step of the optimiser and the averages. Takes the step's loss, for the report, and
        returns the norm of the gradients; both `[]`."""
        config, optimizer = self.config, self.optimizer
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(config, self.progress.images, fraction)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = parallel.whole(torch.nn.utils.get_total_norm(gradients))
        # A norm beyond float32 is as bad as a gradient that is not finite: the scaler skips both.
        torch._foreach_mul_(
            parallel.local(gradients), torch.where(norm.isfinite(), 1.0, math.nan).to(norm)
        )
        norm = norm / self.scaler.scale(torch.ones_like(norm))
        self.scaler.unscale_(optimizer)
        if config.clip:  # a fused optimiser divides by this, so that nothing is waited for
            optimizer.grad_scale = (norm / config.clip).clamp(min=1)  # type: ignore[attr-defined]
        self.scaler.step(optimizer)
        self.scaler.update()
        optimizer.zero_grad()
        self._count(torch.stack((loss, norm)).double())
        self._average()
        return norm

    @torch.no_grad()
    def _average(self) -> None:
        """average ← β·average + (1 − β)·weights in place, for the averages of all widths."""
        images, config = self.progress.images, self.config
        weights = parallel.local(self.weights.values())
        average, decay = parallel.local(self.average.parameters()), ema_decay(config, images)
        torch._foreach_lerp_(average, weights, 1 - decay)
        for sigma_rel, power in self.powers.items():
            decay = power_decay(images, batch=config.batch, exponent=power_exponent(sigma_rel))
            torch._foreach_lerp_(parallel.local(power.values()), weights, 1 - decay)

    def _count(self, values: Tensor) -> None:
        """values: loss and gradient norm of a step."""
        finite = values.isfinite()
        self.sums += torch.cat((torch.where(finite, values, 0), finite.double()))
        skipped, row, most = self.skips.unbind()
        row = torch.where(finite[1], 0, row + 1)
        self.skips = torch.stack((skipped + ~finite[1], row, torch.maximum(most, row)))
        if self.progress.step % self.config.max_skipped == 0:
            self.check_skips()

    def check_skips(self) -> None:
        """Bring the counters up to date, which waits for the device.

        Raises DivergedError after more than `max_skipped` steps in a row without finite gradients;
        it is found out with the next report, and at the latest after as many steps again.
        """
        self.progress.skipped, self.progress.skipped_in_a_row, most = self.skips.tolist()
        if most > self.config.max_skipped:
            raise DivergedError(
                f"gradients were not finite for {most} steps in a row, before step "
                f"{self.progress.step}: lower the learning rate or use bf16 or fp32; the last "
                "checkpoint is of the weights before"
            )

    def autocast(self) -> torch.autocast:
        """The precision of the network's arithmetic."""
        dtype = DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype, enabled=dtype != torch.float32)

    def state(self) -> tuple[Progress, Parts]:
        """Counters and whole tensors, those on the first process alone; all have to ask."""
        self.check_skips()
        progress = copy.deepcopy(self.progress)
        scale = self.scaler.state_dict()
        progress.scaler = {"scale": scale["scale"], "good": scale["_growth_tracker"]}
        progress.meters = distributed.gather(self.sums.tolist())
        return progress, {name: self._whole(part) for name, part in self._parts().items()}

    def _parts(self) -> Parts:
        """What a checkpoint keeps, by part and name: the tensors that are in use, no copies."""
        moments = self.optimizer.state_dict()["state"]
        parts = {
            "model": self.loss_module.state_dict(),
            "average": self.average.state_dict(),
            "optimizer": {f"{i}/{key}": t for i, own in moments.items() for key, t in own.items()},
        }
        for sigma_rel, power in self.powers.items():  # with the buffers of the network
            parts[power_part(sigma_rel)] = self.denoiser.state_dict() | power
        return parts

    def _whole(self, part: Mapping[str, Tensor]) -> dict[str, Tensor]:
        kept = {}
        for name, tensor in part.items():
            full = parallel.whole(tensor)
            if distributed.rank() == 0:
                # A model that is shared out may be too large for one device, not for the host.
                kept[name] = full.cpu() if isinstance(tensor, DTensor) else full
        return kept

    def resume(self, folder: Path, accept_changes: bool = False) -> None:
        """Go on from the newest sound checkpoint below `folder`, which the first process finds.

        Raises ValueError if there is none, or, unless accept_changes, if the run was begun with
        another origin than that of `progress`; and OSError on a process that cannot read it.
        """
        found: Any = None
        origin = self.progress.origin
        if distributed.rank() == 0:
            try:
                found = find_checkpoint(folder)
                before = found[1].origin
                if before and origin and not accept_changes:
                    check_origin(before, origin)
            except (ValueError, OSError) as error:
                found = str(error)
        found = distributed.value_of_first(found)
        if isinstance(found, str):
            raise ValueError(found)
        path, self.progress, warnings = found
        if origin and not self.progress.origin:
            warnings.append(
                f"{path} is of an older version: it does not say with which data and settings the "
                "run was begun"
            )
        self.progress.origin = origin
        try:
            parts = load_parts(path)
        except OSError as unseen:
            raise OSError(
                f"process {distributed.rank()} cannot read the checkpoint {path} that the first "
                f"has found ({unseen.strerror}): all machines must see the folder of the run"
            ) from unseen
        self._load(path, parts)
        if distributed.rank() == 0:
            for warning in warnings:
                print(f"warning: {warning}", flush=True)

    def _load(self, path: Path, parts: Parts) -> None:
        try:
            for name, part in self._parts().items():
                parallel.fill(part, parts[name])
        except (ValueError, KeyError):
            raise ValueError(
                f"the checkpoint {path} belongs to a network of another architecture"
            ) from None
        progress = self.progress
        if progress.scaler:
            scale = progress.scaler.get("scale", 1.0) if self.precision == "fp16" else 1.0
            kept = {"scale": scale, "_growth_tracker": int(progress.scaler.get("good", 0))}
            self.scaler.load_state_dict(self.scaler.state_dict() | kept)
        row = progress.skipped_in_a_row
        self.skips.copy_(torch.tensor([progress.skipped, row, row]))
        if len(progress.meters) == distributed.world_size():  # else the report starts anew
            own = progress.meters[distributed.rank()][:4]  # older versions wrote one more
            self.sums.copy_(torch.tensor(own, dtype=torch.float64))

    def averaged(self) -> Callable:
        """The averaged denoiser (x, σ, problem) → estimate, in the precision of training.

        It raises Interrupted on a process to which a signal to end has come, so that no restoration
        of many evaluations is waited for; `check_interrupted` then tells the others. All processes
        have to ask, and each then holds all weights: they can be at different images.
        """
        average: nn.Module = self.average
        if self.config.fsdp:
            tensors = {name: parallel.whole(t) for name, t in self.average.state_dict().items()}
            average = parallel.denoiser_of(self.denoiser, tensors)

        def estimate(x: Tensor, sigma: Tensor | float, problem: Any) -> Tensor:
            if signals.asked_to_end():
                raise signals.Interrupted
            with self.autocast():
                return average(x, sigma, problem)

        return estimate


def _loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Dynamic loss scaling for fp16, else by 1; steps without finite gradients are left out."""
    scaler = torch.amp.GradScaler(device.type, init_scale=65536.0 if precision == "fp16" else 1.0)
    if precision != "fp16":
        scaler.set_growth_factor(1.0)
        scaler.set_backoff_factor(1.0)
    return scaler


def noise_of(config: TrainConfig) -> Noise:
    """The noise of a run's measurements."""
    if config.noise_range:
        lowest, highest = config.noise_range
        return DrawnNoise(lowest, highest, config.clean_share)
    return make_noise(config.noise_level, config.poisson_peak)


def power_part(sigma_rel: float) -> str:
    """Name of the part of a checkpoint, and of the snapshots, that hold an average."""
    return f"power-{sigma_rel:g}"
