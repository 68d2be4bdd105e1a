"""The command lines: what is accepted, and mistakes told in one sentence that leave nothing."""

import json
import shutil
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import click
import pytest
import torch
import yaml
from click.testing import CliRunner, Result
from torch.distributed.run import get_args_parser

import calculate_metrics
import train
from networks import Denoiser, load_weights, make_config, save_weights
from runtime import distributed
from runtime.options import parse_count
from training.config import TrainConfig
from training.log import read_log

ROOT = Path(train.__file__).parent

TRAIN = [
    "--preset=tiny", "--data-class=datautils.photos.Photos", "--data-opt=resolution=16",
    "--degradation=MotionBlur", "--batch=4", "--duration=8", "--precision=fp32", "--workers=0",
    "--outdir=run",
]  # fmt: skip
GEN = [
    "gen", "--data=datautils.photos.Photos", "--data-opt=resolution=16", "--data-opt=size=4",
    "--degradation=MotionBlur", "--sampler=mmse", "--outdir=restored",
]  # fmt: skip


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working folder, and no GPU."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return tmp_path


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


def contents(folder: Path) -> dict[str, bytes | None]:
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def refusal(command: click.Command, arguments: list[str]) -> str:
    """The sentence with which a command refuses its arguments, leaving everything as it was."""
    before = contents(Path())
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 2, (result.exception, result.stderr[-300:])
    assert result.stdout == ""
    assert contents(Path()) == before
    lines = result.stderr.splitlines()
    if lines[0].startswith("Usage:"):
        assert lines[-1].startswith("Error: ")
        return lines[-1]
    assert len(lines) == 1 and lines[0].startswith("error: ")
    return lines[0]


def success(command: click.Command, arguments: list[str]) -> Result:
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, (result.exception, result.stderr[-300:])
    return result


def assert_names(sentence: str, words: str) -> None:
    """Every word, separated by spaces, stands in the sentence."""
    missing = [word for word in words.split() if word not in sentence]
    assert not missing, f"{missing} not in: {sentence}"


# ---- train.py ------------------------------------------------------------------------------------

# An argument, and the words that the answer must hold: the thing at fault, and what is accepted.
TRAIN_REFUSALS = [
    ("--preset=huge", "'huge' FFHQ64 small32 tiny"),
    ("--degradation=Blurr", "'Blurr' MotionBlur"),
    ("--data-class=datautils.photos.Fotos", "datautils.photos.Fotos Photos"),
    ("--data-class=nowhere", "'nowhere' Photos ImageDir"),
    ("--data-class=datautils.photos", "datautils.photos"),
    ("--data-opt=colour=3", "'colour' resolution size"),
    ("--data-opt=resolution", "'resolution' key=value"),
    ("--data-opt==16", "'=16' key=value"),
    ("--data-opt=resolution=9999", "9999 664"),
    ("--data-opt=resolution=18", "18×18 multiples 4"),
    ("--data-opt=resolution=20", "20×20 stride 8"),
    ("--data-opt=resolution=wide", "resolution wide"),
    ("--data-opt=resolution=[16", "resolution"),
    ("--data-opt=size=0", "size 0"),
    ("--data-opt=split=heldout", "split resolution size"),
    ("--data-opt=name=x", "name resolution size"),
    ("--noise-level=-0.1", "noise_level -0.1 0"),
    ("--noise-level=nan", "noise_level nan"),
    ("--noise-level=inf", "noise inf"),
    ("--noise-level=much", "noise_level much"),
    ("--mmse-share=2", "mmse_share 2 between 0 and 1"),
    ("--label-drop=-0.5", "label_dropout -0.5 between 0 and 1"),
    ("--batch=0", "batch 0 above"),
    ("--batch=many", "batch many 64Ki"),
    ("--batch=-4", "batch -4"),
    ("--batch-gpu=3", "batch_gpu 3 4"),
    ("--duration=0", "duration 0"),
    ("--duration=8Zi", "duration 8Zi 64Ki"),
    ("--max-minutes=0", "max_minutes 0"),
    ("--lr=0", "lr 0"),
    ("--lr=nan", "lr nan"),
    ("--lr=inf", "lr inf"),
    ("--decay=0", "decay 0"),
    ("--P_mean=nan", "P_mean nan"),
    ("--P_std=0", "P_std 0"),
    ("--precision=fp8", "fp8 auto fp32 bf16 fp16"),
    ("--seed=-1", "seed -1"),
    ("--seed=99999999999999999999999", "seed"),
    ("--workers=-1", "workers -1"),
    ("--colour=red", "--colour"),
    ("--wandb=", "wandb project"),
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
    "unknown setting that is a number": ("3: 4\nfoo: 5", "preset degradation"),
    "list for a count": ("batch: [1, 2]", "batch whole"),
    "text for a count": ("batch: lots", "batch 'lots' 64Ki"),
    "fraction for a count": ("batch: 1.5", "batch 1.5"),
    "text for a number": ("lr: fast", "lr 'fast' number"),
    "boolean for a number": ("lr: true", "lr True number"),
    "text for a boolean": ("blind: maybe", "blind 'maybe' true false"),
    "number for a text": ("preset: 64", "preset 64 text"),
    "nothing for a number": ("lr:", "lr None"),
    "list for a mapping": ("data: [1, 2]", "data mapping"),
    "text for a mapping": ("data: photos", "data mapping"),
    "three betas": ("betas: [0.9, 0.99, 0.999]", "betas two"),
    "unknown precision": ("precision: fp8", "precision fp8 auto fp32 bf16"),
    "out of range": ("mmse_share: 2", "mmse_share 2 between"),
    "list for settings": ("- preset: tiny", "name: value"),
    "empty": ("", "name: value"),
    "not YAML": ("preset: [tiny", "YAML"),
    "not text": (b"\xff\xfe\x00\x80", "YAML"),
}


