"""`calculate_metrics.py gen` by its options, and how the programs start."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
import yaml
from command_lines import GEN, TRAIN, assert_names, refusal, success
from torch.distributed.run import get_args_parser

import calculate_metrics
import train
from networks import Denoiser, make_config, save_weights

pytestmark = pytest.mark.usefixtures("folder")

ROOT = Path(train.__file__).parent


@pytest.fixture(scope="module")
def nets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Weights files by what is the matter with them."""
    home = tmp_path_factory.mktemp("nets")
    files = {name: home / f"{name}.safetensors" for name in ("good", "unconditional", "cut")}
    save_weights(files["good"], Denoiser(make_config("tiny")), {})
    save_weights(files["unconditional"], Denoiser(make_config("tiny", "unconditional")), {})
    files["cut"].write_bytes(files["good"].read_bytes()[:-100])
    files["text"] = home / "text.safetensors"
    files["text"].write_text("no tensors")
    files["folder"] = home
    files["absent"] = home / "absent.safetensors"
    return files


@pytest.mark.parametrize("outdir", ["file", "file/run"])
@pytest.mark.parametrize("command", [train.main, calculate_metrics.main], ids=["train", "gen"])
def test_a_folder_that_cannot_be_made_is_refused(folder, nets, command, outdir):
    (folder / "file").write_text("")
    arguments = TRAIN if command is train.main else [*GEN, f"--net={nets['good']}"]
    assert_names(refusal(command, [*arguments, f"--outdir={outdir}"]), "file")


# ---- calculate_metrics.py gen --------------------------------------------------------------------

GEN_REFUSALS = [
    ("--sampler=best", "'best' heun mmse"),
    ("--sampler-opt=speed=1", "'speed' mmse sigma"),
    ("--sampler-opt=sigma=big", "sigma 'big' number"),
    ("--sampler-opt=heun.num_steps=8", "heun.num_steps sampler"),
    ("--metrics=psnr,beauty", "'beauty' psnr ssim consistency"),
    ("--data-opt=resolution=32", "good.safetensors 16 32"),
    ("--images=5", "--images 5 4 datautils.photos.Photos"),
    ("--noise-level=nan", "noise nan"),
]


@pytest.mark.parametrize(("argument", "words"), GEN_REFUSALS)
def test_gen_refuses_in_a_sentence(nets, argument, words):
    sentence = refusal(calculate_metrics.main, [*GEN, f"--net={nets['good']}", argument])
    assert_names(sentence, words)


@pytest.mark.parametrize(
    ("net", "words"),
    [
        ("absent", "no weights file"),
        ("cut", "damaged"),
        ("text", "safetensors"),
        ("folder", "is a folder"),
        ("unconditional", "unconditional"),
    ],
)
def test_weights_that_do_not_serve_are_refused_by_their_name(nets, net, words):
    sentence = refusal(calculate_metrics.main, [*GEN, f"--net={nets[net]}"])
    assert_names(sentence, f"{nets[net]} {words}")


@pytest.mark.parametrize("option", ["--net", "--degradation", "--outdir"])
def test_what_gen_needs_is_asked_for(nets, option):
    given = [*GEN, f"--net={nets['good']}"]
    arguments = [argument for argument in given if not argument.startswith(option + "=")]
    assert_names(refusal(calculate_metrics.main, arguments), option)


def test_options_reach_the_sampler_they_name(folder, nets):
    arguments = [
        *GEN, "--sampler=heun", "--sampler-opt=heun.num_steps=5", "--sampler-opt=mmse.sigma=50",
        f"--net={nets['good']}", "--images=2", "--baselines=", "--metrics=psnr",
    ]  # fmt: skip
    success(calculate_metrics.main, arguments)
    cells = yaml.safe_load((folder / "restored" / "metrics.json").read_text())["metrics"]["values"]
    calls = {method: cell["evaluations"] for method, cell in cells["MotionBlur"].items()}
    assert calls == {"InvFusion MMSE": 1, "InvFusion sample (heun)": 9}
    assert all(cell["psnr"]["count"] == 2 for cell in cells["MotionBlur"].values())


# ---- starting the programs -----------------------------------------------------------------------


@pytest.mark.parametrize("script", ["train", "calculate_metrics"])
def test_help_is_shown_without_loading_torch(script):
    code = f"import sys, {script}; {script}.main(['--help'], standalone_mode=False);"
    code += "assert 'torch' not in sys.modules"
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith("Usage:")


def options(command: click.Command) -> list[str]:
    return [name for parameter in command.params for name in parameter.opts]


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["train.py"], options(train.main)),
        (["calculate_metrics.py", "gen"], options(calculate_metrics.main.commands["gen"])),
    ],
)
def test_torchrun_leaves_every_option_to_the_script(words, names):
    # It reads abbreviations of its own options wherever they stand.
    for name in names:
        arguments = ["--standalone", "--nproc_per_node=2", *words, name, "1"]
        parsed = get_args_parser().parse_args(arguments)
        assert [parsed.training_script, *parsed.training_script_args] == [*words, name, "1"]
