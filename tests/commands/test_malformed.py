"""Some hundred malformed inputs through all commands: each is refused with one sentence and leaves
nothing, or is taken and gives a sound result. A traceback is always a mistake of ours."""

import io
import json
import math
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from calling import Detector
from helpers import ONE_LEVEL
from malformed import WORDS, described, judge, mutations, replaced, variants
from PIL import Image
from runner import Runner

import calculate_metrics
import restore
import train
from datautils import prepare
from degradation import FAMILIES
from networks import Denoiser, GaussianMixture, load_weights, make_config, save_weights
from runtime.cli import flag
from samplers.base import SAMPLERS
from training import posthoc, publish

QUICK = ["--net=net.safetensors", "--samples=1", "--outdir=out", "--sampler=mmse"]
PHOTO = [*QUICK, "--image=photo.png"]
BOX = ["--degradation=Box"]
CALC = ["calc", "--ref=images", "--metrics=psnr,ssim", "--workers=0", "--outdir=out"]
PRIOR = ["prior", "--data=ImageDir", "--dest=out.safetensors", "--workers=0"]
GEN = ["gen", "--outdir=out", "--data-opt=resolution=16", "--data-opt=size=2", "--images=1",
       "--degradation=Box", "--sampler=mmse", "--workers=0", "--pictures=0"]  # fmt: skip


def png(seed: int, mode: str = "RGB", sides: tuple[int, int] = (16, 16)) -> bytes:
    file, rng = io.BytesIO(), np.random.default_rng(seed)
    Image.fromarray(rng.integers(0, 256, (*sides, 3), dtype=np.uint8)).convert(mode).save(
        file, "PNG"
    )
    return file.getvalue()


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterable[Path]:
    """A working folder with one sound file of each kind."""
    folder = tmp_path_factory.mktemp("malformed")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(torch.cuda, "is_available", lambda: False)
        torch.manual_seed(0)
        config = make_config("tiny", network=ONE_LEVEL)
        save_weights("net.safetensors", Denoiser(config), {"noise_level": 0.0})
        mixture = GaussianMixture(
            torch.zeros(1, 1), torch.zeros(1, 1, 768), torch.ones(1, 1, 768), None, (3, 16, 16)
        )
        save_weights("prior.safetensors", mixture, {})
        Path("photo.png").write_bytes(png(0))
        mask = np.full((16, 16), 255, np.uint8)
        mask[4:9, 3:8] = 0
        Image.fromarray(mask).save("mask.png")
        np.save("kernel.npy", np.outer([1, 2, 1], [1, 3, 1]) / 20)
        for name in ("images", "images/a", "images/b"):
            Path(name).mkdir()
        for i in range(4):
            Path(f"images/{'ab'[i % 2]}/{i}.png").write_bytes(png(i))
        labels = {"labels": [[f"{'ab'[i % 2]}/{i}.png", i % 2] for i in range(4)]}
        Path("labels.json").write_text(json.dumps(labels))
        with zipfile.ZipFile("images.zip", "w") as archive:
            for i in range(4):
                archive.write(f"images/{'ab'[i % 2]}/{i}.png", f"{'ab'[i % 2]}/{i}.png")
            archive.write("labels.json", "dataset.json")
        torch.jit.script(Detector()).save("six.pt")
        words = ["ref", "--data-opt=resolution=16", "--data-opt=size=4", "--workers=0",
                 "--detector=six.pt", "--trust-detector", "--dest=ref.safetensors"]  # fmt: skip
        assert Runner().invoke(calculate_metrics.main, words).exit_code == 0
        Path("run").mkdir()
        Path("run/log.jsonl").write_text('{"images": 4, "loss": 1.0}\n' * 3)
        yield folder


def restored() -> str:
    """What is wrong with a restored photo."""
    record = json.loads(Path("out/restore.json").read_text())["metrics"]["pictures"]["sample-1"]
    pixels = np.array(Image.open("out/sample-1.png"))
    sound = math.isfinite(record["consistency"]) and pixels.shape == (16, 16, 3)
    return "" if sound else f"a sample with {record}"


def measured() -> str:
    values = json.loads(Path("out/metrics.json").read_text())["metrics"]["values"]
    cells = [v for v in values.values() if "mean" in v]
    sound = all(v["mean"] is None or math.isfinite(v["mean"]) for v in cells) and cells
    return "" if sound else f"values {values}"


def fitted() -> str:
    prior = load_weights("out.safetensors")
    return "" if prior.log_weights.isfinite().all() else "a prior that is not finite"  # type: ignore[union-attr]


