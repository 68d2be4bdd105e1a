"""The paper's own commands: its settings by the name of the data, and what they are given."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runner import Runner

import commands.train
import train
from calculate_metrics import main as metrics
from samplers import Heun
from training.config import TrainConfig, same_class
from training.log import read_log

ROOT = Path(train.__file__).parent
CONFIGS = ROOT / "configs"

# Table 6 of the paper: steps, batch, probability of augmentation, hidden labels, arithmetic.
TABLE_6 = {
    "FFHQ64": (2**16, 512, 0.12, 0.0, "fp16"),
    "ImageNet64": (2**18, 512, 0.0, 0.1, "fp16"),
    "FFHQ256": (2**18, 256, 0.12, 0.0, "bf16"),
}
CLASSES = {
    "FFHQ64": "datautils.ffhq.FFHQ64",
    "ImageNet64": "datautils.imagenet.ImageNet64",
    "FFHQ256": "datautils.ffhq.FFHQ256",
}


@pytest.mark.parametrize("name", TABLE_6)
def test_the_configurations_are_those_of_table_6(name):
    config = TrainConfig.load(CONFIGS / f"{name}.yaml", {})
    steps, batch, augment, dropout, precision = TABLE_6[name]
    assert config.preset == name and config.data_class == CLASSES[name]
    assert (config.duration, config.batch) == (steps * batch, batch)
    assert (config.augment, config.label_dropout) == (augment, dropout)
    assert config.precision == precision and config.lr == 5e-5
    assert (config.P_mean, config.P_std) == (-0.8, 1.6)


@pytest.mark.parametrize("name", TABLE_6)
def test_a_configuration_begins_with_its_command_hours_and_hardware(name):
    lines = (CONFIGS / f"{name}.yaml").read_text().splitlines()
    assert lines[0].startswith("# torchrun ") and f"--config configs/{name}.yaml" in lines[0]
    header = " ".join(lines[:5])
    assert "hours" in header and "A40" in header


def dry_run(*arguments: str) -> dict:
    result = Runner().invoke(train.main, [*arguments, "--dry-run"])
    assert result.exit_code == 0, result.output
    return yaml.safe_load(result.stdout)


@pytest.mark.parametrize("name", TABLE_6)
def test_a_data_class_brings_the_settings_of_its_name(name):
    config = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    found = dry_run("--data", CLASSES[name], "--seed", "3")
    assert found["preset"] == name and found["augment"] == config["augment"]
    assert found["seed"] == 3
    small = dry_run("--data", CLASSES[name], "--preset", "tiny", "-b", "8")
    assert small == dry_run("--data", CLASSES[name]) | {"preset": "tiny", "batch": 8}


def test_options_of_a_data_set_are_not_given_to_another():
    config = f"--config={CONFIGS / 'emoji32-invfusion.yaml'}"
    assert dry_run(config, "--data=Emoji", "--data-opt=path=a")["data"] == {
        "resolution": 32, "path": "a",
    }  # fmt: skip
    pictures = ("--data=ImageDir", "--data-opt=path=a", "--data-opt=size=32")
    assert dry_run(config, *pictures)["data"] == {"path": "a", "size": 32}


def test_options_of_a_family_are_not_given_to_another(tmp_path: Path):
    file = tmp_path / "blur.yaml"
    file.write_text("degradation: degradation.MotionBlur\ndegradation_opt: {strides: 2}\n")
    config = f"--config={file}"
    for same in ((), ("--degradation=MotionBlur",)):
        assert dry_run(config, *same)["degradation_opt"] == {"strides": "2"}
    assert dry_run(config, "--degradation=Box")["degradation_opt"] == {}
    assert not same_class("degradation.MotionBlur", "mine.MotionBlur")


def test_options_have_the_names_of_the_paper():
    found = dry_run(
        "--data", "datautils.ffhq.FFHQ64", "--ref-path", "dataset-refs/ffhq64.safetensors",
        "--degradation", "degradation.RandomDegradation", "--name", "invfusion", "--blind-train",
        "--noise-level", "0.1", "-b", "64", "--batch-gpu", "8", "--lr", "1e-4", "--decay", "1Ki",
        "--P_mean", "-1", "--P_std", "1.2", "--duration", "8Mi", "--augment", "0.2",
        "--label-drop", "0.3", "--fp32", "--seed", "7", "--detector", "inception=weights.pth",
    )  # fmt: skip
    assert found | {
        "ref_path": "dataset-refs/ffhq64.safetensors", "blind": True, "noise_level": 0.1,
        "batch": 64, "batch_gpu": 8, "lr": 1e-4, "decay": 1024, "P_mean": -1.0, "P_std": 1.2,
        "duration": 8 * 2**20, "augment": 0.2, "label_dropout": 0.3, "precision": "fp32",
        "seed": 7, "detectors": {"inception": "weights.pth"},
    } == found  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--fp32", "--precision", "bf16"), ("--fp32", "bf16")),
        (("--objective=mmse",), ("objective=mmse", "degradation")),
        (("--blind-train",), ("blind", "degradation")),
        (("--preset", "nope"), ("nope", "FFHQ64")),
        (("--data", "datautils.nope.X"), ("datautils.nope.X",)),
        (("--degradation", "Nope"), ("Nope", "known are AveragePool")),
        (("--augment", "2"), ("augment", "between 0 and 1")),
        (("--detector", "inception"), ("inception", "key=value")),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments, words):
    result = Runner().invoke(train.main, ["--preset", "tiny", *arguments, "--dry-run"])
    assert result.exit_code == 2
    for word in words:
        assert word in result.stderr


# ---- a reference while training ------------------------------------------------------------------


class Detector(torch.nn.Module):
    """Three features of an image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3)) / 255


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("full-size")
    torch.jit.script(Detector()).save(folder / "three.pt")
    for size, name in ((6, "ref"), (9, "many")):
        arguments = [
            "ref", "--data-opt", "resolution=16", "--data-opt", f"size={size}",
            "--dest", str(folder / f"{name}.safetensors"), "--trust-detector",
            "--detector", str(folder / "three.pt"),
        ]  # fmt: skip
        assert Runner().invoke(metrics, arguments).exit_code == 0
    return folder


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setitem(commands.train._SAMPLERS, "denoising", Heun(num_steps=3))


