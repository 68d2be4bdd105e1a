"""The training loop against the bare step: `python -m benchmarks.training`.

The bare step is `Trainer.step` on one batch that lies in memory. The loop adds what a run needs:
data, the log, agreement about the end; and checkpoints, which a thread writes. Every round is a run
of its own; steps of the same number do the same work, so each is compared with itself, by its
fastest of all rounds. Prints a table, writes benchmarks/results/training-DEVICE.json.
"""

import contextlib
import dataclasses
import io
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from datautils.photos import Photos
from degradation import RandomDegradation
from networks import Denoiser, make_config
from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table
from training.config import TrainConfig
from training.data import training_batches
from training.loop import train
from training.trainer import Trainer

RESULTS = Path(__file__).parent / "results"
SAVE = 8  # steps between checkpoints
WARM = 2  # steps that are not counted: allocations, caches


def make_trainer(config: TrainConfig, device: torch.device) -> Trainer:
    torch.manual_seed(0)
    denoiser = Denoiser(make_config(config.preset))
    return Trainer(config, denoiser, RandomDegradation(), device)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def bare(config: TrainConfig, steps: int, device: torch.device) -> list[float]:
    """Seconds of each step on a batch that lies in memory."""
    trainer = make_trainer(config, device)
    side = trainer.denoiser.config.image_shape[-1]
    dataset = Photos(side, "train")
    batch = next(training_batches(dataset, config.batch, config.seed, 0, 0))
    seconds = []
    for _ in range(steps):
        start = now(device)
        trainer.step(*batch, 0.5)
        seconds.append(now(device) - start)
    return seconds


def looped(config: TrainConfig, device: torch.device) -> list[float]:
    """Seconds of each turn of the loop."""
    trainer = make_trainer(config, device)
    side = trainer.denoiser.config.image_shape[-1]
    times: list[float] = []
    step = trainer.step

    def timed(*arguments: Any) -> torch.Tensor:
        times.append(now(device))
        return step(*arguments)

    trainer.step = timed  # type: ignore[method-assign]
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        train(trainer, Photos(side, "train"), Path(folder))
    return [b - a for a, b in itertools.pairwise(times)]


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--preset", default="small32")
@click.option("--batch", default=16)
@click.option("--steps", default=24, help="Steps of a round.")
@click.option("--rounds", default=4)
@click.option("--workers", default=1, help="Processes that load data in the loop.")
@click.option("--precision", default="fp32")
def main(preset: str, batch: int, steps: int, rounds: int, workers: int, precision: str) -> None:
    """Compare the loop with the bare step."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = TrainConfig(
        preset=preset, degradation="RandomDegradation", batch=batch, duration=batch * (steps + 1),
        lr=1e-4, ramp=0, precision=precision, workers=workers, log_every=4 * batch,
        checkpoint_every=2**40, validate_every=0,
    )  # fmt: skip
    saving = dataclasses.replace(config, checkpoint_every=SAVE * batch)
    seconds: dict[str, list[list[float]]] = {"bare": [], "loop": [], "saving": []}
    for _ in range(rounds):
        seconds["bare"].append(bare(config, steps, device)[WARM:])
        seconds["loop"].append(looped(config, device)[WARM:])
        seconds["saving"].append(looped(saving, device)[WARM:])
    best = {
        name: sum(min(values) for values in zip(*runs, strict=True)) / (steps - WARM)
        for name, runs in seconds.items()
    }
    saves = len(range(SAVE * (WARM // SAVE + 1), steps + 1, SAVE))
    of_checkpoint = (best["saving"] - best["loop"]) * (steps - WARM) / saves
    overhead = best["loop"] / best["bare"] - 1
    rows = [
        ["bare step", 1000 * best["bare"], batch / best["bare"], None],
        ["loop", 1000 * best["loop"], batch / best["loop"], 100 * overhead],
        [
            f"loop, a checkpoint every {SAVE} steps",
            1000 * best["saving"],
            batch / best["saving"],
            100 * (best["saving"] / best["bare"] - 1),
        ],
    ]
    print(table(["", "ms a step", "images/s", "% over the bare step"], rows))
    print(f"a checkpoint costs the loop {1000 * of_checkpoint:.0f} ms")
    record = {
        "preset": preset, "batch": batch, "steps": steps, "rounds": rounds, "workers": workers,
        "precision": precision, "threads": torch.get_num_threads(), "seconds": seconds,
        "seconds_a_step": best, "overhead_of_the_loop": overhead,
        "seconds_of_a_checkpoint": of_checkpoint, "environment": environment(),
    }  # fmt: skip
    with replacing(RESULTS / f"training-{device.type}.json") as path:
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