def through(
    files: Iterable[bytes], path: str, command: click.Command, words: list[str], sound: Any = str
) -> None:
    """Judge a command for each form of a file, which is put back afterwards."""
    before, faults, count = Path(path).read_bytes(), [], 0
    for number, data in enumerate(files):
        Path(path).write_bytes(data)
        fault = judge(command, words, sound)
        faults += [f"form {number}: {fault}"] * bool(fault)
        count += 1
    Path(path).write_bytes(before)
    assert count and not faults, "\n".join(faults)


def sound_first(command: click.Command, words: list[str], sound: Callable[[], str]) -> None:
    """The unharmed file is taken: otherwise no refusal would say anything."""
    result = Runner().invoke(command, words)
    assert result.exit_code == 0 and not sound(), (result.stderr, result.exception)
    for path in sorted(Path().glob("out*/**/*"), reverse=True):
        path.unlink()
    for path in Path().glob("out*"):
        path.rmdir() if path.is_dir() else path.unlink()


FILES = {
    "weights": ("net.safetensors", restore.main, [*PHOTO, *BOX], restored, 14),
    "prior": (
        "prior.safetensors", restore.main,
        ["--net=prior.safetensors", *PHOTO[1:3], "--image=photo.png", *BOX, "--sampler=ddnm",
         "--sampler-opt=num_steps=2"], restored, 14,
    ),
    "published": ("net.safetensors", publish.main, ["net.safetensors", "out.safetensors"], str, 10),
    "reference": (
        "ref.safetensors", calculate_metrics.main,
        ["calc", "--images=images", "--ref=ref.safetensors", "--metrics=fd", "--workers=0",
         "--detector=six.pt", "--trust-detector", "--outdir=out"], measured, 20,
    ),
    "photo": ("photo.png", restore.main, [*PHOTO, *BOX], restored, 16),
    "mask": ("mask.png", restore.main, [*PHOTO, "--mask=mask.png"], restored, 12),
    "kernel": ("kernel.npy", restore.main, [*PHOTO, "--kernel=kernel.npy"], restored, 24),
    "picture of a folder": (
        "images/a/0.png", calculate_metrics.main, [*CALC, "--images=images.zip"], measured, 24,
    ),
    "zip": ("images.zip", calculate_metrics.main, [*CALC, "--images=images.zip"], measured, 40),
    "prepared zip": (
        "images.zip", prepare.main,
        ["--source=images.zip", "--size=8", "--dest=out.zip", "--workers=0"], str, 24,
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", FILES)
def test_damaged_files(here: Path, kind: str) -> None:
    path, command, words, sound, count = FILES[kind]
    sound_first(command, words, sound)
    through(mutations(Path(path).read_bytes(), count), path, command, words, sound)


@pytest.mark.parametrize(
    ("kind", "key", "count"),
    [
        ("weights", "invfusion", 40),
        ("prior", "invfusion", 12),
        ("reference", "invfusion-reference", 24),
    ],
)
def test_descriptions_of_another_kind(here: Path, kind: str, key: str, count: int) -> None:
    path, command, words, sound, _ = FILES[kind]
    forms: list[Any] = []
    described(Path(path), key, lambda value: forms.extend(variants(value, count)) or value)
    if kind == "weights":
        for place in (("config", "sigma_data"), ("summary", "noise_level")):
            described(Path(path), key, lambda v, p=place: forms.append(replaced(v, p, 1e308)) or v)
    files = [described(Path(path), key, lambda value, form=form: form) for form in forms]
    through(files, path, command, words, sound)


def test_labels_of_another_kind(here: Path) -> None:
    labels = json.loads(Path("labels.json").read_text())

    def archive(text: str) -> bytes:
        with zipfile.ZipFile(io.BytesIO(Path("images.zip").read_bytes())) as source:
            members = {name: source.read(name) for name in source.namelist()}
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as target:
            for name, data in (members | {"dataset.json": text.encode()}).items():
                target.writestr(name, data)
        return file.getvalue()

    texts = [json.dumps(form) for form in variants(labels, 24)]
    texts += ["", "{", "[" * 9999, '{"labels": [["a/0.png", 1e999]]}', "null", "\x00"]
    words = [*PRIOR, "--data-opt=path=images.zip", "--data-opt=size=8"]
    through(map(archive, texts), "images.zip", calculate_metrics.main, words, fitted)


CONFIG = {
    "preset": "tiny", "data": {"resolution": 16, "size": 4}, "degradation": "MotionBlur",
    "degradation_opt": {"strides": [2]}, "batch": 4, "lr": 1e-3, "betas": [0.9, 0.99],
    "network": {"patch": 2}, "noise_range": [0.0, 0.1], "recompute": [0], "decay": None,
}  # fmt: skip


def test_settings_of_another_kind(here: Path) -> None:
    Path("config.yaml").write_text(json.dumps(CONFIG))
    forms = [json.dumps(form).encode() for form in variants(CONFIG, 50)]
    forms += [*mutations(json.dumps(CONFIG).encode(), 20)]
    forms += [b"a: &a [*a]", b"[" * 5000, b"x: !!python/object:os.system {}", b"lr: 2024-13-45"]
    words = ["--config=config.yaml", "--dry-run"]
    through(forms, "config.yaml", train.main, words)
    Path("config.yaml").unlink()


def test_snapshots_of_another_kind(here: Path) -> None:
    Path("run/snapshots").mkdir()
    path = Path("run/snapshots/4.safetensors")
    save_weights(path, Denoiser(make_config("tiny")), {"images": 4, "sigma_rel": 0.1})
    forms: list[Any] = []
    described(path, "invfusion", lambda v: forms.extend(variants(v["summary"], 16)) or v)
    files = [
        described(path, "invfusion", lambda v, form=form: v | {"summary": form}) for form in forms
    ]
    words = ["run", "--sigma-rel=0.15", "--dest=out.safetensors"]
    through([*files, *mutations(path.read_bytes(), 6)], str(path), posthoc.main, words)


OPTIONS: dict[str, tuple[click.Command, list[str], Any]] = {
    "restore": (restore.main, [*PHOTO, *BOX], restored),
    "calc": (calculate_metrics.main, [*CALC, "--images=images.zip"], measured),
    "prior": (
        calculate_metrics.main, [*PRIOR, "--data-opt=path=images", "--data-opt=size=8"], fitted,
    ),
    "gen": (calculate_metrics.main, [*GEN, "--net=net.safetensors"], str),
    "prepare": (
        prepare.main, ["--source=images", "--size=8", "--dest=out.zip", "--workers=0"], str,
    ),
    "train": (train.main, ["--preset=tiny", "--data-opt=resolution=16", "--dry-run"], str),
}  # fmt: skip
# They choose files and folders, or how long it takes, or start processes; or they are a flag.
_LEFT_OUT = {
    "net",
    "out",
    "outdir",
    "dest",
    "image",
    "images_",
    "workers",
    "resume",
    "name",
    "help",
}


@pytest.mark.parametrize("name", OPTIONS)
def test_values_of_options(here: Path, name: str) -> None:
    command, words, sound = OPTIONS[name]
    inner = command.commands[words[0]] if isinstance(command, click.Group) else command
    rng, faults = np.random.default_rng(0), []
    for option in inner.params:
        if option.name in _LEFT_OUT or getattr(option, "is_flag", False):
            continue
        picked = rng.permutation(len(WORDS))[:3]
        values = [WORDS[i] for i in picked]
        if option.metavar == "KEY=VALUE":
            values = [*values, "=", "x=1", "a.b.c=1"]
        faults += [judge(command, [*words, f"{option.opts[-1]}={v}"], sound) for v in values]
    assert len(faults) > 15 and not any(faults), "\n".join(filter(None, faults))


def test_values_of_sampler_options(here: Path) -> None:
    rng, faults = np.random.default_rng(0), []
    for sampler in ("heun", "dpm", "deis", "mmse"):
        for field in ("num_steps", "sigma_min", "sigma_max", "rho", "eta", "order", "churn", "x"):
            value = WORDS[int(rng.integers(len(WORDS)))]
            words = ["--net=net.safetensors", *PHOTO[1:3], "--image=photo.png", *BOX]
            words += [f"--sampler={sampler}", f"--sampler-opt={field}={value}"]
            faults.append(judge(restore.main, words, restored))
    for sampler in SAMPLERS:
        word = WORDS[int(rng.integers(2, len(WORDS)))]
        words = ["--net=prior.safetensors", *PHOTO[1:3], "--image=photo.png", *BOX]
        words += [f"--sampler={sampler}", f"--sampler-opt=num_steps={word}"]
        faults.append(judge(restore.main, words, restored))
    assert len(faults) > 40 and not any(faults), "\n".join(filter(None, faults))


@pytest.mark.parametrize("seed", [0])
def test_values_of_family_options(here: Path, seed: int) -> None:
    rng, faults = np.random.default_rng(seed), []
    for family in FAMILIES:
        for option in FAMILIES[family].__dataclass_fields__:
            for value in rng.permutation(WORDS)[:2]:
                words = [*PHOTO, f"--degradation={family}", f"--degradation-opt={option}={value}"]
                faults.append(judge(restore.main, words, restored))
    assert len(faults) > 30 and not any(faults), "\n".join(filter(None, faults))


def test_options_have_names() -> None:
    assert flag(restore.RestoreOptions.__dataclass_fields__["class_label"]) == "--class"
