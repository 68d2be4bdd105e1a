"""Several processes do what one does: training and evaluation in forks of this one, with gloo."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from helpers import ONE_LEVEL
from PIL import Image
from processes import Processes
from runner import Runner
from safetensors.torch import load_file

import calculate_metrics
import train
from metrics.statistics import load_reference
from training.log import read_log

ROOT = Path(train.__file__).parent
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}

CONFIG = {
    "preset": "tiny", "data": {"resolution": 16}, "degradation": "RandomDegradation", "batch": 8,
    "duration": 48, "lr": 2e-3, "ramp": 16, "cooldown": 0.5, "mmse_share": 0.3,
    "noise_level": 0.05, "ema_halflife": 16, "ema_ramp": 0, "precision": "fp32", "workers": 0,
    "log_every": 8, "validate_every": 24, "validate_images": 6, "sheet_every": 0,
    "network": ONE_LEVEL,
}  # fmt: skip

# Restorations without a network are the same to the last bit.
EXACT = {"H†y", "constant fill", "Gaussian MMSE"}


@pytest.fixture(autouse=True, scope="module")
def no_gpu() -> Iterator[None]:
    """The processes have none, so this one must not use it either."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        yield


def alone(command, *arguments: object) -> None:
    """Run a command in this process."""
    result = Runner().invoke(command, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.exception, result.stderr[-500:])


def together(command, errors: Path, *arguments: object) -> None:
    """Run a command in two processes."""
    words = [str(argument) for argument in arguments]
    codes = Processes(command, words, count=2, errors=errors).codes()
    assert codes == [0, 0], errors.read_text()[-3000:]


