"""An evaluation that was cut off goes on from its restorations, bit for bit."""

import csv
import importlib
import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from calling import DISTANCES, gen, metrics, uncond

from commands.methods import Restorer
from degradation import AveragePool, Bicubic, Draws, GaussianNoise, Problem
from metrics.keeping import FOLDER, Kept, code_of
from runtime import signals

TIMES = ("stages", "seconds_per_image")


def values(folder: Path) -> Any:
    """What was measured, without times."""

    def strip(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {k: strip(v) for k, v in value.items() if not k.startswith(TIMES)}

    return strip(metrics(folder)["metrics"])


def cut_off(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """End the next command as SIGTERM does, when so many batches have been asked for."""
    calls = iter(range(after))

    def heed() -> None:
        if next(calls, None) is None:
            raise SystemExit(143)

    monkeypatch.setattr(signals, "heed_termination", heed)


def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of a network with a sampler from now on."""
    seen: list[int] = []
    restore = Restorer.__call__

    def count(self: Restorer, problem: Any, *rest: Any) -> Any:
        seen.append(len(problem))
        return restore(self, problem, *rest)

    monkeypatch.setattr(Restorer, "__call__", count)
    return seen


def test_restorations_are_not_made_twice(home, tmp_path, monkeypatch):
    options = (
        "--batch",
        2,
        "--samples",
        2,
        "--metrics",
        "psnr,fd",
        *DISTANCES,
        "--any-count",
        "--save-images",
    )
    seen = counted(monkeypatch)
    assert gen(home, tmp_path / "whole", *options).exit_code == 0
    made = len(seen)
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        result = gen(home, tmp_path / "out", *options)
        assert result.exit_code == 143 and "the same command goes on" in result.stderr
    left = list((tmp_path / "out" / ".unfinished").rglob("*"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == [".unfinished"]
    assert {path.parent.name for path in left if path.is_file()} == {FOLDER}
    seen.clear()
    assert gen(home, tmp_path / "out", *options).exit_code == 0
    assert 0 < len(seen) < made
    assert values(tmp_path / "out") == values(tmp_path / "whole")
    for name in ("per_image.csv", "samples.csv", "grid.png"):
        whole = (tmp_path / "whole" / name).read_bytes()
        assert (tmp_path / "out" / name).read_bytes() == whole, name
    assert not (tmp_path / "out" / ".unfinished").exists()
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        assert len(list(csv.DictReader(file))) == len(list((tmp_path / "out").rglob("0*.png")))


def test_networks_with_the_same_sampler_are_told_apart(home, tmp_path):
    nets = "--net", "net.safetensors", "--net", "classes.safetensors"
    assert gen(home, tmp_path / "both", *nets[2:]).exit_code == 0
    found = metrics(tmp_path / "both")["metrics"]["values"]["MissingPatches"]
    psnr = {title: cell["psnr"]["mean"] for title, cell in found.items()}
    assert len(set(psnr.values())) == len(psnr) == 3, psnr


def test_other_options_do_not_go_on_from_it(home, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        cut_off(patch, 3)
        assert gen(home, tmp_path / "out", "--batch", 2).exit_code == 143
    seen = counted(monkeypatch)
    assert gen(home, tmp_path / "whole", "--seed", 1, "--batch", 2).exit_code == 0
    made = len(seen)
    assert gen(home, tmp_path / "out", "--seed", 1, "--batch", 2).exit_code == 0
    assert len(seen) == 2 * made
    assert values(tmp_path / "out") == values(tmp_path / "whole")


def test_drawing_goes_on_too(home, tmp_path, monkeypatch):
    options = "--batch", 2, "--metrics", "fd", *DISTANCES, "--any-count"
    seen = counted(monkeypatch)
    assert uncond(home, tmp_path / "whole", *options).exit_code == 0
    with monkeypatch.context() as patch:
        cut_off(patch, 1)
        assert uncond(home, tmp_path / "out", *options).exit_code == 143
    seen.clear()
    assert uncond(home, tmp_path / "out", *options).exit_code == 0
    assert seen == [4]  # 2 images and what a batch is padded with
    assert values(tmp_path / "out") == values(tmp_path / "whole")
    assert metrics(tmp_path / "out")["metrics"]["stages"]["restore"] > 0


def test_an_edited_class_is_another_one(tmp_path, monkeypatch):
    path = tmp_path / "edited.py"
    monkeypatch.syspath_prepend(tmp_path)
    digests = set()
    for text in ("class Mine: pass\n", "class Mine: step = 1\n"):
        path.write_text(text)
        monkeypatch.delitem(sys.modules, "edited", raising=False)
        digests.add(code_of([importlib.import_module("edited").Mine()]))
    assert len(digests | {code_of([])}) == 3


@pytest.fixture
def method(tmp_path) -> Kept:
    return Kept(lambda problem, noise, draws: noise + 1, tmp_path / "kept", {})


def test_operators_of_equal_measurements_are_told_apart(method):
    """A white image is white however it is measured."""
    noise, draws = torch.rand(1, 3, 16, 16), Draws([3])
    for family in (AveragePool(), Bicubic()):
        operator = family.sample((3, 16, 16), family.structures()[0], [3])
        problem = GaussianNoise(0.0).measure(operator, torch.ones(1, 3, 16, 16), draws)
        assert (problem.y - 1).abs().max() < 1e-5
        method(Problem(operator, torch.ones_like(problem.y)), noise, draws)
    assert method.found == 0 and len(list(method.folder.iterdir())) == 2


@pytest.mark.parametrize("harm", [lambda path: os.truncate(path, 40), Path.unlink])
def test_a_damaged_file_is_made_anew(method, harm):
    noise, draws = torch.rand(1, 3, 8, 8), Draws([3])
    problem = Problem.without_measurement(1, (3, 8, 8))
    for found in (0, 1):
        torch.testing.assert_close(method(problem, noise, draws), noise + 1)
        assert method.found == found
    (path,) = method.folder.iterdir()
    harm(path)
    torch.testing.assert_close(method(problem, noise, draws), noise + 1)
    assert method.found == 1 and path.exists()


def test_a_full_disk_ends_the_keeping_and_not_the_evaluation(method, monkeypatch):
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr("metrics.keeping.write_tensors", full)
    noise = torch.rand(1, 3, 8, 8)
    with pytest.warns(UserWarning, match="not kept: No space"):
        found = method(Problem.without_measurement(1, (3, 8, 8)), noise, Draws([3]))
    torch.testing.assert_close(found, noise + 1)
