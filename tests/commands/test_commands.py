"""`calculate_metrics.py ref` and `gen` as their users call them."""

import json
import math
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import DATA, DISTANCES, FAST, Detector, call, gen, metrics, network, refused, uncond
from click.testing import Result
from helpers import ONE_LEVEL
from PIL import Image
from processes import Processes

from calculate_metrics import main
from datautils import get_dataset
from metrics.statistics import load_reference
from networks import Denoiser
from zero_shot import DDRM

# ---- ref -----------------------------------------------------------------------------------------


def test_reference_statistics_are_those_of_the_images(home):
    reference = load_reference(home / "ref.safetensors")
    assert reference.images == 8 and reference.image_shape == (3, 16, 16)
    photos = get_dataset("datautils.photos.Photos", "heldout", resolution=16, size=8)
    features = Detector()(torch.stack([photos[i][0] for i in range(8)])).double()
    moments = reference.detectors["six"]
    torch.testing.assert_close(moments.mean, features.mean(0), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(moments.covariance, features.T.cov(), rtol=1e-4, atol=1e-8)
    assert reference.description["split"] == "heldout"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--dest", "x.pkl"), ("x.pkl", ".safetensors")),
        (("--dest", "x.safetensors", "--images", "9"), ("--images 9", "only 8")),
        (("--dest", "."), ("there already",)),
        (("--dest", "ref.safetensors"), ("ref.safetensors", "there already")),
        (("--dest", "x.safetensors", "--images", "1"), ("at least 2",)),
        (("--dest", "x.safetensors", "--images", "many"), ("many", "count")),
        (("--dest", "x.safetensors", "--detector", "there-is-none.pt"), ("there-is-none.pt",)),
        (("--dest", "x.safetensors", "--data", "datautils.none.None"), ("datautils.none.None",)),
    ],
)
def test_a_reference_that_cannot_be_made_is_refused(home, tmp_path, arguments, words):
    arguments = [tmp_path / a if a.startswith("x.") else a for a in arguments]
    refused(
        call(home, "ref", *DATA, "--detector", "six.pt", "--trust-detector", *arguments), *words
    )
    assert not list(tmp_path.iterdir())


# ---- gen -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def restored(home) -> Path:
    result = gen(
        home, home / "gen", "--metrics", "fd,cfd,kd,psnr", *DISTANCES, "--save-images", "--seed", 3
    )
    assert result.exit_code == 0, result.output
    return home / "gen"


def test_distances_are_those_of_the_images_written(home, restored):
    values = metrics(restored)["metrics"]["values"]["MissingPatches"]
    for method, name in (("H†y", "pinv"), ("InvFusion sample (heun)", "InvFusion-sample-heun")):
        folder = restored / "images" / "MissingPatches" / name
        assert len(list(folder.rglob("*.png"))) == 8
        result = call(home, "calc", "--images", folder, *DISTANCES, "--metrics", "fd,kd",
                      "--outdir", home / f"calc-{name}")  # fmt: skip
        assert result.exit_code == 0, result.output
        for metric, found in metrics(home / f"calc-{name}")["metrics"]["values"].items():
            assert found["count"] == values[method][metric]["count"] == 8
            assert found["mean"] == pytest.approx(values[method][metric]["mean"], rel=1e-6)
    every = restored / "images"
    result = call(home, "calc", "--images", every, *DISTANCES, "--metrics", "fd", "--any-count")
    told = "holds 2 folders of images (MissingPatches/InvFusion-sample-heun"
    assert result.exit_code == 0 and told in result.stderr, result.output
    # H†y is consistent as it is; a sample of this network is not.
    assert values["H†y"]["cfd"] == values["H†y"]["fd"]
    sample = values["InvFusion sample (heun)"]
    assert abs(sample["cfd"]["mean"] / sample["fd"]["mean"] - 1) > 0.01


