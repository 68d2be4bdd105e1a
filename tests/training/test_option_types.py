"""Options of classes are read by the types that the classes declare, never by YAML's guesses."""

from pathlib import Path
from typing import Any

import pytest
from runner import Runner

import train
from datautils import get_dataset
from training.config import TrainConfig

MODULE = """
from datautils.photos import Photos


class Told(Photos):
    def __init__(self, split: str, config: str, deep: bool = False, label: str | None = None):
        self.told = config, deep, label
        super().__init__(resolution=16, split=split, size=4)
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "told.py").write_text(MODULE)


@pytest.mark.parametrize(
    ("text", "config"),
    [("no", "no"), ("2024", "2024"), ("1e3", "1e3"), ("2024-05-01", "2024-05-01"), ("~x", "~x")],
)
@pytest.mark.parametrize("written", ["file", "option"])
def test_texts_stay_texts(text: str, config: str, written: str) -> None:
    words = ["--data=told.Told", "--preset=tiny", "--dry-run"]
    if written == "file":
        Path("a.yaml").write_text(f"data: {{config: {text}, deep: true, label: null}}\n")
        words += ["--config=a.yaml"]
    else:
        words += [f"--data-opt=config={text}", "--data-opt=deep=true"]
    result = Runner().invoke(train.main, words)
    assert result.exit_code == 0, (result.stderr, result.exception)
    Path("resolved.yaml").write_text(result.stdout)
    data = get_dataset("told.Told", "train", **TrainConfig.load(Path("resolved.yaml"), {}).data)
    assert data.told == (config, True, None)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"resolution": 16, "size": "4Ki"}, {"resolution": "16", "size": "4Ki"}),
        ({"labels": [1, 2.5]}, {"labels": ("1", "2.5")}),
    ],
)
def test_a_run_goes_on_whichever_form_its_options_have(first: Any, second: Any) -> None:
    now, then = TrainConfig(data=first), TrainConfig(data=second)
    assert now.fixed() == then.fixed()
    now.check_resumes(then)
    with pytest.raises(ValueError, match="data cannot change"):
        TrainConfig(data=first | {"resolution": 17}).check_resumes(then)


def test_settings_of_a_file_are_read_by_their_types() -> None:
    Path("a.yaml").write_text(
        "seed: 010\ninit: no\nlr: 1e-4\nbetas: [0.5, .9]\nnetwork: {patch: 4}\n"
    )
    config = TrainConfig.load(Path("a.yaml"), {})
    assert (config.seed, config.init, config.lr, config.betas) == (10, "no", 1e-4, (0.5, 0.9))
    assert config.network == {"patch": 4}
    Path("a.yaml").write_text("P_mean: 1:30\n")  # 90 by YAML's guess
    with pytest.raises(ValueError, match="P_mean='1:30' must be a number"):
        TrainConfig.load(Path("a.yaml"), {})
