"""Progress of a run: a bar, JSON lines, and trackers if they are asked for."""

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from runtime import distributed
from runtime.files import replacing, writing
from runtime.progress import progress
from runtime.records import parse_json, plain
from training.config import TrainConfig
from training.trackers import flat, trackers

_SECONDS = 30.0  # between two lines of progress: a run may take days


class RunLog:
    """Progress bar and one JSON object a line in `log.jsonl`; nothing but on the first process."""

    def __init__(self, config: TrainConfig, folder: Path, images: int):
        """images: those seen by a run that goes on."""
        self.silent = silent = distributed.rank() != 0
        self.trackers = [] if silent else trackers(config, folder, images)
        self.path = Path(os.devnull) if silent else folder / "log.jsonl"
        lines = _whole_lines(self.path) if images else []
        # A resumed run goes on where its checkpoint was made: what came later is run again.
        self.before = [line for line in lines if line["images"] <= images]
        if not silent:
            with replacing(self.path) as temporary:
                temporary.write_text("".join(json.dumps(line) + "\n" for line in self.before))
        self.file = self.path.open("a")
        self.bar = progress(config.duration, "training", "images", silent, images, _SECONDS)

    def close(self) -> None:
        self.bar.close()
        self.file.close()
        for tracker in self.trackers:
            tracker.close()

    def holds(self, name: str, images: int) -> bool:
        """Whether a resumed run had logged such a value at this count; the first process knows."""
        return any(line["images"] == images and name in line for line in self.before)

    def advance(self, images: int, fraction: float) -> None:
        """Move the bar on by a step; `fraction` is the share of the run that is over."""
        self.bar.total = round((self.bar.n + images) / max(fraction, 1e-9))
        self.bar.update(images)

    def write(self, *, images: int, **values: Any) -> None:
        line = plain({"images": images, **values})
        with writing(self.path):
            self.file.write(json.dumps(line, allow_nan=False) + "\n")
            self.file.flush()
        for tracker in self.trackers:
            tracker.write(images, dict(flat(values)))

    def picture(self, images: int, path: Path) -> None:
        for tracker in self.trackers:
            tracker.picture(images, path)

    def sync(self) -> None:
        """Write the lines to the disk, so that the log is never behind a checkpoint."""
        if not self.silent:
            with writing(self.path):
                os.fsync(self.file.fileno())

    def show(self, **values: str) -> None:
        """Numbers beside the bar."""
        self.bar.set_postfix(values, refresh=False)

    def say(self, text: str) -> None:
        """A line above the bar."""
        with suppress(BrokenPipeError):
            if not self.silent:
                self.bar.write(text, file=sys.stdout)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of a run's `log.jsonl`: a kill may have cut one. ValueError without a log."""
    path = folder / "log.jsonl"
    values = _whole_lines(path)
    if not values and not (path.is_file() and path.stat().st_size == 0):
        raise ValueError(f"{folder} is no training run: it has no readable log.jsonl")
    return values


def _whole_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a log that can be read; none if there is no such file."""
    values = []
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        with suppress(ValueError):
            value = parse_json(line)
            if isinstance(value, dict) and type(value.get("images")) is int:
                values.append(value)
    return values