@pytest.mark.parametrize(("text", "words"), CONFIG_REFUSALS.values(), ids=CONFIG_REFUSALS)
def test_a_bad_configuration_is_refused_by_its_name(folder, text, words):
    file = folder / "mine.yaml"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    sentence = refusal(train.main, ["--config=mine.yaml", "--dry-run"])
    assert_names(sentence, f"mine.yaml {words}")


def test_a_missing_configuration_is_refused():
    sentence = refusal(train.main, ["--config=nowhere.yaml"])
    assert_names(sentence, "nowhere.yaml No such file")


def test_settings_of_the_command_line_are_refused_without_blaming_a_file():
    assert refusal(train.main, [*TRAIN, "--lr=0"]).startswith("error: lr")


def test_a_batch_that_the_processes_cannot_share_is_refused(monkeypatch):
    monkeypatch.setattr(distributed, "world_size", lambda: 3)
    assert_names(refusal(train.main, TRAIN), "batch=4 divisible 3")


@pytest.mark.parametrize("outdir", ["file", "file/run"])
@pytest.mark.parametrize("command", [train.main, calculate_metrics.main], ids=["train", "gen"])
def test_a_folder_that_cannot_be_made_is_refused(folder, nets, command, outdir):
    (folder / "file").write_text("")
    arguments = TRAIN if command is train.main else [*GEN, f"--net={nets['good']}"]
    assert_names(refusal(command, [*arguments, f"--outdir={outdir}"]), "file")


# ---- a run and its continuation ------------------------------------------------------------------


@pytest.fixture
def config(folder: Path) -> str:
    """Options of a run of a few steps that is quick."""
    settings = {
        "preset": "tiny", "data": {"resolution": 16}, "degradation": "MotionBlur", "batch": 4,
        "duration": 8, "precision": "fp32", "workers": 0, "lr": 1e-3, "ramp": 8, "decay": None,
        "log_every": 4, "validate_every": 8, "validate_images": 2,
    }  # fmt: skip
    (folder / "quick.yaml").write_text(yaml.safe_dump(settings))
    return "--config=quick.yaml"


