"""Options and configurations of `train.py`: what is accepted, and what is refused by its name."""

from pathlib import Path

import pytest
import yaml
from command_lines import TRAIN, assert_names, dry_run, refusal
from PIL import Image
from runner import Runner

import train
from runtime import distributed
from training.config import TrainConfig

pytestmark = pytest.mark.usefixtures("folder")

ROOT = Path(train.__file__).parent

# ---- train.py ------------------------------------------------------------------------------------

# An argument, and the words that the answer must hold: the thing at fault, and what is accepted.
TRAIN_REFUSALS = [
    ("--preset=huge", "'huge' FFHQ64 small32 tiny"),
    ("--degradation=Blurr", "'Blurr' MotionBlur"),
    ("--data=datautils.photos.Fotos", "datautils.photos.Fotos Photos"),
    ("--data-opt=colour=3", "'colour' resolution size"),
    ("--data-opt=resolution", "'resolution' key=value"),
    ("--data-opt=resolution=9999", "9999 664"),
    ("--data-opt=resolution=18", "18×18 multiples 4"),
    ("--data-opt=resolution=20", "20×20 stride 8"),
    ("--data-opt=resolution=wide", "resolution wide"),
    ("--data-opt=split=heldout", "split resolution size"),
    ("--noise-level=nan", "noise_level nan"),
    ("--mmse-share=2", "mmse_share 2 between 0 and 1"),
    ("--batch=many", "batch many 64Ki"),
    ("--batch-gpu=3", "batch_gpu 3 4"),
    ("--lr=nan", "lr nan"),
    ("--precision=fp8", "fp8 auto fp32 bf16 fp16"),
    ("--workers=-1", "workers -1"),
    ("--colour=red", "--colour"),
    ("--wandb=", "wandb text"),
    ("--detector=inception=FILE", "detectors ref_path"),
    ("--betas=[0.9, 1]", "betas below 1"),
    ("--recompute=[2]", "recompute=2 tiny 0 1"),
    ("--ema-sigma-rel=[0.1, 0.1000001]", "ema_sigma_rel differ"),
    ("--fsdp", "fsdp torchrun"),
]


@pytest.mark.parametrize(("argument", "words"), TRAIN_REFUSALS)
def test_train_refuses_in_a_sentence(argument, words):
    assert_names(refusal(train.main, [*TRAIN, argument]), words)


CONFIG_REFUSALS = {
    "unknown setting": ("presett: tiny", "presett preset degradation"),
    "list for a count": ("batch: [1, 2]", "batch whole"),
    "text for a count": ("batch: lots", "batch 'lots' 64Ki"),
    "text for a number": ("lr: fast", "lr 'fast' number"),
    "list for a mapping": ("data: [1, 2]", "data mapping"),
    "out of range": ("mmse_share: 2", "mmse_share 2 between"),
    "list for settings": ("- preset: tiny", "name: value"),
    "not YAML": ("preset: [tiny", "YAML"),
}


@pytest.mark.parametrize(("text", "words"), CONFIG_REFUSALS.values(), ids=CONFIG_REFUSALS)
def test_a_bad_configuration_is_refused_by_its_name(folder, text, words):
    file = folder / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    sentence = refusal(train.main, ["--config=mine.yaml", "--dry-run"])
    assert_names(sentence, f"mine.yaml {words}")


@pytest.mark.parametrize("options", [[], ["--keep-going", "--outdir=new"]])
def test_what_to_train_must_be_said(options: list[str]) -> None:
    sentence = refusal(train.main, options)
    assert_names(sentence, "--data FOLDER --config configs/demo.yaml --data FFHQ64")


def test_a_data_set_brings_its_settings(folder: Path) -> None:
    assert dry_run("--data=FFHQ64").preset == "FFHQ64"
    path = refusal(train.main, ["--data=some/folder", "--data-opt=size=64"])
    assert_names(path, "some/folder --data-opt")


