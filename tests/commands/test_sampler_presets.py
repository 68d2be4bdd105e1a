"""Named options of samplers: configs/samplers/presets.yaml."""

from pathlib import Path

import pytest
from calling import refused
from runner import Runner

import calculate_metrics
import restore
from commands.cells import cells_of
from commands.methods import sampler_presets, samplers_of
from commands.table_files import Table, load

ROOT = Path(__file__).resolve().parents[2]


def test_every_preset_is_one_of_its_sampler() -> None:
    for name, presets in sampler_presets().items():
        for preset, options in presets.items():
            sampler = samplers_of([name], {}, preset)[name]
            assert options and sampler == samplers_of([name], options)[name]


def test_a_preset_serves_all_samplers_that_have_it_and_options_replace_it() -> None:
    found = samplers_of(["dps", "diffpir", "ddrm"], {"dps.num_steps": "5"}, "blur")
    assert found["dps"] == samplers_of(["dps"], {"zeta": "0.3", "num_steps": "5"})["dps"]
    assert found["diffpir"].zeta == 0.1 and found["ddrm"] == samplers_of(["ddrm"], {})["ddrm"]
    assert samplers_of(["dps"], {"zeta": "0.7"}, "blur")["dps"].zeta == 0.7


@pytest.mark.parametrize(
    "words",
    [
        ["gen", "--data=Emoji", "--degradation=Box", "--outdir=out"],
        ["gen", "--outdir=out"],
        ["--image=photo.png", "--degradation=Box", "--outdir=out"],
    ],
)
def test_an_unknown_preset_is_answered_with_the_known_ones(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    net = f"--net={ROOT / 'checkpoints' / 'emoji32-unconditional.safetensors'}"
    command = calculate_metrics.main if words[0] == "gen" else restore.main
    result = Runner().invoke(command, [*words, net, "--sampler=dps", "--sampler-preset=blurr"])
    refused(result, "--sampler-preset blurr: dps has blur, super-resolution, matrix, in-painting")
    assert not Path("out").exists()


def test_tables_name_presets(tmp_path: Path) -> None:
    for name, row, block, options in (
        ("table1", 2, "motion_blur", {"zeta": "0.3"}),
        ("table1", 2, "in_painting", {}),
        ("table2", 5, "matrix", {"schedule": "imagenet"}),
    ):
        table = load(name)
        assert isinstance(table, Table)
        cell = cells_of(table, [row], tmp_path)[row, block]
        assert cell.options.sampler_opt == options
