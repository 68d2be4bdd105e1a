"""`python -m benchmarks.adaptive`: rows of each image, means, a picture."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from benchmarks import adaptive, report


@pytest.mark.drawn
def test_rows_means_and_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adaptive, "FAMILIES", ("Box",))
    monkeypatch.setattr(adaptive, "STEPS", (2, 6))
    monkeypatch.setattr(adaptive, "SPREADS", (300.0,))
    for name in ("RESULTS", "DOCS"):
        monkeypatch.setattr(report, name, tmp_path)
    result = CliRunner().invoke(adaptive.main, ["--images=2", "--name=n"])
    assert result.exit_code == 0, result.output
    found = json.loads((tmp_path / "n.json").read_text())
    assert len(found["rows"]) == 2 * 3 and len(found["curves"]) == 3
    few, many, own = found["curves"]
    assert (few["evaluations"], many["evaluations"]) == (2, 6)
    assert 3 <= own["least"] <= own["evaluations"] <= own["most"] <= 8
    images = [row["evaluations"] for row in found["rows"] if row["sampler"] == "adaptive"]
    assert own["evaluations"] == sum(images) / 2
    assert (tmp_path / "n.png").exists()