def test_a_run_leaves_weights_log_curves_and_its_settings(folder, config):
    success(train.main, [config, "--name=mine", "--seed=3"])
    run = folder / "experiments" / "mine"
    names = {path.name for path in run.iterdir() if path.name != ".lock"}
    assert names == {
        "checkpoints", "config.yaml", "curves.png", "log.jsonl", "starts.jsonl",
        "weights.safetensors",
    }  # fmt: skip
    resolved = TrainConfig.load(run / "config.yaml", {})
    assert resolved == TrainConfig.load(Path("quick.yaml"), {"seed": 3})
    (start,) = map(json.loads, (run / "starts.jsonl").read_text().splitlines())
    assert start["command"] and start["environment"]["torch"] == torch.__version__
    heldout = [line["heldout_psnr"] for line in read_log(run) if "heldout_psnr" in line]
    assert len(heldout) == 2 and all(set(psnr) == {"MotionBlur"} for psnr in heldout)


def test_a_run_is_named_after_its_preset(folder, config):
    success(train.main, [config])
    assert [path.name for path in (folder / "experiments").iterdir()] == ["tiny"]


def test_a_folder_that_holds_a_run_is_refused(folder, config):
    success(train.main, [config, "--outdir=run"])
    sentence = refusal(train.main, [config, "--outdir=run"])
    assert_names(sentence, "run --resume --outdir")


def assert_same_weights(*runs: str) -> None:
    one, other = (load_weights(Path(run, "weights.safetensors")).state_dict() for run in runs)
    torch.testing.assert_close(one, other, rtol=0, atol=0)


def test_a_resumed_run_ends_like_one_that_was_longer_from_the_start(config):
    success(train.main, [config, "--outdir=long", "--duration=16"])
    success(train.main, [config, "--outdir=short"])
    success(train.main, ["--resume=short", "--duration=16"])
    assert_same_weights("long", "short")
    losses = [
        [line["loss"] for line in read_log(Path(n)) if "loss" in line] for n in ("long", "short")
    ]
    assert losses[0] == losses[1] and len(losses[0]) == 4
    assert TrainConfig.load(Path("short/config.yaml"), {}).duration == 16
    starts = Path("short/starts.jsonl").read_text().splitlines()
    assert len(starts) == 2  # every start is on record


def test_a_damaged_checkpoint_is_passed_over_with_a_warning(config):
    success(train.main, [config, "--outdir=run"])
    success(train.main, ["--resume=run", "--duration=16"])
    newest = sorted(Path("run/checkpoints").iterdir())[-1]
    (newest / "model.safetensors").write_bytes(b"")
    result = success(train.main, ["--resume=run", "--duration=16"])
    warnings = [line for line in result.stdout.splitlines() if line.startswith("warning: ")]
    assert len(warnings) == 1 and str(newest) in warnings[0]


def test_a_log_that_was_cut_in_a_line_does_not_stop_a_resumed_run(config):
    success(train.main, [config, "--outdir=run"])
    with Path("run/log.jsonl").open("a") as file:
        file.write('{"images": 8, "st')
    success(train.main, ["--resume=run", "--duration=16"])
    assert read_log(Path("run"))[-1]["images"] == 16


@pytest.mark.parametrize("log", [None, b"", b"\xff\xfe\n[1]\n{}\n5\n"])
def test_a_run_goes_on_where_its_log_is_lost(config, log):
    success(train.main, [config, "--outdir=run"])
    Path("run/log.jsonl").unlink()
    if log is not None:
        Path("run/log.jsonl").write_bytes(log)
    success(train.main, ["--resume=run", "--duration=16"])
    assert read_log(Path("run"))[-1]["images"] == 16


def test_resuming_a_folder_that_is_no_run_is_refused(folder):
    (folder / "empty").mkdir()
    assert_names(refusal(train.main, ["--resume=empty"]), "empty")
    assert_names(refusal(train.main, ["--resume=nowhere"]), "nowhere")


def test_resuming_a_run_whose_checkpoints_were_removed_is_refused(config):
    success(train.main, [config, "--outdir=run"])
    shutil.rmtree("run/checkpoints")
    assert_names(refusal(train.main, ["--resume=run"]), "run checkpoint")


