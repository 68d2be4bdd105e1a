"""Options of families: as text, from files, on the command lines."""

import dataclasses
import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from calling import DATA, FAST, gen, metrics, network, refused
from calling import call as call_metrics
from PIL import Image
from runner import Runner

import calculate_metrics
import train
from commands.methods import samplers_of
from commands.operators import families_of, family_of
from commands.photo import Request, pose
from degradation import (
    FAMILIES,
    Box,
    Colourisation,
    Family,
    FixedKernel,
    FixedMask,
    GaussianBlur,
    Hadamard,
    HalfImage,
    MatrixDegradation,
    MissingPatches,
    MotionBlur,
    NoDegradation,
    RandomDegradation,
    get_family,
)
from restore import main as restore
from training.config import TrainConfig


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """A folder with a small network."""
    folder = tmp_path_factory.mktemp("options")
    network(folder / "net.safetensors")
    return folder


@pytest.mark.parametrize(
    ("name", "options", "family"),
    [
        ("MotionBlur", {"strides": "2,4"}, MotionBlur((2, 4))),
        ("degradation.MotionBlur", {"strides": "8"}, MotionBlur((8,))),
        ("MissingPatches", {"max_visible": "0.25"}, MissingPatches(0.25)),
        ("MatrixDegradation", {"min_rows": "3", "max_rows": "9"}, MatrixDegradation(3, 9)),
        ("GaussianBlur", {"sigma": "2", "strides": "1, 2"}, GaussianBlur((1, 2), (2.0,))),
        ("GaussianBlur", {"sigma": "0.5,1e1"}, GaussianBlur(sigma=(0.5, 10.0))),
        ("HalfImage", {"side": "top"}, HalfImage("top")),
        ("Hadamard", {}, Hadamard()),
        ("Colourisation", {"of": "MotionBlur"}, Colourisation(of=MotionBlur())),
        ("Colourisation", {"weights": "luma"}, Colourisation("luma")),
        ("RandomDegradation", {"members": "Box, degradation.Hadamard"},
         RandomDegradation((Box(), Hadamard()))),
    ],
)  # fmt: skip
def test_options_are_read_by_the_type_of_their_field(name, options, family):
    assert get_family(name, options) == family
    assert family_of(name, options) == family


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("MotionBlur", {"speed": "2"}, "'MotionBlur' has no option 'speed'; it has strides"),
        ("Box", {"side": "2"}, "'Box' has no option 'side'; it has none"),
        ("MotionBlur", {"strides": "two"}, "strides='two' must be whole numbers such as 2,4"),
        ("MotionBlur", {"strides": "2,"}, "strides='2,' must be whole numbers"),
        (
            "MotionBlur",
            {"strides": "0"},
            r"must be whole numbers of at least 1, not \(0,\)",
        ),
        ("GaussianBlur", {"sigma": "nan"}, "sigma='nan' must be numbers such as 0.5,2"),
        ("MissingPatches", {"max_visible": "much"}, "max_visible='much' must be a number"),
        ("MatrixDegradation", {"max_rows": "1.5"}, "max_rows='1.5' must be a whole number"),
        ("Colourisation", {"of": "Fog"}, r"unknown degradation 'Fog'; known are .*Box"),
        ("degradation.Mask", {}, "'degradation.Mask' is no subclass of Family"),
        (
            "RandomDegradation",
            {"members": "Box,Fog"},
            r"unknown degradation 'Fog'; known are .*Box",
        ),
        ("RandomDegradation", {"members": "FixedMask"}, "'FixedMask' needs the option 'mask'"),
        ("FixedMask", {}, "'FixedMask' needs the option 'mask'"),
        ("FixedKernel", {"stride": "2"}, "'FixedKernel' needs the option 'kernel'"),
        (
            "FixedMask",
            {"mask": "file.png"},
            "mask='file.png' must be given as a value, not as text",
        ),
    ],
)
def test_options_that_do_not_serve_are_refused(name, options, text):
    with pytest.raises(ValueError, match=text) as error:
        get_family(name, options)
    assert "\n" not in str(error.value)


def test_every_option_of_every_family_has_a_way_to_be_read():
    for family in FAMILIES.values():
        for option in dataclasses.fields(family):
            with pytest.raises(ValueError, match=rf"{option.name}.* must be|unknown degradation"):
                get_family(family.__name__, {option.name: "nonsense,"})


def test_yaml_has_its_own_types():
    assert family_of("MotionBlur", {"strides": [2, 4]}) == MotionBlur((2, 4))
    assert family_of("MotionBlur", {"strides": 4}) == MotionBlur((4,))
    assert family_of("MissingPatches", {"max_visible": 0.2}) == MissingPatches(0.2)
    assert family_of("RandomDegradation", {"members": ["Box", "NoDegradation"]}) == (
        RandomDegradation((Box(), NoDegradation()))
    )


