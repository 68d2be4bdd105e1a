"""Processes of a group compute what one does; sharded models; a failure ends all of them."""

import dataclasses
import multiprocessing
import os
import signal
import socket
import time
from pathlib import Path

import pytest
import torch
from helpers import write_checkpoint
from processes import Processes, in_group
from torch import Tensor
from torch.distributed import TCPStore

from datautils import DataError
from datautils.loading import load_batches
from datautils.photos import Photos
from degradation import Problem, RandomDegradation
from networks import Denoiser, make_config
from runtime import distributed, signals
from runtime.errors import data_errors
from training.checkpoint import list_checkpoints
from training.config import TrainConfig
from training.data import step_samples
from training.log import read_log
from training.loop import Heldout, train
from training.trainer import Trainer

CPU = torch.device("cpu")
BATCH = 8


def settings(**overrides: object) -> TrainConfig:
    plain = {
        "preset": "tiny", "degradation": "RandomDegradation", "batch": BATCH, "duration": 4 * BATCH,
        "lr": 2e-3, "ramp": 0, "mmse_share": 0.3, "ema_halflife": 8, "noise_level": 0.05,
        "precision": "fp32", "log_every": BATCH, "checkpoint_every": BATCH, "workers": 0,
        "augment": 0.5, "clip": 0.5, "ema_sigma_rel": [0.1],
    }  # fmt: skip
    return TrainConfig.load(None, plain | overrides)


def make_trainer(dropout: float = 0.3, **overrides: object) -> Trainer:
    """A trainer of a tiny network all of whose weights take part, with dropout."""
    config = make_config("tiny")
    levels = tuple(dataclasses.replace(level, dropout=dropout) for level in config.levels)
    torch.manual_seed(0)
    denoiser = Denoiser(dataclasses.replace(config, levels=levels))
    with torch.no_grad():
        for p in denoiser.parameters():
            p.add_(0.03 * torch.randn(p.shape))
    return Trainer(settings(**overrides), denoiser, RandomDegradation(), CPU)


def steps(trainer: Trainer, count: int) -> list[float]:
    """The mean loss over all processes of some steps on the same images."""
    images = torch.stack([Photos(16, "train", size=BATCH)[i][0] for i in range(BATCH)])
    own = step_samples(0, BATCH)
    part = slice(own.start, own.stop)
    losses = []
    for _ in range(count):
        loss = trainer.step(images[part], torch.full((len(own),), -1), 0.0).item()
        losses.append(sum(distributed.gather(loss)) / distributed.world_size())
    return losses


# ---- the same numbers ----------------------------------------------------------------------------


def gradients() -> list:
    """Losses, gradients and weights of two steps."""
    trainer = make_trainer()
    taken: list[Tensor] = []
    step = trainer.optimizer.step

    def capture() -> None:
        taken.extend(p.grad.clone() for p in trainer.parameters if p.grad is not None)
        step()

    trainer.optimizer.step = capture  # type: ignore[method-assign]
    losses = steps(trainer, 2)
    return [torch.tensor(losses), taken, [p.detach().clone() for p in trainer.parameters]]


@pytest.fixture(scope="module")
def alone() -> list:
    return gradients()


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> list[list]:
    """What each of four processes finds: `gradients()` and `resumed()`."""
    folder = tmp_path_factory.mktemp("four")
    return in_group(4, lambda: [gradients(), resumed(folder)], folder / "result")


def test_processes_share_losses_and_gradients_with_one(alone, four):
    for (losses, taken, weights), _ in four:
        torch.testing.assert_close(losses, alone[0], rtol=1e-5, atol=1e-5)
        for one, other in zip(alone[1] + alone[2], taken + weights, strict=True):
            assert (other - one).norm() <= 1e-5 * one.norm() + 1e-7
        # Adam divides by the size of a gradient, so rounding of the first step grows in the second.
        first = len(taken) // 2
        for one, other in zip(alone[1][:first], taken[:first], strict=True):
            assert (other - one).norm() <= 2e-6 * one.norm() + 1e-7


def test_dropout_takes_part(alone):
    assert steps(make_trainer(dropout=0.0), 1)[0] != pytest.approx(alone[0][0].item(), rel=1e-5)


def resumed(folder: Path) -> list:
    """The weights of a trainer and of one that took over from its checkpoint."""
    whole, back = make_trainer(), make_trainer()
    steps(whole, 2)
    write_checkpoint(whole, folder / "checkpoints")
    back.resume(folder / "checkpoints")
    for trainer in (whole, back):
        steps(trainer, 1)
    return [[p.detach() for p in trainer.parameters] for trainer in (whole, back)]


def test_four_processes_go_on_from_a_checkpoint_bit_for_bit(four):
    """The sums of more than two numbers depend on their order."""
    for _, (whole, back) in four:
        assert all(torch.equal(a, b) for a, b in zip(whole, back, strict=True))


