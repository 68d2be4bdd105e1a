"""`reproduce.py`: tables as files, cells that are measured once, and what is printed."""

import json
import re
import shlex
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
import yaml
from click.testing import Result
from pages import data_of
from runner import Runner

import reproduce
from commands import table_files as tables
from commands.cells import cells_of, figure_cell
from commands.paper import columns
from commands.table_files import Figure, Table, load, names, setting_of
from runtime.tables import latex_table

PUBLISHED = Path(__file__).resolve().parents[3] / "shared" / "paper" / "tables.yaml"
SETTING = """
title: tiny photos
data: Photos
data_opt: {resolution: 16, size: 4}
images: 2
metrics: {psnr: psnr, fid: ssim, consistency: consistency}
samplers:
  heun: {num_steps: 2}
  ddrm: {num_steps: 2}
networks:
  unconditional: {file: UNCONDITIONAL}
  invfusion: {file: NET}
  palette: {file: PALETTE, made_by: cp BLIND PALETTE}
"""
TABLE = """
title: A small table
blocks:
  box: {title: Out-painting, setting: tiny, family: Box, metrics: [psnr, fid]}
rows:
- {method: DDRM, network: unconditional, sampler: ddrm, nfe: 25, paper: {box: {psnr: 11.6}}}
- {method: InvFusion, network: invfusion, sampler: heun, options: {num_steps: 3}}
- {method: Palette, network: palette, sampler: heun}
- {method: InvFusion, network: invfusion, sampler: mmse, group: mmse, metrics: [psnr]}
- {method: Nothing, sampler: fill}
- {method: Unheard of, network: unheard, sampler: heun}
"""
DRAWN = """
title: Images without a measurement
blocks:
  all: {title: All, setting: tiny, metrics: [fid]}
rows:
- {method: InvFusion, network: invfusion, sampler: heun}
"""
FIGURE = """
title: A small figure
setting: tiny
networks: [invfusion]
samplers: [mmse]
families: [Box]
images: 1
"""


