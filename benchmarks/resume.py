"""Runs that are killed twenty times against runs that are not: `python -m benchmarks.resume`.

With one process and with two under `torchrun --max-restarts`, training is killed at random moments
(while it computes, while it writes a checkpoint, by SIGTERM, one worker alone) and started again by
the same command. The result says for every kill what it was, and whether weights, checkpoints,
snapshots and log ended bit for bit like those of the run left alone. Needs Linux.
"""

import contextlib
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import torch
import yaml
from safetensors.torch import load_file

from benchmarks.report import ROOT, benchmark
from runtime.tables import table
from training.checkpoint import list_checkpoints
from training.log import read_log

PROCESSES = (1, 2)
KINDS = ("SIGKILL while computing", "SIGKILL while writing", "SIGTERM", "one worker lost")
CLOCK = {"seconds", "images_per_second"}  # the only fields of the log that may differ
CONFIG = {
    "preset": "tiny", "data": {"resolution": 16}, "degradation": "RandomDegradation", "batch": 4,
    "duration": 1600, "lr": 2e-3, "ramp": 64, "cooldown": 0.5, "noise_level": 0.05, "workers": 1,
    "ema_halflife": 64, "ema_ramp": 0, "precision": "bf16", "log_every": 12, "augment": 0.3,
    "checkpoint_every": 8, "keep_checkpoints": 3, "ema_sigma_rel": [0.05, 0.1], "clip": 1.0,
    "snapshot_every": 400, "validate_every": 600, "validate_images": 4,
}  # fmt: skip


class Run:
    """A training run in its folder, by `train.py` alone or by torchrun."""

    def __init__(self, folder: Path, processes: int):
        self.folder = folder
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=100",
                    f"--nproc_per_node={processes}"]  # fmt: skip
        self.command = [
            sys.executable, *(launcher if processes > 1 else []), str(ROOT / "train.py"),
            "--config", str(folder.parent / "config.yaml"), "--outdir", str(folder), "--keep-going",
        ]  # fmt: skip

    def start(self) -> subprocess.Popen:
        """Start, or go on, in a session of its own."""
        quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
        with self.folder.with_suffix(".txt").open("a") as output:
            return subprocess.Popen(
                self.command, env=os.environ | quiet, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip

    def newest(self) -> int:
        """Images of the newest checkpoint."""
        found = list_checkpoints(self.folder / "checkpoints")
        return int(found[-1].name) if found else 0

    def writing(self) -> bool:
        """Whether a checkpoint is being written."""
        return any(self.folder.glob("checkpoints/.*.partial"))

    def finish(self) -> None:
        """Let the run come to its end."""
        if self.start().wait():
            raise RuntimeError(self.folder.with_suffix(".txt").read_text()[-2000:])

    def killed(self, kinds: Sequence[str], chance: random.Random) -> Iterator[dict[str, Any]]:
        """Kill the run in these ways, each after one more checkpoint, for as long as it lasts."""
        process = self.start()
        for kind in kinds:
            if process.poll() is not None:
                process = self.start()
            before = self.newest()
            if not waited(process, lambda before=before: self.newest() > before):
                return
            time.sleep(chance.uniform(0, 0.7))
            ready = self.writing if "writing" in kind else lambda: True
            if not waited(process, ready):
                return
            yield {"kind": kind, "checkpoint": self.newest(), **end(process, kind, chance)}
        process.wait()


def waited(process: subprocess.Popen, ready: Any) -> bool:
    """Wait until `ready()`; False if the process ends before."""
    while process.poll() is None:
        if ready():
            return True
        time.sleep(0.002)
    return False


def end(process: subprocess.Popen, kind: str, chance: random.Random) -> dict[str, Any]:
    """Kill a run; its exit code and the seconds until it ended, but where it goes on by itself."""
    start = time.monotonic()
    if kind == "one worker lost":  # torchrun starts both workers again
        os.kill(chance.choice(workers(process.pid)), signal.SIGKILL)
        return {}
    if kind == "SIGTERM":
        process.terminate()
    else:  # all processes, as when the machine is lost
        for pid in (process.pid, *workers(process.pid)):
            os.kill(pid, signal.SIGKILL)
    return {"exit_code": process.wait(), "seconds": time.monotonic() - start}


def workers(agent: int) -> list[int]:
    """The training processes that torchrun has started; none of a run without it."""
    if b"torch.distributed.run" not in Path(f"/proc/{agent}/cmdline").read_bytes():
        return []
    while True:  # while it starts them, there are none
        with contextlib.suppress(OSError):  # one has just ended
            lists = [path.read_text() for path in Path(f"/proc/{agent}/task").glob("*/children")]
            pids = [int(pid) for pid in " ".join(lists).split()]
            found = [i for i in pids if b"train.py" in Path(f"/proc/{i}/cmdline").read_bytes()]
            if found:
                return found
        time.sleep(0.01)


def differences(one: Path, other: Path) -> Iterator[str]:
    """What is not the same, bit for bit, in two runs, the clock's fields left out."""
    names, logs = [], []
    for run in (one, other):
        names.append({str(path.relative_to(run)) for path in run.rglob("*.safetensors")})
        logs.append([{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(run)])
    yield from names[0] ^ names[1]
    for name in names[0] & names[1]:
        a, b = load_file(one / name), load_file(other / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            yield name
    if logs[0] != logs[1]:
        yield "log.jsonl"


def compare(home: Path, processes: int, kills: int) -> dict[str, Any]:
    """Kill one run, leave another alone, and compare them."""
    whole, killed = (Run(home / f"{name}-{processes}", processes) for name in ("whole", "killed"))
    whole.finish()
    kinds = itertools.cycle(KINDS if processes > 1 else KINDS[:3])
    records = list(killed.killed(list(itertools.islice(kinds, kills)), random.Random(processes)))
    killed.finish()
    return {
        "processes": processes,
        "kills": records,
        "lines_of_log": len(read_log(whole.folder)),
        "files_compared": len(list(whole.folder.rglob("*.safetensors"))),
        "differences": list(differences(whole.folder, killed.folder)),
    }


def kill_rows(run: dict[str, Any]) -> Iterator[list[Any]]:
    """How often a run was killed in each way, and how it ended."""
    for kind in KINDS:
        those = [kill for kill in run["kills"] if kill["kind"] == kind]
        ended = [kill for kill in those if "seconds" in kill]
        codes = ", ".join(sorted({str(kill["exit_code"]) for kill in ended}))
        slowest = max((kill["seconds"] for kill in ended), default=None)
        if those:
            yield [run["processes"], kind, len(those), codes, slowest, len(run["differences"])]


@benchmark()
@click.option("--kills", type=click.IntRange(1), default=20, help="Of each run.")
def main(kills: int) -> Any:
    """Compare runs of one process and of two."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        runs = [compare(Path(folder), processes, kills) for processes in PROCESSES]
    headers = ["processes", "killed by", "times", "exit code", "s to its end, at most",
               "differences"]  # fmt: skip
    text = table(headers, [row for run in runs for row in kill_rows(run)])
    return text, {"config": CONFIG, "runs": runs}


if __name__ == "__main__":
    main()