def start(home: Path, outdir: Path, *arguments: object):
    words = [
        "--preset", "tiny", "--data-opt", "resolution=16", "--data-opt", "size=6", "-b", "4",
        "--duration", "8", "--fp32", "--workers", "0", "--ramp", "0", "--measure-every=4",
        "--validate-images", "2", "--degradation", "MissingPatches", "--outdir", outdir, *arguments,
    ]  # fmt: skip
    return Runner().invoke(train.main, [str(word) for word in words])


def test_distances_of_held_out_restorations_are_logged(home, tmp_path):
    result = start(
        home, tmp_path / "run", "--ref-path", home / "ref.safetensors",
        "--detector", f"three={home / 'three.pt'}", "--trust-detector",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    lines = [line for line in read_log(tmp_path / "run") if "heldout_distance" in line]
    assert [line["images"] for line in lines] == [4, 8]
    for line in lines:
        assert list(line["heldout_distance"]) == ["MissingPatches"]
        assert line["heldout_distance"]["MissingPatches"]["fd"] > 0


@pytest.mark.parametrize(
    ("ref", "detector", "words"),
    [
        ("none.safetensors", "three", ("none.safetensors",)),
        ("ref.safetensors", "four", ("four", "three")),
        ("ref.safetensors", None, ("three",)),
        ("many.safetensors", "three", ("9 images", "6")),
    ],
)
def test_a_reference_that_does_not_serve_is_refused_before_training(
    home, tmp_path, ref, detector, words
):
    given = (
        ("--detector", f"{detector}={home / 'three.pt'}", "--trust-detector") if detector else ()
    )
    result = start(home, tmp_path / "run", "--ref-path", home / ref, *given)
    assert result.exit_code == 2, result.output
    for word in words:
        assert word in result.stderr
    assert not (tmp_path / "run").exists()


def test_a_reference_of_other_images_is_refused(home, tmp_path):
    result = start(
        home, tmp_path / "run", "--ref-path", home / "ref.safetensors",
        "--detector", f"three={home / 'three.pt'}", "--trust-detector",
        "--data-opt", "resolution=32",
    )  # fmt: skip
    assert result.exit_code == 2
    assert "(3, 16, 16)" in result.stderr and "(3, 32, 32)" in result.stderr


# ---- data of the user's --------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for i in range(12):
        image = rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)
        Image.fromarray(image).save(folder / f"{i:02d}.png")
    labels = [[f"{i:02d}.png", i % 3] for i in range(12)]
    (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
    return folder


def train_on(pictures: Path, outdir: Path, *arguments: object):
    return Runner().invoke(
        train.main,
        [
            "--preset", "tiny", "--data", "datautils.imagedir.ImageDir", "--data-opt",
            f"path={pictures}", "--data-opt", "heldout=4", "-b", "4", "--duration", "8", "--fp32",
            "--ramp", "0", "--degradation", "MissingPatches", "--outdir", str(outdir),
            "--validate-images", "2",
            *map(str, arguments),
        ],
    )  # fmt: skip


def test_a_folder_with_classes_trains_a_network_with_classes(pictures, tmp_path):
    options = "--label-drop", 0.5, "--augment", 0.5, "--workers", 1
    result = train_on(pictures, tmp_path / "run", *options)
    assert result.exit_code == 0, result.output
    result = Runner().invoke(
        metrics,
        [
            "gen-uncond", "--net", str(tmp_path / "run/weights.safetensors"), "--images", "2",
            "--class", "2", "--cfg", "2", "--sampler-opt", "num_steps=2", "--outdir",
            str(tmp_path / "samples"),
        ],
    )  # fmt: skip
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize("workers", [0, 1])
def test_a_broken_image_ends_training_with_its_name(pictures, tmp_path, workers):
    (pictures / "03.png").write_bytes((pictures / "03.png").read_bytes()[:60])
    result = train_on(pictures, tmp_path / "run", "--workers", workers, "--duration", 64)
    assert result.exit_code == 2, result.output
    assert "03.png" in result.stderr and "Traceback" not in result.stderr


def test_weights_are_kept_before_the_long_measurement(home, tmp_path, monkeypatch):
    import commands.train

    def killed(*arguments):
        raise KeyboardInterrupt

    detector = "--detector", f"three={home / 'three.pt'}", "--trust-detector"
    options = "--ref-path", home / "ref.safetensors", *detector
    with monkeypatch.context() as patch:
        patch.setattr(commands.train, "heldout_distances", killed)
        result = start(home, tmp_path / "run", *options, "--measure-every=8")
    assert result.exit_code == 1  # click's for a keyboard interrupt
    assert (tmp_path / "run" / "weights.safetensors").exists()
    assert not [line for line in read_log(tmp_path / "run") if "heldout_distance" in line]
    result = Runner().invoke(train.main, ["--resume", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    lines = [line for line in read_log(tmp_path / "run") if "heldout_distance" in line]
    assert [line["images"] for line in lines] == [8]


def test_a_network_of_one_noise_level_is_not_sampled(home, tmp_path):
    assert start(home, tmp_path / "run", "--objective=mmse").exit_code == 0
    net = str(tmp_path / "run" / "weights.safetensors")
    words = ["--net", net, "--outdir", str(tmp_path / "out")]
    gen = ["gen", *words, "--data-opt", "resolution=16", "--images", "4", "--degradation", "Box"]
    for command in (gen, ["gen-uncond", *words, "--images", "2"]):
        result = Runner().invoke(metrics, command)
        assert result.exit_code == 2 and "objective mmse" in result.stderr
    assert Runner().invoke(metrics, [*gen, "--sampler", "mmse"]).exit_code == 0


def test_a_run_within_its_ramp_is_warned_of(home, tmp_path):
    result = start(home, tmp_path / "run", "--ramp", "1Ki")
    assert result.exit_code == 0
    assert "ends at 0.78% of the ramp" in result.output


def test_images_that_nobody_holds_out_are_refused_for_validation(pictures, tmp_path):
    arguments = ["--data-opt", "heldout=null"]
    result = train_on(pictures, tmp_path / "run", *arguments)
    assert result.exit_code == 2
    assert "held out" in result.stderr
    assert not (tmp_path / "run").exists()
