"""The examples of the README run as they stand there."""

import re
from pathlib import Path

import pytest
import torch
from runner import Runner

from calculate_metrics import main
from degradation import Draws, Problem, get_family
from samplers import make_sampler
from samplers.base import SAMPLERS

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()


def example(word: str) -> str:
    """The one block of Python in which a word stands."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README, re.S) if word in b)
    return block


def run(word: str) -> dict[str, object]:
    names: dict[str, object] = {}
    exec(example(word), names)
    return names


def test_restoring_in_python(monkeypatch):
    monkeypatch.chdir(ROOT)  # with the weights that ship
    found = run("load_weights")
    sample, problem = found["sample"], found["problem"]
    assert sample.shape == (1, 3, 32, 32)
    assert problem.residual(sample).square().mean() < 0.05  # of y between -1 and 1


def test_the_new_operator():
    found = run("HalfBrightness")
    operator = found["HalfBrightness"](2, (3, 4, 4))
    x = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(operator.H(x).view_as(x), x / 2)
    torch.testing.assert_close(operator.H_pinv(operator.H(x)), x)


def test_the_new_operator_is_a_family_of_one(tmp_path, monkeypatch):
    (tmp_path / "own.py").write_text(example("HalfBrightness"))
    monkeypatch.syspath_prepend(tmp_path)
    family = get_family("own.HalfBrightness")
    operator = family.sample((3, 4, 4), family.structure(7), [7, 8, 9])
    assert operator.s.shape == (3, 48) and not family.local
    words = ["gen", "--degradation=own.HalfBrightness", "--data-opt=resolution=16", "--images=2"]
    result = Runner().invoke(main, [*words, f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 0 and "own.HalfBrightness" in result.output, result.output
    with pytest.raises(ValueError, match="is no subclass of Family or LinearOperator"):
        get_family("torch.Tensor")


def test_the_new_sampler(monkeypatch):
    monkeypatch.setitem(SAMPLERS, "two_steps", None)
    run("TwoSteps")
    problem = Problem.without_measurement(2, (3, 4, 4))
    sampler = make_sampler("two_steps", {"sigma": "0.5"})
    draws = Draws([0, 1])
    out = sampler(lambda x, sigma, problem: x / sigma, torch.ones(2, 3, 4, 4), problem, draws)
    assert out.shape == (2, 3, 4, 4) and out.std() > 0


def test_the_new_sampler_by_its_module(tmp_path, monkeypatch):
    monkeypatch.setitem(SAMPLERS, "two_steps", None)
    (tmp_path / "steps.py").write_text(example("TwoSteps"))
    monkeypatch.syspath_prepend(tmp_path)
    net = ROOT / "checkpoints" / "emoji32-invfusion.safetensors"
    words = [f"--net={net}", "--data=Emoji", "--degradation=Box", "--images=2", "--baselines="]
    chosen = ["--sampler=steps.TwoSteps", "--sampler-opt=sigma=0.5"]
    result = Runner().invoke(main, ["gen", *words, *chosen, f"--outdir={tmp_path / 'out'}"])
    assert result.exit_code == 0, result.output
    (row,) = [line for line in result.stdout.splitlines() if "steps.TwoSteps" in line]
    assert row.split("|")[-3].strip() == "2"  # evaluations