@pytest.fixture
def paper(nets: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of one table, one figure and one setting, instead of those of the project."""
    (folder / "tables" / "settings").mkdir(parents=True)
    text = SETTING.replace("PALETTE", str(folder / "palette.safetensors"))
    for word, net in (("UNCONDITIONAL", "unconditional"), ("NET", "plain"), ("BLIND", "blind")):
        text = text.replace(word, str(nets[net]))
    (folder / "tables/settings/tiny.yaml").write_text(text)
    (folder / "tables/table1.yaml").write_text(TABLE)
    (folder / "tables/table4.yaml").write_text(DRAWN)
    (folder / "tables/figure1.yaml").write_text(FIGURE)
    drawn = FIGURE.replace("families: [Box]\n", "").replace("mmse", "heun")
    (folder / "tables/figure5.yaml").write_text(drawn)
    monkeypatch.setattr(tables, "FOLDER", folder / "tables")
    setting_of.cache_clear()
    yield folder
    setting_of.cache_clear()


def run(*arguments: str) -> Result:
    return Runner().invoke(reproduce.main, [*arguments, "--outdir", "out"])


def rows_of(text: str) -> list[list[str]]:
    """The cells of the table in a text, without its titles."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def measured(method: str) -> list[dict]:
    """What gen wrote for the cells of a method."""
    paths = sorted(Path("out/cells/tiny").glob(f"{method}*/metrics.json"))
    return [json.loads(p.read_text())["metrics"]["values"]["Box"] for p in paths]


def test_rows_are_measured_one_by_one_and_meet_in_one_table(paper: Path) -> None:
    first = run("table1", "--row", "1")
    assert first.exit_code == 0, first.output
    assert [row[1] for row in rows_of(first.stdout)] == ["DDRM"]
    assert not Path("out/table1-paper.md").exists()  # it would be a part of the table
    made = next(Path("out/cells/tiny").glob("unconditional-ddrm*/metrics.json"))
    before = made.stat().st_mtime_ns
    table = run("table1")
    assert table.exit_code == 0 and made.stat().st_mtime_ns == before, table.output
    ddrm, ours, palette, mmse, nothing = rows_of(table.stdout)
    (values,) = measured("unconditional-ddrm")
    assert f"{values['DDRM']['psnr']['mean']:.2f} (11.6)" in ddrm[2].replace("*", "")
    assert ddrm[-1] == "2 (25)" and ours[-1] == "5" and mmse[-1] == "1" and nothing[-1] == "0"
    assert palette[2:4] == ["missing", "missing"] and mmse[3] == "-"
    assert "missing: " in table.stdout and "palette.safetensors: cp " in table.stdout
    assert Path("out/table1-paper.md").read_text() in table.stdout
    assert r"\begin{tabular}" in Path("out/table1-paper.tex").read_text()
    page = data_of(Path("out/table1-paper.html"))
    assert page["title"] == "Table 1. A small table"
    texts = [[text.split(" [")[0] for text in row] for row in page["tables"][0]["rows"]]
    assert texts[0][:2] == ddrm[:2] and texts[0][2] in ddrm[2] and texts[2] == palette
    names = ["DDRM", "InvFusion", "InvFusion (mmse)", "Nothing"]
    assert list(page["cells"]["Out-painting"]) == names
    own = page["cells"]["Out-painting"]["DDRM"]
    assert own["metrics"]["psnr"]["mean"] == values["DDRM"]["psnr"]["mean"] and own["nfe"] == 2
    assert set(own["examples"]) == {"worst", "median", "best"}
    assert "Palette on Box, tiny photos" in page["details"]["missing"]


def test_the_best_samples_are_bold_and_so_is_the_best_estimate(paper: Path) -> None:
    ddrm, ours, _, mmse, nothing = rows_of(run("table1").stdout)
    samples = {row[2].strip("*").split()[0]: row[2] for row in (ddrm, ours, nothing)}
    best = max(samples, key=float)
    assert [text.startswith("**") for text in samples.values()] == [v == best for v in samples]
    assert mmse[2].startswith("**")


def test_missing_networks_are_made_by_their_command(paper: Path) -> None:
    result = run("table1", "--make", "--row", "Palette")
    assert result.exit_code == 0, result.output
    ((_, _, psnr, ssim, nfe),) = rows_of(result.stdout)
    assert float(psnr.strip("*")) and float(ssim.strip("*")) and nfe == "3"
    Path("palette.safetensors").unlink()
    setting = paper / "tables/settings/tiny.yaml"
    setting.write_text(setting.read_text().replace("cp /", "cp /nowhere/"))
    setting_of.cache_clear()
    result = run("table1", "--make", "--row", "Palette")
    assert result.exit_code == 2 and "palette.safetensors was not made by: cp /" in result.output


def test_other_weights_are_another_measurement(paper: Path, nets: dict[str, Path]) -> None:
    found = load("table1")
    assert isinstance(found, Table)
    cell = cells_of(found, [1], Path("out"))[1, "box"]
    again = cells_of(found, [1], Path("out"))[1, "box"]
    assert cell.options.outdir == again.options.outdir
    net = Path("net.safetensors")
    net.write_bytes(nets["classes"].read_bytes())
    setting = paper / "tables/settings/tiny.yaml"
    setting.write_text(setting.read_text().replace(str(nets["plain"]), str(net.absolute())))
    setting_of.cache_clear()
    other = cells_of(found, [1], Path("out"))[1, "box"]
    assert other.options.outdir != cell.options.outdir


def test_a_figure_is_the_picture_of_an_evaluation(paper: Path) -> None:
    result = run("figure1")
    assert result.exit_code == 0, result.output
    (grid,) = Path("out/cells/tiny").glob("figure*/grid.png")
    assert Path("out/figure1-paper.png").read_bytes() == grid.read_bytes()


def test_images_are_drawn_where_there_is_no_family(paper: Path) -> None:
    for what in ("table4", "figure5"):
        result = run(what)
        assert result.exit_code == 0, result.output
    assert len(list(Path("out/cells/tiny").glob("*/grid.png"))) == 2


def test_a_cell_that_fails_leaves_the_others(paper: Path) -> None:
    Path("palette.safetensors").write_text("these are no weights")
    result = run("table1")
    assert result.exit_code == 2 and "failed, see above: Palette on Box" in result.stderr
    ddrm, _, palette, *_ = rows_of(result.stdout)
    assert palette[2] == "missing" and float(ddrm[2].split()[0].strip("*"))


def test_a_cell_that_another_job_measures_is_left_to_it(paper: Path) -> None:
    found = load("table1")
    assert isinstance(found, Table)
    cell = cells_of(found, [0], Path("out"))[0, "box"]
    assert cell.open
    cell.options.outdir.mkdir(parents=True)
    code = "import sys; from pathlib import Path; from runtime.files import claimed\n"
    code += "with claimed(Path(sys.argv[1]), 'x'): print(flush=True); input()"
    command = [sys.executable, "-c", code, str(cell.options.outdir.absolute())]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen(command, cwd=tables.ROOT, **pipes) as other:
        other.stdout.readline()
        assert not cell.open
        other.communicate(b"\n")
    assert cell.open


def test_equal_evaluations_share_a_cell(folder: Path) -> None:
    tables = [load(name, "small") for name in ("table1", "table8")]
    one, other = (cells_of(table, range(len(table.rows)), folder) for table in tables)
    palette = other[0, "motion_blur"].options.outdir
    assert palette in {cell.options.outdir for cell in one.values()}


def test_list_says_what_there_is_and_what_is_missing(paper: Path) -> None:
    run("table1", "--row", "Nothing")
    lines = run("list").stdout.splitlines()
    assert "table1: A small table" in lines and "figure1: A small figure" in lines
    assert "   5 Nothing: 1 of 1 measured" in lines and "   1 DDRM: 0 of 1 measured" in lines
    assert "   3 Palette: 0 of 1 measured, 1 lack something" in lines
    assert "   6 Unheard of: not in this setting" in lines
    assert sum(line.startswith("  missing: ") for line in lines) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table99"], "there is no 'table99': known are table1, table4, figure1"),
        (["table1", "--row", "7"], "--row 7 must be a number from 1 to 6, or DDRM, InvFusion"),
        (["all", "--row", "1"], "--row picks rows of one table"),
    ],
)
def test_what_is_not_there_is_told(paper: Path, arguments: list[str], message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == 2 and message in result.output and not Path("out").exists()


def test_intervals_are_shown_on_demand(paper: Path) -> None:
    plain, wide = run("table1", "--row", "2"), run("table1", "--row", "2", "--intervals")
    assert "[" not in plain.stdout and "[" in rows_of(wide.stdout)[0][2]


def test_latex_has_its_own_signs() -> None:
    text = latex_table(["PSNR ↑"], [["**22.1** (50 %)"]], "σ & more")
    assert r"PSNR $\uparrow$ \\" in text and r"\textbf{22.1} (50 \%) \\" in text
    assert r"\caption{$\sigma$ \& more}" in text


# ---- the tables of the project -------------------------------------------------------------------


@pytest.mark.parametrize("scale", ["paper", "small"])
def test_every_table_and_figure_is_sound(folder: Path, scale: str) -> None:
    assert {n for n in names() if n.startswith("figure")} == {f"figure{i}" for i in (1, 3, 4, 5, 6)}
    numbers = (1, 2, 3, 4, *range(7, 16))
    assert [n for n in names() if n.startswith("table")] == [f"table{i}" for i in numbers]
    for name in names():
        found = load(name, scale)
        if isinstance(found, Figure):
            cells = [figure_cell(found, folder)]
        else:
            by_place = cells_of(found, range(len(found.rows)), folder)
            headers, lines = columns(found, range(len(found.rows)), by_place, False)
            assert all(len(line) == len(headers) for line in lines)
            cells = list(by_place.values())
        assert cells
        for made in {made for cell in cells for made in cell.needs}:
            words = shlex.split(made.made_by)
            assert words or made.path.exists()
            for word, following in pairwise(words):
                if word == "--config":
                    assert (tables.ROOT / following).exists(), made.made_by


@pytest.mark.skipif(not PUBLISHED.exists(), reason="needs ../shared")
def test_published_figures_are_those_of_the_paper(folder: Path) -> None:
    published = yaml.safe_load(PUBLISHED.read_text())
    for name in (n for n in names() if n.startswith("table")):
        found = load(name)
        assert isinstance(found, Table)
        added = [row.method for row in found.rows if not row.paper]
        assert added == ["EPS", "InvFusion + EPS"] * (name == "table1")
        rows = [row for row in found.rows if row.paper]
        for row, theirs in zip(rows, published[name]["rows"], strict=True):
            assert row.method == theirs["method"] and row.nfe == theirs.get("nfe")
            ours = [v for block in row.paper.values() for v in block.values()]
            numbers = [v for k, v in theirs.items() if k not in ("method", "group", "nfe")]
            flat = [v for n in numbers for v in (n.values() if isinstance(n, dict) else [n])]
            assert sorted(ours) == sorted(flat), (name, row.method)


def test_a_row_of_the_paper_is_the_command_that_measures_it(folder: Path) -> None:
    found = load("table1")
    assert isinstance(found, Table)
    cell = cells_of(found, [2], folder)[2, "motion_blur"]
    options = cell.options
    assert options.samplers == ("dps",) and options.sampler_opt == {"zeta": "0.3"}
    assert options.degradations == ("MotionBlur",) and options.images == 10_000
    assert options.metrics and set(options.metrics.split(",")) >= {"psnr", "fid", "cfid"}
    assert cell.missing and not cell.done


def test_titles_name_the_data_that_are_used(folder: Path) -> None:
    listed = Runner().invoke(reproduce.main, ["list", "--scale=small"]).stdout
    titles = [line for line in listed.splitlines() if line.startswith(("table", "figure"))]
    assert len(titles) == len(names())
    for name, title in zip(names(), titles, strict=True):
        found = load(name, "small")
        told = [title]
        if isinstance(found, Table):
            told += [block.title for block in found.blocks.values()]
        for text in told:
            assert not re.search("FFHQ|ImageNet", text) or text.endswith(", here on emoji at 32×32")