def test_recomputed_levels_drop_the_same_activations():
    trainers = [make_trainer(recompute=levels, clip=None) for levels in ((), (0, 1))]
    assert steps(trainers[0], 2) == steps(trainers[1], 2)


# ---- sharded models ------------------------------------------------------------------------------


def whole_state(trainer: Trainer) -> dict[str, dict[str, Tensor]]:
    return trainer.state()[1]


def assert_same_state(one: dict, other: dict, tol: float) -> None:
    assert one.keys() == other.keys()
    for part, tensors in one.items():
        assert tensors.keys() == other[part].keys()
        for name, tensor in tensors.items():
            torch.testing.assert_close(
                other[part][name].detach(), tensor.detach(), rtol=tol, atol=tol
            )


def test_sharded_checkpoints_interchange_with_whole_ones(tmp_path):
    def sharded() -> list:
        trainer = make_trainer(fsdp=True)
        held = sum(p.to_local().numel() for p in trainer.parameters)
        total = sum(p.numel() for p in trainer.parameters)
        losses = steps(trainer, 2)
        write_checkpoint(trainer, tmp_path / "sharded")
        other = make_trainer(fsdp=True)
        other.resume(tmp_path / "whole")
        return [held, total, losses, steps(other, 1), whole_state(other)]

    plain = make_trainer()
    before = steps(plain, 2)
    write_checkpoint(plain, tmp_path / "whole")
    results = in_group(2, sharded, tmp_path / "result")
    for held, total, losses, *_ in results:
        assert 0.45 < held / total < 0.55
        assert losses == pytest.approx(before, rel=1e-5)
    back = make_trainer()
    back.resume(tmp_path / "sharded")
    assert_same_state(whole_state(plain), whole_state(back), 1e-5)
    # And on: whole → sharded as sharded → whole goes on as if nothing had happened.
    after = steps(plain, 1)
    assert steps(back, 1) == pytest.approx(after, rel=1e-5)
    assert results[0][3] == pytest.approx(after, rel=1e-5)
    assert_same_state(whole_state(plain), results[0][4], 1e-5)


def test_a_sharded_run_leaves_what_any_other_does(tmp_path):
    def run() -> int:
        trainer = make_trainer(fsdp=True, batch_gpu=2, duration=2 * BATCH)
        train(trainer, Photos(16, "train", size=BATCH), tmp_path / "run")
        denoiser = trainer.averaged()
        for _ in range(distributed.rank()):  # each process can be at images of its own
            problem = Problem.without_measurement(1, (3, 16, 16))
            assert denoiser(torch.zeros(1, 3, 16, 16), 1.0, problem).isfinite().all()
        return trainer.progress.step

    assert in_group(2, run, tmp_path / "result") == [2, 2]
    whole = make_trainer(batch_gpu=2, duration=2 * BATCH)
    (tmp_path / "whole").mkdir()
    train(whole, Photos(16, "train", size=BATCH), tmp_path / "whole")
    back = make_trainer()
    back.resume(tmp_path / "run" / "checkpoints")
    assert_same_state(whole_state(whole), whole_state(back), 2e-5)


def test_a_model_is_shared_out_among_several_only():
    with pytest.raises(ValueError, match="torchrun"):
        make_trainer(fsdp=True)


# ---- starting again ------------------------------------------------------------------------------


def test_processes_that_are_started_again_know_nothing_of_those_before(tmp_path):
    """torchrun keeps one store: what the dead have left in it must not be believed."""
    store = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)

    def run() -> None:
        os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "MASTER_PORT": str(store.port)}
        with distributed.process_group(), distributed.Pulse() as pulse:
            pulse.beat(1.0)
            assert sum(distributed.gather(distributed.claim_failure())) == 1
            (tmp_path / f"{distributed.rank()}").touch()
            while True:
                pulse.beat(1.0)

    for _ in range(3):
        processes = Processes(run, count=2, errors=tmp_path / "errors.txt")
        end = time.monotonic() + 20
        while len(list(tmp_path.glob("[01]"))) < 2:
            assert processes.alive() and time.monotonic() < end, "processes wait for dead ones"
            time.sleep(0.01)
        processes.kill()
        for path in tmp_path.glob("[01]"):
            path.unlink()