@pytest.fixture
def files(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    mask = np.full((16, 16), 255, np.uint8)
    mask[4:9, 2:5] = 0
    Image.fromarray(mask).save("mask.png")
    np.save("kernel.npy", np.array([[0.0, 0.5, 0.5]]))
    return tmp_path


def test_masks_and_kernels_come_from_files(files):
    mask = family_of("FixedMask", {"mask": "mask.png"})
    assert isinstance(mask, FixedMask) and mask.mask.shape == (1, 16, 16)
    assert int((~mask.mask).sum()) == 15
    kernel = family_of("FixedKernel", {"kernel": "kernel.npy", "stride": "2"})
    assert isinstance(kernel, FixedKernel) and kernel.stride == 2
    assert torch.equal(kernel.kernel, torch.tensor([[0.0, 0.5, 0.5]]))
    with pytest.raises(ValueError, match=r"none\.png cannot be read"):
        family_of("FixedMask", {"mask": "none.png"})
    with pytest.raises(ValueError, match="no option 'mask'"):
        family_of("MotionBlur", {"mask": "none.png"})


def test_options_go_to_the_family_they_name():
    names = ["degradation.MotionBlur", "Hadamard"]
    options = {"MotionBlur.strides": "2", "degradation.Hadamard.ratio": "0.5"}
    assert families_of(names, options) == {
        "MotionBlur": MotionBlur((2,)),
        "Hadamard": Hadamard(0.5),
    }
    assert families_of(["Hadamard"], {"ratio": "0.5"}) == {"Hadamard": Hadamard(0.5)}
    with pytest.raises(ValueError, match=r"must name the degradation: MotionBlur\.ratio, Hadam"):
        families_of(names, {"ratio": "0.5"})
    with pytest.raises(ValueError, match=r"--degradation-opt Box\.side must name"):
        families_of(names, {"Box.side": "1"})


def test_a_family_within_a_family_has_options_too(files):
    grey = family_of("Colourisation", {"of": "MotionBlur", "of.strides": "4", "weights": "luma"})
    assert grey == Colourisation("luma", MotionBlur((4,)))
    mask = family_of("Colourisation", {"of": "degradation.FixedMask", "of.mask": "mask.png"})
    assert isinstance(mask, Colourisation) and isinstance(mask.of, FixedMask)
    options = {"members": "Box, degradation.MotionBlur,Box", "members.MotionBlur.strides": [2, 4]}
    mixture = family_of("RandomDegradation", options)
    assert mixture == RandomDegradation((Box(), MotionBlur((2, 4)), Box()))
    names = ["Colourisation", "Hadamard"]
    named = {"Colourisation.of": "MotionBlur", "Colourisation.of.strides": "2"}
    assert families_of(names, named)["Colourisation"] == Colourisation(of=MotionBlur((2,)))
    for family, options, message in [
        ("Colourisation", {"of.strides": "2"}, r"'Colourisation': of\.strides needs of="),
        ("Colourisation", {"of": "MotionBlur", "of.speed": "2"}, "has no option 'speed'"),
        ("RandomDegradation", {"members": "Box,Hadamard", "members.strides": "2"},
         r"members\. strides must name the degradation: Box\.strides, Hadamard\.strides"),
        ("MotionBlur", {"of.strides": "2"}, "'MotionBlur' has no option 'of.strides'"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            family_of(family, options)


def test_a_family_given_twice_is_refused():
    with pytest.raises(ValueError, match="--degradation Box is given twice"):
        families_of(["Box", "degradation.Box"], {})
    with pytest.raises(ValueError, match="--sampler heun is given twice"):
        samplers_of(["heun", "mmse", "heun"], {})


@pytest.mark.parametrize(
    ("name", "near"),
    [("MotonBlur", "MotionBlur"), ("motionblur", "MotionBlur"), ("degradation.SRconv", "SRConv")],
)
def test_an_unknown_family_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=rf"'{name}'.*: is it {near}") as error:
        get_family(name)
    assert len(str(error.value)) < 200


def test_all_families_are_listed_with_their_options(capsys):
    runpy.run_module("degradation", run_name="__main__")
    listed = capsys.readouterr().out
    assert [line.split()[0] for line in listed.splitlines()[::2]] == list(FAMILIES)
    assert "GaussianBlur  strides=1 sigma=1.0,4.0\n" in listed
    assert "FixedMask  mask=...\n" in listed  # required
    assert "[of=...]" in listed  # may be left out


# ---- the command lines -----------------------------------------------------------------------


def test_gen_measures_what_the_options_say(home, tmp_path, files):
    result = call_metrics(
        home, "gen", "--net", "net.safetensors", *DATA, *FAST, "--outdir", tmp_path / "out",
        "--images", 2, "--degradation", "FixedMask", "--degradation", "degradation.AveragePool",
        "--degradation-opt", "FixedMask.mask=mask.png", "--degradation-opt",
        "AveragePool.strides=4",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    record = metrics(tmp_path / "out")
    assert record["settings"]["degradation_opt"] == {
        "FixedMask.mask": "mask.png", "AveragePool.strides": "4",
    }  # fmt: skip
    assert set(record["metrics"]["values"]) == {"FixedMask", "AveragePool"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--degradation-opt=speed=1"], ("no option 'speed'", "max_visible")),
        (["--degradation-opt=max_visible=2"], ("max_visible must lie between", "1, not 2.0")),
        (["--degradation-opt=max_visible"], ("key=value",)),
        (["--degradation=Box", "--degradation-opt=max_visible=0.2"], ("must name", "Box.max_vis")),
    ],
)
def test_gen_refuses_in_a_sentence(home, tmp_path, arguments, words):
    refused(gen(home, tmp_path / "out", *arguments), *words)


def test_photos_are_degraded_as_the_options_say(files):
    pixels = np.random.default_rng(0).integers(0, 256, (16, 16, 3)).astype(np.uint8)
    Image.fromarray(pixels).save("photo.png")
    request = Request(
        Path("photo.png"), degradation="AveragePool", degradation_opt={"strides": "4"}
    )
    task = pose(request, (3, 16, 16), torch.device("cpu"))
    assert task.measurement is not None and task.measurement.shape == (3, 4, 4)
    masked = Request(
        Path("photo.png"), degradation="FixedMask", degradation_opt={"mask": "mask.png"}
    )
    assert (
        int((~pose(masked, (3, 16, 16), torch.device("cpu")).problem.degradation.rows).sum()) == 45
    )
    Image.fromarray(pixels).resize((32, 32)).save("large.png")
    for name in ("Hadamard", "Colourisation"):
        with pytest.raises(ValueError, match=f"masks and blurs.*, and {name} .*--fit resize"):
            pose(Request(Path("large.png"), degradation=name), (3, 16, 16), torch.device("cpu"))
    blurred = Request(Path("large.png"), degradation="UniformBlur", degradation_opt={"sides": "3"})
    assert pose(blurred, (3, 16, 16), torch.device("cpu")).blur is not None


def test_restore_refuses_options_of_no_family(home, files):
    result = Runner().invoke(
        restore, ["--net", str(home / "net.safetensors"), "--image=photo.png", "--outdir=out",
                  "--mask=mask.png", "--degradation-opt=strides=2"],
    )  # fmt: skip
    refused(result, "--degradation-opt goes with a --degradation")


QUICK = [
    "--preset=tiny", "--data-opt=resolution=16", "--degradation=RandomDegradation", "--batch=4",
    "--precision=fp32", "--workers=0", "--duration=4", "--validate-images=2", "--sheet-every=0",
]  # fmt: skip


def test_a_run_keeps_its_options(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    members = "--degradation-opt=members=Box,Hadamard"
    result = Runner().invoke(train.main, [*QUICK, members, "--outdir=run"])
    assert result.exit_code == 0, result.output
    config = TrainConfig.load(Path("run/config.yaml"), {})
    assert config.degradation_opt == {"members": "Box,Hadamard"}
    log = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    heldout = [entry["heldout_psnr"] for entry in log if "heldout_psnr" in entry]
    assert set(heldout[-1]) == {"Box", "Hadamard"}
    go_on = ["--resume=run", "--duration=8"]
    refused(
        Runner().invoke(train.main, [*go_on, "--degradation-opt=members=Box"]),
        "degradation_opt cannot change when a run is resumed",
    )
    result = Runner().invoke(train.main, go_on)
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--degradation-opt=members=Box,Fog"], ("unknown degradation 'Fog'",)),
        (["--degradation=Hadamard", "--degradation-opt=ratio=2"], ("ratio must lie in (0, 1]",)),
        (["--degradation=none", "--degradation-opt=ratio=2"], ("options of no degradation",)),
    ],
)
def test_train_refuses_in_a_sentence(tmp_path, monkeypatch, arguments, words):
    monkeypatch.chdir(tmp_path)
    refused(Runner().invoke(train.main, [*QUICK, *arguments]), *words)


def test_help_names_the_option():
    for command in (calculate_metrics.main, restore, train.main):
        words = ["gen", "-h"] if command is calculate_metrics.main else ["-h"]
        assert "--degradation-opt" in Runner().invoke(command, words).output


def test_a_family_of_the_users_own_is_found_by_its_module(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "from dataclasses import dataclass\n"
        "from degradation import Family, Mask\n"
        "import torch\n"
        "@dataclass(frozen=True)\n"
        "class Everything(Family):\n"
        "    shade: int = 1\n"
        "    def sample(self, image_shape, structure, seeds, device='cpu'):\n"
        "        return Mask(torch.ones(len(seeds), 1, *image_shape[1:]), image_shape)\n"
        "NotOne = int\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    family = get_family("mine.Everything", {"shade": "3"})
    assert family.shade == 3
    x = torch.ones(2, 3, 4, 4)
    assert torch.equal(family.sample((3, 4, 4), None, [0, 1]).H(x), x.flatten(1))
    with pytest.raises(ValueError, match=r"'mine.NotOne' is no subclass of Family"):
        get_family("mine.NotOne")
    for name in ("mine.None", "nowhere.Everything", ".Everything", "Everything"):
        with pytest.raises(ValueError, match="unknown degradation"):
            get_family(name)


def test_a_family_that_returns_no_operator_is_refused():
    class Nothing(Family):
        def sample(self, image_shape, structure, seeds, device="cpu"):
            return None

    with pytest.raises(ValueError, match=r"must return a LinearOperator, not NoneType"):
        Nothing().check((3, 8, 8))
