"""docs/paper.md: Table 1 is that of configs/tables."""

import re
from pathlib import Path

from commands.table_files import Table, load, setting_of

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "paper.md").read_text(encoding="utf-8")


def test_table_1_is_the_one_that_is_reproduced() -> None:
    found = load("table1")
    assert isinstance(found, Table)
    lines = [line for line in PAGE.splitlines() if line.startswith("| ")][1:]
    published = [row for row in found.rows if row.paper]
    for line, row in zip(lines, published, strict=True):
        method, network, sampler, presets, nfe, *blocks = (c.strip() for c in line.split("|")[1:-1])
        assert (method, network, sampler) == (row.method, f"`{row.network}`", f"`{row.sampler}`")
        assert re.findall(r"`([\w-]+)`", presets) == list(dict.fromkeys(row.presets.values()))
        assert int(nfe) == row.nfe
        for text, block in zip(blocks, found.blocks, strict=True):
            shown = [text for text in text.split(" / ") if text != "-"]
            assert [float(value) for value in shown] == list(row.paper[block].values())


def test_the_commands_make_its_networks() -> None:
    found = load("table1")
    assert isinstance(found, Table)
    networks = setting_of("ffhq64").networks
    for name in {row.network for row in found.rows if row.paper}:
        assert f"\n{networks[name].made_by}\n" in PAGE