def test_images_written_are_those_measured(restored):
    import csv

    with (restored / "per_image.csv").open() as file:
        rows = [r for r in csv.DictReader(file) if r["method"] == "H†y"]
    photos = get_dataset("datautils.photos.Photos", "heldout", resolution=16, size=8)
    for row in rows:
        index = int(row["image"])
        path = restored / f"images/MissingPatches/pinv/00000/{index:08d}.png"
        image = np.asarray(Image.open(path)).astype(float).transpose(2, 0, 1)
        mse = np.square(image - photos[index][0].numpy().astype(float)).mean()
        assert 10 * math.log10(255**2 / mse) == pytest.approx(float(row["psnr"]), rel=1e-9)


def test_a_result_says_how_it_was_made(restored):
    record = metrics(restored)
    settings = record["settings"]
    assert settings["samplers"]["InvFusion sample (heun)"]["num_steps"] == 2
    assert set(settings["detector_files"]["detectors"]) == {"six"}
    assert settings["images"] == 8 and settings["split"] == "heldout"
    stages = record["metrics"]["stages"]
    assert set(stages) == {"load", "restore", "metrics", "features", "write", "total"}
    assert all(seconds > 0 for seconds in stages.values())
    assert not (restored / ".unfinished").exists()


def test_a_failed_image_shows_in_the_distance(home, tmp_path, monkeypatch):
    def failing(problem, noise, draws):
        return problem.pinv().index_fill(0, torch.tensor(0), torch.nan)

    monkeypatch.setattr("commands.methods.baseline_methods", lambda *_: {"H†y": failing})
    result = gen(home, tmp_path / "out", "--metrics", "fd,psnr", *DISTANCES)
    assert result.exit_code == 0, result.output
    values = metrics(tmp_path / "out")["metrics"]["values"]["MissingPatches"]
    assert values["H†y"]["fd"]["mean"] is None and values["H†y"]["psnr"]["mean"] is None
    assert values["InvFusion sample (heun)"]["fd"]["mean"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--metrics", "fd"), ("fd", "--ref")),
        (("--metrics", "psnr", *DISTANCES), ("--ref", "none of the metrics")),
        (("--metrics", "fid", *DISTANCES), ("six",)),
        (("--metrics", "cfd", *DISTANCES, "--noise-level", "0.1"), ("cfd", "noise")),
        (("--metrics", "fd", *DISTANCES, "--images", "4"), ("8 images", "4", "--any-count")),
        (("--metrics", "fd", "--ref", "none.safetensors"), ("none.saf",)),
        (("--metrics", "fd", *DISTANCES[:4]), ("six.pt", "program", "--trust-detector")),
        (("--metrics", "quality"), ("quality", "psnr")),
        (("--cfg", "2"), ("--cfg 2", "without classes")),
        (("--images", "9"), ("--images 9", "only 8")),
        (("--images", "0"), ("--images",)),
        (("--metrics", "fid", "--ref", "none.safetensors"), ("none.safetensors",)),
        (
            ("--data-opt", "resolution=32"),
            ("(3, 16, 16)", "(3, 32, 32)", "give --data-opt resolution=16"),
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(home, tmp_path, arguments, words):
    refused(gen(home, tmp_path / "out", *arguments), *words)
    assert not list(tmp_path.iterdir())


def test_results_are_never_written_over_others(home, restored, tmp_path):
    before = sorted(restored.rglob("*"))
    for command in (gen, uncond):
        refused(command(home, restored), "metrics.json", "there already", "--outdir")
    assert sorted(restored.rglob("*")) == before
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "mine.txt").write_text("mine")
    for command in (gen, uncond):
        refused(command(home, tmp_path, "--save-images"), "images", "there already")
    assert (tmp_path / "images" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("cfg", ["nan", "inf", "-1"])
def test_a_scale_that_is_none_is_refused(home, tmp_path, cfg):
    refused(uncond(home, tmp_path / "out", "--cfg", cfg), "--cfg")


@pytest.fixture
def classes(tmp_path) -> Path:
    """A folder of five classes with an image of 16×16 each."""
    for i in range(5):
        (tmp_path / "classes" / f"class-{i}").mkdir(parents=True)
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / "classes" / f"class-{i}" / "a.png")
    return tmp_path / "classes"


def gen_folder(home: Path, folder: Path, outdir: Path, *arguments: object) -> Result:
    return call(
        home, "gen", "--data", folder, *FAST, "--outdir", outdir,
        "--degradation", "MissingPatches", *arguments,
    )  # fmt: skip


def test_classes_that_the_network_does_not_know_are_refused(home, classes, tmp_path):
    result = gen_folder(home, classes, tmp_path / "out", "--net", "classes.safetensors")
    refused(result, "4 classes", "5")
    options = "--net", "classes.safetensors", "--cfg", "2", "--data-opt", "labels=none"
    refused(gen_folder(home, classes, tmp_path / "out", *options), "--cfg", "no classes")
    assert not (tmp_path / "out").exists()


def test_a_folder_says_what_is_measured_of_it(home, tmp_path):
    for i in range(4):
        Image.new("RGB", (20, 20), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    gen = "gen", "--data", tmp_path, "--degradation", "Box", "--outdir", tmp_path / "out"
    sized = call(home, *gen, "--net", "plain.safetensors", "--sampler", "ddrm")
    refused(sized, "(3, 20, 20)", "--data-opt size=16")
    refused(call(home, *gen, "--baselines", "gaussian"), str(tmp_path), "heldout=N")
    refused(call(home, *gen, "--data-opt", "path=other"), "path=other")
    found = call(home, *gen, "--data-opt", "heldout=2", "--data-opt", "size=16")
    assert found.exit_code == 0 and "measuring all" not in found.stderr, found.output
    settings = json.loads((tmp_path / "out" / "metrics.json").read_text())["settings"]
    assert settings["images"] == 2
    whole = call(home, *gen[:-1], tmp_path / "all", "--data-opt", "size=16")
    assert f"measuring all of {tmp_path}" in whole.stderr
    record = json.loads((tmp_path / "all" / "metrics.json").read_text())
    assert record["settings"]["split"] == "all"


class Own(DDRM):
    """A sampler of the user's own, of this module."""


class Other(DDRM):
    """Another one."""


def test_samplers_derived_from_one_are_methods_of_their_own(home, tmp_path):
    names = [f"{__name__}.Own", f"{__name__}.Other", "ddrm"]
    result = call(
        home, "gen", "--net", "plain.safetensors", *DATA, "--degradation", "Box",
        *(word for name in names for word in ("--sampler", name)),
        *(word for name in names for word in ("--sampler-opt", f"{name}.num_steps=2")),
        "--images", 1, "--outdir", tmp_path / "out",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    methods = json.loads((tmp_path / "out" / "metrics.json").read_text())["metrics"]["values"]
    assert {*names[:2], "DDRM"} <= methods["Box"].keys()


def test_one_image_has_no_distance(home, tmp_path):
    metric = "--metrics", "fd", *DISTANCES, "--any-count"
    refused(gen(home, tmp_path / "out", *metric, "--images", 1), "at least 2 images")
    refused(uncond(home, tmp_path / "out", *metric, "--images", 1), "at least 2 images")
    (tmp_path / "one").mkdir()
    Image.new("RGB", (16, 16)).save(tmp_path / "one" / "a.png")
    refused(call(home, "calc", "--images", tmp_path / "one", *metric), "at least 2")


def test_images_too_small_for_ssim_are_refused_at_once(home, tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
        Image.new("RGB", (8, 8)).save(tmp_path / name / "0.png")
    folders = "--images", tmp_path / "a", "--ref", tmp_path / "b"
    refused(call(home, "calc", *folders, "--metrics", "ssim"), "11×11", "8×8")


def test_a_run_that_is_terminated_leaves_nothing(home, tmp_path):
    words = [
        "gen", "--net", str(home / "net.safetensors"), "--data-opt", "resolution=16",
        "--degradation", "MissingPatches", "--outdir", str(tmp_path / "a" / "out"),
        "--sampler-opt", "heun.num_steps=200", "--save-images",
    ]  # fmt: skip
    process = Processes(main, words)
    while not (tmp_path / "a" / "out" / ".unfinished" / "0.csv").exists():
        assert process.alive()
        time.sleep(0.05)
    process.signal(signal.SIGTERM)
    assert process.codes() == [128 + 15]
    assert not list(tmp_path.iterdir())


def test_a_reference_of_another_count_can_be_accepted(home, tmp_path):
    result = gen(
        home, tmp_path, "--metrics", "fd", *DISTANCES, "--images", 6, "--any-count",
        "--baselines", "",
    )  # fmt: skip
    assert result.exit_code == 0, result.output


def test_guidance_doubles_the_calls_of_the_network(home, classes, tmp_path):
    shutil.rmtree(classes / "class-4")
    for cfg in ("1", "2"):
        options = "--net", "classes.safetensors", "--cfg", cfg
        result = gen_folder(home, classes, tmp_path / cfg, *options)
        assert result.exit_code == 0, result.output
    one, two = (
        metrics(tmp_path / cfg)["metrics"]["values"]["MissingPatches"]["InvFusion sample (heun)"]
        for cfg in "12"
    )
    assert (one["evaluations"], one["network_calls"]) == (3, 3)
    assert (two["evaluations"], two["network_calls"]) == (3, 6)


def test_a_broken_image_ends_the_run_with_its_name_and_leaves_no_results(home, tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(8):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(images / f"{i}.png")
    (images / "6.png").write_bytes((images / "6.png").read_bytes()[:40])
    result = call(
        home, "gen", "--net", "net.safetensors", *FAST, "--data", "datautils.imagedir.ImageDir",
        "--data-opt", f"path={images}", "--split", "all", "--degradation", "MissingPatches",
        "--outdir", tmp_path / "out",
    )  # fmt: skip
    refused(result, "6.png")
    assert {path.name for path in (tmp_path / "out").iterdir()} <= {".unfinished"}


# ---- compiling -----------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["gen", "gen-uncond"])
def test_a_compiled_network_restores_the_same(tmp_path, monkeypatch, command):
    """The graphs run as they are here: tests/networks/test_compile.py has the compiler's."""
    compile_with = Denoiser.compile
    compiled: list[dict] = []

    def compile(self: Denoiser, **options: object) -> None:
        compiled.append(options)
        compile_with(self, backend="eager", **options)

    monkeypatch.setattr(Denoiser, "compile", compile)
    conditioning = "invfusion" if command == "gen" else "unconditional"
    network(tmp_path / "net.safetensors", conditioning, changes=ONE_LEVEL)
    values = []
    for flags in ((), ("--compile",)):
        outdir = tmp_path / f"out{len(flags)}"
        if command == "gen":
            result = gen(tmp_path, outdir, "--images", 4, *flags)
        else:
            result = call(tmp_path, command, "--net", "net.safetensors", *FAST, "--images", 4,
                          "--save-images", "--outdir", outdir, *flags)  # fmt: skip
        assert result.exit_code == 0, result.output
        values.append((outdir / "per_image.csv").read_text() if command == "gen" else
                      [path.read_bytes() for path in sorted(outdir.rglob("*.png"))])  # fmt: skip
    torch._dynamo.reset()
    # `gen` of these tests names a network of its own, too.
    assert len(compiled) == 1 and len(values[0]) > 0
    if command == "gen-uncond":
        assert values[0] == values[1]
    else:
        columns = [[row.split(",")[:4] for row in text.splitlines()] for text in values]
        assert columns[0] == columns[1]


def test_compiling_without_a_compiler_is_refused(home, tmp_path, monkeypatch):
    from torch._inductor import cpp_builder

    def none() -> str:
        raise RuntimeError("No working C++ compiler found")

    monkeypatch.setattr(cpp_builder, "get_cpp_compiler", none)
    refused(gen(home, tmp_path / "out", "--compile"), "--compile", "C++ compiler")
