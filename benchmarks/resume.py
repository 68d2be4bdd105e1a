"""Runs that are killed twenty times against runs that are not: `python -m benchmarks.resume`.

With one process and with two under `torchrun --max-restarts`, training is killed at random moments
(while it computes, while it writes a checkpoint, by SIGTERM, one worker alone) and started again by
the same command. Prints a table; benchmarks/results/resume.json says for every kill what it was and
whether weights, checkpoints, snapshots and log ended bit for bit like those of the run left alone.
"""

import contextlib
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors.torch import load_file

from runtime.environment import environment
from runtime.files import replacing
from runtime.tables import table
from training.checkpoint import list_checkpoints
from training.log import read_log

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results" / "resume.json"
KILLS = 20
PATIENCE = 60  # seconds in which a start must get to its first checkpoint
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
        self.folder, self.processes = folder, processes
        launcher = ["-m", "torch.distributed.run", "--standalone", "--max-restarts=100"]
        launcher += [f"--nproc_per_node={processes}"]
        config = folder.parent / "config.yaml"
        self.command = [
            sys.executable, *(launcher if processes > 1 else []), str(ROOT / "train.py"),
            "--config", str(config), "--outdir", str(folder), "--keep-going",
        ]  # fmt: skip
        self.process: subprocess.Popen | None = None
        self.stalls = 0  # starts that got nowhere, as when gloo finds no connection

    def start(self) -> subprocess.Popen:
        """Start, or go on, in a session of its own, unless it is still running."""
        if self.process is None or self.process.poll() is not None:
            quiet = {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
            with (self.folder.parent / f"{self.folder.name}.txt").open("a") as output:
                self.process = subprocess.Popen(
                    self.command, env=os.environ | quiet, stdout=output, stderr=output,
                    start_new_session=True,
                )  # fmt: skip
        return self.process

    def newest(self) -> int:
        """Images of the newest checkpoint."""
        found = list_checkpoints(self.folder / "checkpoints")
        return int(found[-1].name) if found else 0

    def kill(self, kind: str, chance: random.Random) -> dict[str, Any] | None:
        """Let the run get on by a checkpoint, then kill it; None where it ended before."""
        process, before, began = self.start(), self.newest(), time.monotonic()
        while self.newest() <= before:
            if process.poll() is not None:
                return None
            if time.monotonic() - began > PATIENCE:
                self.stalls += 1
                self.end()
                process, began = self.start(), time.monotonic()
            time.sleep(0.005)
        time.sleep(chance.uniform(0, 0.7))
        if kind == "SIGKILL while writing":
            while not list(self.folder.glob("checkpoints/.*.partial")):
                if process.poll() is not None:
                    return None
        if process.poll() is not None:
            return None
        start = time.monotonic()
        if kind == "SIGTERM":
            process.terminate()
        elif kind == "one worker lost":
            os.kill(chance.choice(_workers(process.pid)), signal.SIGKILL)
        else:
            self.end()
        record = {"kind": kind, "checkpoint": self.newest()}
        if kind != "one worker lost":  # torchrun starts both workers again by itself
            record |= {"exit_code": process.wait(), "seconds": time.monotonic() - start}
        return record

    def end(self) -> None:
        """SIGKILL for all processes, as when the machine is lost."""
        assert self.process
        workers = _workers(self.process.pid) if self.processes > 1 else []
        for pid in (self.process.pid, *workers):
            os.kill(pid, signal.SIGKILL)
        self.process.wait()

    def finish(self) -> int:
        """Let the run come to its end; its exit code."""
        while True:
            try:
                return self.start().wait(timeout=4 * PATIENCE)
            except subprocess.TimeoutExpired:
                self.stalls += 1
                self.end()


def _workers(agent: int) -> list[int]:
    """The training processes of torchrun, waited for while it starts them."""
    while True:
        found = []
        with contextlib.suppress(OSError):  # one has just ended
            lists = [path.read_text() for path in Path(f"/proc/{agent}/task").glob("*/children")]
            for pid in " ".join(lists).split():
                if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                    found.append(int(pid))
        if found:
            return found
        time.sleep(0.01)


def differences(one: Path, other: Path) -> Iterator[str]:
    """What is not the same, bit for bit, in two runs, the clock's fields left out."""
    files = [
        sorted(str(p.relative_to(run)) for p in run.rglob("*.safetensors")) for run in (one, other)
    ]
    if files[0] != files[1]:
        yield f"files {sorted(set(files[0]) ^ set(files[1]))}"
    for name in set(files[0]) & set(files[1]):
        a, b = load_file(one / name), load_file(other / name)
        if a.keys() != b.keys() or not all(torch.equal(a[key], b[key]) for key in a):
            yield name
    lines = [
        [{k: v for k, v in line.items() if k not in CLOCK} for line in read_log(run)]
        for run in (one, other)
    ]
    if lines[0] != lines[1]:
        yield f"log.jsonl, {len(lines[0])} and {len(lines[1])} lines"


def compare(home: Path, processes: int) -> dict[str, Any]:
    """Kill one run KILLS times, leave another alone, and compare them."""
    whole, killed = (Run(home / f"{name}-{processes}", processes) for name in ("whole", "killed"))
    if whole.finish():
        raise RuntimeError((home / f"{whole.folder.name}.txt").read_text()[-2000:])
    kinds = ["SIGKILL while computing", "SIGKILL while writing", "SIGTERM"]
    kinds += ["one worker lost"] if processes > 1 else []
    chance, records = random.Random(processes), []
    for kind in itertools.islice(itertools.cycle(kinds), KILLS):
        record = killed.kill(kind, chance)
        if record is None:
            break
        records.append(record)
    code = killed.finish()
    return {
        "processes": processes,
        "kills": records,
        "exit_code": code,
        "starts_that_stalled": killed.stalls,
        "lines_of_log": len(read_log(whole.folder)),
        "files_compared": len(list(whole.folder.rglob("*.safetensors"))),
        "differences": list(differences(whole.folder, killed.folder)),
    }


def main() -> None:
    """Compare with one process and with two."""
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        (home / "config.yaml").write_text(yaml.safe_dump(CONFIG))
        runs = [compare(home, processes) for processes in (1, 2)]
    rows = []
    for run in runs:
        for kind in dict.fromkeys(kill["kind"] for kill in run["kills"]):
            those = [kill for kill in run["kills"] if kill["kind"] == kind]
            slowest = max((kill["seconds"] for kill in those if "seconds" in kill), default=None)
            codes = sorted({kill["exit_code"] for kill in those if "exit_code" in kill})
            rows.append([run["processes"], kind, len(those), ", ".join(map(str, codes)), slowest])
    print(
        table(["processes", "killed by", "times", "exit code", "s until it ended, at most"], rows)
    )
    for run in runs:
        outcome = "; ".join(run["differences"]) or "none"
        print(
            f"{run['processes']} processes, {len(run['kills'])} kills, {run['files_compared']} "
            f"files and {run['lines_of_log']} lines of log compared: differences: {outcome}; "
            f"{run['starts_that_stalled']} starts stalled"
        )
    with replacing(RESULTS) as path:
        record = {"config": CONFIG, "runs": runs, "environment": environment()}
        path.write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