def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(config):
    success(train.main, [config, "--outdir=whole"])
    Path("run").mkdir()
    Path("run/config.yaml").write_text(Path("whole/config.yaml").read_text())
    Path("run/log.jsonl").write_text('{"images": 4, "loss": 1.0}\n')
    success(train.main, ["--resume=run"])
    assert_same_weights("whole", "run")
    assert len(read_log(Path("run"))) == len(read_log(Path("whole")))


def test_the_same_command_starts_a_run_and_goes_on_with_it(config):
    success(train.main, [config, "--outdir=long", "--duration=16"])
    success(train.main, [config, "--outdir=run", "--keep-going"])
    assert read_log(Path("run"))[-1]["images"] < 16
    sentence = refusal(train.main, [config, "--outdir=run", "--keep-going", "--lr=1"])
    assert_names(sentence, "lr resumed")
    assert_names(refusal(train.main, [config, "--outdir=run"]), "run --resume")
    success(train.main, [config, "--outdir=run", "--keep-going", "--duration=16"])
    assert_same_weights("long", "run")


def test_torchrun_may_start_a_run_again_only_if_it_then_goes_on(config, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    sentence = refusal(train.main, [config, "--outdir=run"])
    assert_names(sentence, "--max-restarts --keep-going")
    success(train.main, [config, "--outdir=run", "--keep-going"])
    success(train.main, ["--resume=run", "--duration=16"])


def test_a_folder_in_which_another_process_trains_is_refused(config):
    success(train.main, [config, "--outdir=run"])
    hold = (
        "import fcntl; f = open('run/.lock', 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(); input()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert other.stdout and other.stdout.readline()
    assert_names(refusal(train.main, ["--resume=run", "--duration=16"]), "another process run")
    other.communicate(b"\n")
    success(train.main, ["--resume=run", "--duration=16"])


def test_a_folder_in_which_another_run_ended_meanwhile_is_refused(config, monkeypatch):
    import commands.train

    claimed = commands.train._claimed

    def late(folder: Path) -> AbstractContextManager[None]:
        folder.mkdir()
        (folder / "weights.safetensors").write_bytes(b"of another run")
        return claimed(folder)

    monkeypatch.setattr(commands.train, "_claimed", late)
    result = CliRunner().invoke(train.main, [config, "--outdir=run"])
    assert result.exit_code == 2 and result.stderr.count("\n") == 1
    assert_names(result.stderr, "run --resume --name")
    assert not Path("run/config.yaml").exists()
    assert Path("run/weights.safetensors").read_bytes() == b"of another run"


@pytest.mark.parametrize("option", ["--config=quick.yaml", "--name=other", "--outdir=other"])
def test_resuming_takes_the_settings_of_the_run(config, option):
    assert_names(refusal(train.main, ["--resume=run", option]), "--config --name --outdir")


def test_resuming_another_network_is_refused(config):
    success(train.main, [config, "--outdir=run"])
    sentence = refusal(train.main, ["--resume=run", "--blind-train"])
    assert_names(sentence, "blind resumed duration")


# ---- settings ------------------------------------------------------------------------------------


def dry_run(*arguments: str) -> TrainConfig:
    """The settings that a dry run prints, read back."""
    Path("resolved.yaml").write_text(success(train.main, [*arguments, "--dry-run"]).stdout)
    return TrainConfig.load(Path("resolved.yaml"), {})


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
    assert (plain.preset, plain.lr, plain.data) == ("tiny", 1e-3, {"resolution": 16, "size": 9})
    changed = dry_run("--config=mine.yaml", "--lr=2e-3", "--data-opt=size=5", "--blind-train")
    assert (changed.lr, changed.data, changed.blind) == (2e-3, {"resolution": 16, "size": 5}, True)


def test_sizes_may_be_written_as_people_do(folder):
    config = dry_run("-b", "1Ki", "--duration=2^25", "--ramp=10k", "--decay=1.5k")
    assert (config.batch, config.duration) == (1024, 2**25)
    assert (config.ramp, config.decay) == (10_000, 1500)
    (folder / "mine.yaml").write_text("duration: 8Mi\nbatch: 512\ndecay: null\n")
    config = dry_run("--config=mine.yaml")
    assert (config.duration, config.batch, config.decay) == (2**23, 512, None)


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), ("4096", 4096), (" 64Ki ", 65536), ("8Mi", 2**23), ("1gi", 2**30), ("10k", 10_000),
     ("2M", 2_000_000), ("1.5Ki", 1536), ("2^0", 1), (7, 7)],
)  # fmt: skip
def test_counts(text, count):
    assert parse_count(text) == count


