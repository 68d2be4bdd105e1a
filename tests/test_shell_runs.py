"""Printed commands that are cheap do what they are printed for, with small sizes added."""

from pathlib import Path

import pytest
from runner import Runner
from shell_lines import command_of, lay_out, printed

TRAINING = (
    "--batch=4", "--batch-gpu=4", "--duration=8", "--precision=fp32", "--workers=0",
    "--validate-every=0",
)  # fmt: skip
# Commands that follow one another, the words added to each, and a file that it leaves.
RUNS = {
    "restoring": [
        ("restore.py --image photo.png", ["--samples=1"], "restored/sample-1.png"),
        ("restore.py --image damaged.png", ["--samples=0"], "repaired/mmse.png"),
    ],
    "a data set": [
        ("-m datautils.prepare --source FFHQ_FOLDER", ["--workers=0"], "data/ffhq64.zip"),
        (
            "train.py --data FFHQ64 --name invfusion",
            [*TRAINING, "--preset=tiny", "--log-every=4"],
            "experiments/invfusion/weights.safetensors",
        ),
        (
            "calculate_metrics.py gen --net experiments/invfusion",
            ["--sampler=mmse", "--workers=0"],
            "experiments/invfusion/heldout/metrics.json",
        ),
        ("-m training.curves", [], "curves.png"),
    ],
    "own pictures": [
        (
            "train.py --data FOLDER",
            [*TRAINING, "--preset=tiny", "--name=own"],
            "experiments/own/weights.safetensors",
        ),
        ("train.py --resume FOLDER", [], "FOLDER/weights.safetensors"),
        (
            "calculate_metrics.py gen --net FOLDER/weights",
            ["--images=4", "--workers=0"],
            "FOLDER/heldout/metrics.json",
        ),
    ],
    "fine-tuning": [
        (
            "train.py --config configs/photos64-invfusion-eps.yaml --name mine",
            [*TRAINING, "--duration=4"],
            "experiments/mine/weights.safetensors",
        ),
        ("-m training.publish experiments/mine", [], "mine.safetensors"),
    ],
}


@pytest.mark.parametrize("name", RUNS)
def test_printed_commands_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lay_out()
    for run in ("RUN", "OTHER"):
        Path(run).symlink_to("experiments/invfusion")
    called = [line.called()[0] for line in printed() if line.words[0] in ("python", "torchrun")]
    for start, added, file in RUNS[name]:
        words = next((c for c in called if " ".join(c).startswith(start)), None)
        assert words, f"no page prints a command that starts with: {start}"
        command, rest = command_of(words)
        result = Runner().invoke(command, [*rest, *added])
        assert result.exit_code == 0, (words, result.output, result.exception)
        assert Path(file).is_file(), (words, result.output)