def test_an_environment_of_half_a_launcher_is_refused_in_a_sentence(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end, distributed.process_group():
        pass
    assert end.value.code == 2
    assert "WORLD_SIZE is set" in capsys.readouterr().err


def test_a_port_that_is_taken_is_told_in_a_sentence(monkeypatch, capsys):
    with socket.socket() as other:
        other.bind(("", 0))
        other.listen()
        group = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (group | {"MASTER_PORT": str(other.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as end, distributed.process_group():
            pass
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: the processes cannot meet at 127.0.0.1, port ")
    assert "address already in use" in errors and errors.count("\n") == 1


# ---- failures ------------------------------------------------------------------------------------


class Broken(Photos):
    """An image of the second process cannot be read."""

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        if distributed.rank() == 1:
            raise self.error
        return super().__getitem__(index)


@pytest.mark.parametrize("error", [DataError("photo.png is damaged"), KeyError("our mistake")])
def test_a_process_that_fails_ends_all_and_its_error_comes_first(tmp_path, error):
    def run() -> None:
        dataset = Broken(16, "train", size=BATCH)
        dataset.error = error
        with distributed.process_group(), data_errors():
            train(make_trainer(), dataset, tmp_path / "run")

    (tmp_path / "run").mkdir()
    start = time.monotonic()
    processes = Processes(run, count=2, errors=tmp_path / "errors.txt")
    codes = processes.codes()
    assert time.monotonic() - start < 30
    lines = (tmp_path / "errors.txt").read_text().splitlines()
    lines = [line for line in lines if not line.startswith("training: ")]  # the bar
    assert lines[-1] == "process 0 ends because another one did"
    if isinstance(error, DataError):
        assert codes == [1, 2] and lines[0] == "error: photo.png is damaged" and len(lines) == 2
    else:
        assert codes == [1, 1] and "KeyError: 'our mistake'" in lines
        assert lines[0].startswith("Traceback") and "\n".join(lines).count("Traceback") == 1


def killed(process: multiprocessing.Process) -> None:
    process.kill()
    for _ in range(1000):
        time.sleep(0.01)


def test_a_loader_that_is_killed_while_something_else_is_done_is_told(capsys):
    """torch then raises its error wherever the main thread is: here beside the batches."""
    batches = load_batches(Photos(16, "train", size=BATCH), [[0], [1]], 1)
    next(batches)
    (loader,) = multiprocessing.active_children()
    with pytest.raises(SystemExit) as end, data_errors():
        killed(loader)
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: a process that loads images was killed")
    assert errors.count("\n") == 1


def on_gpu() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory.\nTried to allocate")


def on_cpu() -> None:
    torch.empty(2**50)  # more than a processor can address


@pytest.mark.parametrize("allocate", [on_gpu, on_cpu])
def test_too_little_memory_is_told_in_a_sentence(allocate, capsys):
    with pytest.raises(SystemExit) as end, data_errors():
        allocate()
    assert end.value.code == 2
    errors = capsys.readouterr().err
    assert errors.startswith("error: memory does not suffice") and errors.count("\n") == 1
    assert "--batch-gpu" in errors and "recompute" in errors


def test_an_error_of_our_own_is_left_as_it_is():
    with pytest.raises(RuntimeError, match="shapes"), data_errors():
        raise RuntimeError("shapes do not match")


def test_sigterm_during_a_measurement_ends_all_and_resuming_makes_up_for_it(tmp_path):
    """One process hears of it while all restore held-out images: the checkpoint comes first."""

    def run(asked: bool) -> None:
        def psnr(denoiser: object) -> dict[str, float]:
            if asked and distributed.rank() == 1 and trainer.progress.images == 2 * BATCH:
                os.kill(os.getpid(), signal.SIGTERM)
            distributed.check_interrupted()
            return {"Box": 10.0}

        with distributed.process_group(), data_errors():
            trainer = make_trainer(validate_every=2 * BATCH, checkpoint_every=100 * BATCH)
            if list_checkpoints(tmp_path / "checkpoints"):
                trainer.resume(tmp_path / "checkpoints")
            train(trainer, Photos(16, "train", size=BATCH), tmp_path, Heldout(psnr=psnr))

    def logged() -> list[int]:
        return [line["images"] for line in read_log(tmp_path) if "heldout_psnr" in line]

    assert Processes(run, True, count=2).codes() == [signals.RESUMABLE] * 2
    assert [int(p.name) for p in list_checkpoints(tmp_path / "checkpoints")] == [2 * BATCH]
    assert logged() == [0]
    assert Processes(run, False, count=2).codes() == [0, 0]
    assert logged() == [0, 2 * BATCH, 4 * BATCH]


def test_numbers_are_exchanged_a_step_late_and_the_largest_counts(tmp_path):
    def exchange() -> list:
        with distributed.Pulse() as pulse:
            rank = distributed.rank()
            return [list(pulse.beat(step * (rank == 1), rank == step)) for step in range(4)]

    results = in_group(2, exchange, tmp_path / "result")
    assert results[0] == results[1] == [[0, 0], [0, 1], [1, 1], [2, 0]]
    with distributed.Pulse() as pulse:
        assert list(pulse.beat(3.0, True)) == [3, 1]