@pytest.mark.parametrize(
    "text", ["", "Ki", "-1", "4 096", "1e3", "64Kb", "2^", "2^-1", "3^2", "0x10"]
)
def test_what_is_no_count(text):
    with pytest.raises(ValueError, match="no count such as 4096, 64Ki"):
        parse_count(text)


# ---- calculate_metrics.py gen --------------------------------------------------------------------

GEN_REFUSALS = [
    ("--degradation=Blurr", "'Blurr' MotionBlur"),
    ("--sampler=best", "'best' heun mmse"),
    ("--sampler-opt=speed=1", "'speed' mmse sigma"),
    ("--sampler-opt=sigma=big", "sigma 'big' number"),
    ("--sampler-opt=sigma=-1", "sigma -1 between"),
    ("--sampler-opt=heun.num_steps=8", "heun.num_steps sampler"),
    ("--sampler-opt=sigma", "'sigma' key=value"),
    ("--metrics=psnr,beauty", "'beauty' psnr ssim consistency"),
    ("--baselines=pinv,magic", "'magic' pinv fill gaussian"),
    ("--data=nowhere", "'nowhere' Photos ImageDir"),
    ("--data-opt=colour=3", "'colour' resolution size"),
    ("--data-opt=resolution=wide", "resolution wide"),
    ("--data-opt=resolution=32", "good.safetensors 16 32"),
    ("--data-opt=split=train", "split resolution"),
    ("--images=0", "--images 0 1"),
    ("--images=5", "--images 5 4 datautils.photos.Photos"),
    ("--batch=0", "--batch 0 1"),
    ("--noise-level=-1", "--noise-level -1 0"),
    ("--noise-level=nan", "noise nan"),
    ("--noise-level=inf", "noise inf"),
    ("--precision=fp8", "fp8 auto fp32 bf16 fp16"),
    ("--seed=-1", "--seed -1"),
    ("--pictures=-1", "--pictures -1"),
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
        ("folder", "folder"),
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


@pytest.mark.parametrize("change", ["--precision=fp16", "--batch=8", "--lr=1", "--seed=9"])
def test_what_makes_a_run_what_it_is_cannot_change_on_resuming(config, change):
    success(train.main, [config, "--outdir=run"])
    name = change[2:].partition("=")[0]
    assert_names(refusal(train.main, ["--resume=run", change]), f"{name} resumed duration")


def test_a_run_that_died_before_its_first_checkpoint_starts_anew(config):
    Path("run").mkdir()
    Path("run/log.jsonl").write_text('{"images": 0, "cut')
    success(train.main, [config, "--outdir=run"])
    assert all("images" in line for line in read_log(Path("run")))


def test_weights_that_are_not_finite_are_never_written(config):
    arguments = [config, "--outdir=run", "--lr=1e38", "--ramp=0", "--decay=none", "--duration=16"]
    result = CliRunner().invoke(train.main, arguments)
    assert result.exit_code == 2
    assert "not finite after" in result.stderr and "lower the learning rate" in result.stderr
    assert not list(Path("run").rglob("*.safetensors"))


def test_any_setting_can_be_set(config):
    assert dry_run(config, "--degradation=none").degradation is None
    resolved = dry_run(config, "--cooldown=0.25", "--decay=null", "--betas=[0.8, 0.9]")
    assert (resolved.cooldown, resolved.decay, resolved.betas) == (0.25, None, (0.8, 0.9))
    assert dry_run(config, "--lr=1e-2", "--lr=0.5").lr == 0.5  # its own option comes last
    assert_names(refusal(train.main, [config, "--colour=1"]), "No such option --colour")
    assert_names(refusal(train.main, [config, "--cooldown=2"]), "cooldown 2 between")