def test_own_pictures_are_one_option(folder: Path) -> None:
    (folder / "own").mkdir()
    for i in range(3):
        Image.new("RGB", (90 + i, 70), (80 * i, 0, 0)).save(folder / "own" / f"{i}.png")
    result = Runner().invoke(train.main, ["--data=own", "--preset=tiny", "--dry-run"])
    assert "own: 2 pictures to train on, 1 held out, 16×16 pixels" in result.stderr
    found = yaml.safe_load(result.stdout)
    assert found["data"] == {"path": "own", "heldout": 1, "size": 16, "labels": "none"}
    assert found["degradation"] == "degradation.RandomDegradation" and found["preset"] == "tiny"
    words = ["--data=own", "--preset=tiny", "--batch=2", "--duration=4", "--outdir=run"]
    result = Runner().invoke(train.main, [*words, "--validate-every=0", "--precision=fp32"])
    assert result.exit_code == 0 and Path("run/weights.safetensors").exists(), result.output
    assert_names(refusal(train.main, ["--data=own", "--data-opt=size=3"]), "--data --data-opt")
    result = Runner().invoke(train.main, ["--data=nowhere"])
    assert result.exit_code == 2 and result.stderr.endswith("a folder or a zip file of images\n")
    assert_names(refusal(train.main, ["--data=own", "--resume=run"]), "--resume --data")


def test_a_missing_configuration_is_refused():
    sentence = refusal(train.main, ["--config=nowhere.yaml"])
    assert_names(sentence, "nowhere.yaml No such file")


def test_settings_of_the_command_line_are_refused_without_blaming_a_file():
    assert refusal(train.main, [*TRAIN, "--lr=0"]).startswith("error: lr")


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert_names(refusal(train.main, TRAIN), "batch=4 divisible 3")


def test_a_dry_run_prints_settings_that_load_back(folder):
    assert dry_run() == TrainConfig()
    demo = ROOT / "configs" / "demo.yaml"
    assert dry_run(f"--config={demo}") == TrainConfig.load(demo, {})
    assert [path.name for path in folder.iterdir()] == ["resolved.yaml"]


def test_every_configuration_of_the_project_loads():
    files = sorted((ROOT / "configs").glob("*.yaml"))
    assert files
    for file in files:
        assert isinstance(TrainConfig.load(file, {}), TrainConfig)


def test_options_override_the_configuration(folder):
    (folder / "mine.yaml").write_text(
        "preset: tiny\nlr: 1e-3\ndegradation: Box\ndata: {resolution: 16, size: 9}\n"
    )
    plain = dry_run("--config=mine.yaml")
    assert (plain.preset, plain.lr, plain.data) == ("tiny", 1e-3, {"resolution": "16", "size": "9"})
    changed = dry_run("--config=mine.yaml", "--lr=2e-3", "--data-opt=size=5", "--blind-train")
    assert (changed.lr, changed.data, changed.blind) == (
        2e-3,
        {"resolution": "16", "size": "5"},
        True,
    )


def test_sizes_may_be_written_as_people_do(folder):
    config = dry_run("-b", "1Ki", "--duration=2^25", "--ramp=10k", "--decay=1.5k")
    assert (config.batch, config.duration) == (1024, 2**25)
    assert (config.ramp, config.decay) == (10_000, 1500)
    (folder / "mine.yaml").write_text("duration: 8Mi\nbatch: 512\ndecay: null\n")
    config = dry_run("--config=mine.yaml")
    assert (config.duration, config.batch, config.decay) == (2**23, 512, None)


def test_any_setting_can_be_set(config):
    assert dry_run(config, "--degradation=none").degradation is None
    resolved = dry_run(config, "--cooldown=0.25", "--decay=null", "--betas=[0.8, 0.9]")
    assert (resolved.cooldown, resolved.decay, resolved.betas) == (0.25, None, (0.8, 0.9))
    assert_names(refusal(train.main, [config, "--colour=1"]), "No such option --colour")
    assert_names(refusal(train.main, [config, "--cooldown=2"]), "cooldown 2 between")
