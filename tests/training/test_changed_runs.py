"""A run goes on with what it was begun with, or says what has changed."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from calling import FAST, call
from click.testing import Result
from PIL import Image
from runner import Runner

import train
from networks import read_summary
from training.checkpoint import find_checkpoint, list_checkpoints
from training.config import TrainConfig

TRAIN = [
    "--preset=tiny", "--data=ImageDir", "--data-opt=path=data", "--data-opt=size=16", "-b2",
    "--duration=2", "--ramp=0", "--fp32", "--workers=0", "--validate-every=0",
    "--degradation=MissingPatches", "--outdir=run",
]  # fmt: skip


def picture(path: Path, level: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(path)


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data and a run of one step."""
    home = tmp_path_factory.mktemp("begun")
    for i, name in enumerate(["cat/0", "cat/1", "dog/0", "dog/1"]):
        picture(home / "data" / f"{name}.png", 40 * i)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        result = Runner().invoke(train.main, TRAIN)
    assert result.exit_code == 0, result.stderr
    return home


@pytest.fixture
def home(begun: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, to be changed."""
    folder = tmp_path / "home"
    shutil.copytree(begun, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return folder


def resume(*options: str) -> Result:
    return Runner().invoke(train.main, ["--resume=run", "--duration=4", *options])


def assert_refused(result: Result, *words: str) -> None:
    """In a sentence, and nothing was trained."""
    assert result.exit_code == 2 and isinstance(result.exception, SystemExit), result.output
    sentence = result.stderr.strip().splitlines()[-1]
    for word in ("error: ", *words):
        assert word in sentence
    assert [path.name for path in list_checkpoints(Path("run/checkpoints"))] == ["000000000002"]


def assert_goes_on(result: Result) -> None:
    assert result.exit_code == 0, result.output
    assert list_checkpoints(Path("run/checkpoints"))[-1].name == "000000000004"


def edited(**values: object) -> None:
    path = Path("run/config.yaml")
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | values))


# ---- data ----------------------------------------------------------------------------------------


def test_the_data_stand_in_the_record_the_checkpoint_and_the_weights(home):
    (start,) = map(json.loads, Path("run/starts.jsonl").read_text().splitlines())
    assert start["data"]["images"] == 4 and start["data"]["classes"] == ["cat", "dog"]
    assert read_summary("run/weights.safetensors")["dataset"] == start["data"]
    origin = find_checkpoint(Path("run/checkpoints"))[1].origin
    assert origin.data.digest == start["data"]["digest"] and origin.settings["lr"] == 5e-5


def test_a_picture_more_is_noticed_and_may_be_accepted(home):
    picture(home / "data/dog/2.png", 9)
    assert_refused(resume(), "has 5 images", "trained on 4 images", "--accept-changes")
    assert_goes_on(resume("--accept-changes"))
    assert read_summary("run/weights.safetensors")["dataset"]["images"] == 5


def test_a_class_of_another_name_is_noticed(home):
    (home / "data/cat").rename(home / "data/tomcat")
    assert_refused(resume(), "the classes dog, tomcat", "the classes cat, dog")


def test_moved_data_are_the_same(home):
    (home / "data").rename(home / "elsewhere")
    assert_goes_on(resume("--data-opt=path=elsewhere"))


def test_a_checkpoint_of_an_older_version_goes_on_with_a_warning(home):
    path = Path("run/checkpoints/000000000002/state.json")
    state = json.loads(path.read_text())
    del state["progress"]["origin"]
    state["progress"]["meters"] = [[0.0, 0.0, 0.0, 0.0, 0.0]]
    path.write_text(json.dumps(state))
    result = resume()
    assert_goes_on(result)
    assert "warning: " in result.stdout and "of an older version" in result.stdout


def test_gen_warns_if_the_classes_are_others(begun, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for name in ("cat", "mouse"):
        picture(tmp_path / "data" / name / "0.png", 7)
    words = [
        "gen", "--net", begun / "run/weights.safetensors", "--data", "ImageDir", *FAST,
        "--data-opt", "size=16", "--degradation", "MissingPatches", "--split", "all",
    ]  # fmt: skip
    for data, warned in ((begun / "data", False), (tmp_path / "data", True)):
        outdir = tmp_path / f"out-{warned}"
        result = call(tmp_path, *words, "--data-opt", f"path={data}", "--outdir", outdir)
        assert result.exit_code == 0, result.output
        assert ("was trained on the classes cat, dog" in result.stderr) == warned


# ---- settings ------------------------------------------------------------------------------------


def test_a_config_edited_by_hand_is_noticed_and_may_be_accepted(home):
    edited(lr=0.25, log_every=2, keep_checkpoints=9)
    result = resume()
    assert_refused(result, "lr is 0.25 in config.yaml, and was 5e-05 in training")
    assert "log_every" not in result.stderr
    assert_goes_on(resume("--accept-changes"))
    assert find_checkpoint(Path("run/checkpoints"))[1].origin.settings["lr"] == 0.25


def test_settings_that_are_meant_to_change_may_be_edited(home):
    edited(log_every=2, keep_every=2, max_minutes=9, checkpoint_every=2)
    assert_goes_on(resume())


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"data_class": "Emoji"}, {"data_class": "datautils.emoji.Emoji"}),
        ({"degradation": "Box"}, {"degradation": "degradation.Box"}),
        (
            {"degradation": "RandomDegradation", "degradation_opt": {"members": "Box"}},
            {
                "degradation": "degradation.RandomDegradation",
                "degradation_opt": {"members": "degradation.Box"},
            },
        ),
        ({"data": {"path": "a", "size": 16}}, {"data": {"path": "b", "size": 16}}),
    ],
)
def test_the_same_under_another_name_resumes(one, other):
    TrainConfig(**one).check_resumes(TrainConfig(**other))
    for change in ({"seed": 1}, {"data": {"size": 17}}, {"data_class": "mine.Emoji"}):
        with pytest.raises(ValueError, match=f"{next(iter(change))} cannot change"):
            TrainConfig(**one | change).check_resumes(TrainConfig(**other))