def test_torchrun_starts_a_group(tmp_path):
    """The forks below are given the environment that torchrun gives."""
    from torch.distributed.run import main  # it runs in a fork: its processes are new ones

    (tmp_path / "script.py").write_text(
        "import atexit, pathlib\n"
        "here = pathlib.Path(__file__)\n"
        "def at_the_very_end():\n"  # what is registered first is called last
        "    here.with_name(f'{rank}.groups').write_text(str(len(d._groups)))\n"
        "atexit.register(at_the_very_end)\n"
        "from runtime import distributed as d\n"
        "with d.process_group():\n"
        "    rank = d.rank()\n"
        "    found = f'in all {sum(d.gather(d.rank() + 1))} of {d.world_size()}'\n"
        "    here.with_name(f'{rank}.txt').write_text(found)\n"
    )
    words = ["--standalone", "--nproc_per_node=2", str(tmp_path / "script.py")]
    errors = tmp_path / "errors"
    processes = Processes(main, words, environment=ENVIRONMENT, errors=errors)
    assert processes.codes() == [0], errors.read_text()[-3000:]
    # A group that outlives the interpreter aborts some runs, after all is done.
    assert [path.read_text() for path in tmp_path.glob("*.groups")] == ["0", "0"]
    assert [(tmp_path / f"{rank}.txt").read_text() for rank in range(2)] == ["in all 3 of 2"] * 2


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("distributed")
    (folder / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return folder


# ---- training ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """A run in one process."""
    alone(train.main, "--config", home / "config.yaml", "--outdir", home / "one")
    return home / "one"


@pytest.fixture(scope="module")
def shared_run(home: Path) -> Path:
    """The same in two processes, each of which does its share of a batch in two parts."""
    options = "--config", home / "config.yaml", "--outdir", home / "two", "--batch-gpu", 2
    together(train.main, home / "train.txt", *options)
    return home / "two"


def test_two_processes_learn_the_weights_of_one(run, shared_run):
    for name in ("weights.safetensors", "checkpoints/000000000048/model.safetensors"):
        one, two = load_file(run / name), load_file(shared_run / name)
        torch.testing.assert_close(two, one, rtol=0, atol=1e-5)


def test_two_processes_log_the_losses_of_one(run, shared_run):
    one, two = ([line for line in read_log(f) if "loss" in line] for f in (run, shared_run))
    assert len(one) == len(two) == 6
    for line, other in zip(one, two, strict=True):
        assert all(line[key] == other[key] for key in ("images", "step", "lr", "skipped"))
        assert other["loss"] == pytest.approx(line["loss"], rel=1e-5)


def test_two_processes_validate_like_one(run, shared_run):
    one, two = ([line for line in read_log(f) if "heldout_psnr" in line] for f in (run, shared_run))
    assert [line["images"] for line in one] == [line["images"] for line in two] == [0, 24, 48]
    for line, other in zip(one, two, strict=True):
        assert other["heldout_psnr"] == pytest.approx(line["heldout_psnr"], abs=1e-3)


def test_only_the_first_process_writes(run, shared_run):
    assert {path.name for path in run.iterdir()} == {path.name for path in shared_run.iterdir()}
    assert len(list((shared_run / "checkpoints").iterdir())) == 1


# ---- evaluation ----------------------------------------------------------------------------------


def options(run: Path, outdir: Path, batch: int) -> list[object]:
    return [
        "gen", "--net", run / "weights.safetensors", "--data-opt", "resolution=16",
        "--data-opt", "size=8", "--degradation", "MotionBlur",
        "--degradation", "MatrixDegradation", "--sampler", "heun", "--sampler", "mmse",
        "--sampler-opt", "heun.num_steps=4", "--baselines", "pinv,fill,gaussian",
        "--batch", batch, "--pictures", 2, "--outdir", outdir,
        "--metrics", "psnr,ssim,consistency,fd,cfd,kd", "--ref", run.parent / "ref.safetensors",
        "--detector", run.parent / "mean.pt", "--trust-detector", "--save-images",
    ]  # fmt: skip


class Means(torch.nn.Module):
    """A detector of three features."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.float().mean((2, 3)) / 255


def reference(home: Path, dest: Path) -> list[object]:
    return [
        "ref", "--data-opt", "resolution=16", "--data-opt", "size=8", "--dest", dest,
        "--detector", home / "mean.pt", "--trust-detector", "--batch", 3,
    ]  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def statistics(home: Path) -> None:
    torch.jit.script(Means()).save(home / "mean.pt")
    alone(calculate_metrics.main, *reference(home, home / "ref.safetensors"))


def test_two_processes_take_the_reference_of_one(home):
    dest = home / "two.safetensors"
    together(calculate_metrics.main, home / "ref.txt", *reference(home, dest))
    one, two = (load_file(home / f"{name}.safetensors") for name in ("ref", "two"))
    torch.testing.assert_close(two, one, rtol=1e-12, atol=1e-14)
    found, expected = (load_reference(home / f"{n}.safetensors").images for n in ("two", "ref"))
    assert found == expected == 8


@pytest.fixture(scope="module")
def whole(home: Path, run: Path) -> Path:
    """An evaluation in one process and the largest batches."""
    alone(calculate_metrics.main, *options(run, home / "whole", 8))
    return home / "whole"


@pytest.fixture(scope="module")
def other(home: Path, run: Path) -> Path:
    """The same evaluation in two processes and batches of 3."""
    together(calculate_metrics.main, home / "gen.txt", *options(run, home / "other", 3))
    return home / "other"


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_image.csv").open() as file:
        return list(csv.DictReader(file))


def test_every_image_is_measured_once_and_in_order(whole, other):
    keys = ["degradation", "image", "structure", "method"]
    one, two = ([[row[key] for key in keys] for row in rows(f)] for f in (whole, other))
    assert one == two and len(one) == 2 * 8 * 5


def test_values_of_an_image_do_not_depend_on_batch_or_processes(whole, other):
    columns = {"psnr": (0, 1e-3), "ssim": (0, 5e-6), "consistency": (2e-6, 1e-12)}
    for one, two in zip(rows(whole), rows(other), strict=True):
        for metric, (rel, abs_) in columns.items():
            a, b = float(one[metric]), float(two[metric])
            if one["method"] in EXACT:
                assert a == b, one
            else:
                # A rounding in the last bit of a network may move a pixel to the next level.
                assert b == pytest.approx(a, rel=rel, abs=abs_), one


def test_summaries_are_over_all_images(whole, other):
    one, two = (
        yaml.safe_load((f / "metrics.json").read_text())["metrics"]["values"]
        for f in (whole, other)
    )
    for degradation, methods in one.items():
        assert list(methods) == list(two[degradation])
        for method, cell in methods.items():
            found = two[degradation][method]
            assert found["psnr"]["count"] + found["psnr"]["infinite"] == 8
            assert found["psnr"]["mean"] == pytest.approx(cell["psnr"]["mean"], abs=1e-3)
            for metric in ("fd", "cfd", "kd"):
                # A pixel of a level more or less moves a mean of 256 by that much.
                assert found[metric]["mean"] == pytest.approx(cell[metric]["mean"], abs=1e-6)
            assert found["evaluations"] == cell["evaluations"]
            assert found["seconds_per_image"] > 0


def test_pictures_are_the_same(whole, other):
    one, two = (pixels(folder / "grid.png").astype(int) for folder in (whole, other))
    assert abs(one - two).max() <= 1


def test_the_same_images_are_written(whole, other):
    one, two = (
        sorted(p.relative_to(f) for p in (f / "images").rglob("*.png")) for f in (whole, other)
    )
    assert one == two and len(one) == 2 * 8 * 5
    for name in one:
        a, b = (pixels(folder / name).astype(int) for folder in (whole, other))
        assert abs(a - b).max() <= 1


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        return np.asarray(picture)


# ---- mistakes ------------------------------------------------------------------------------------


def test_a_batch_that_two_processes_cannot_share_is_refused(home):
    errors, odd = home / "odd.txt", home / "odd"
    words = [f"--config={home / 'config.yaml'}", "--batch=7", f"--outdir={odd}"]
    assert Processes(train.main, words, count=2, errors=errors).codes() == [2, 2]
    lines = [line for line in errors.read_text().splitlines() if not line.startswith("[Gloo]")]
    assert lines == ["error: batch=7 is not divisible by the 2 processes"]  # said once
    assert not odd.exists()
