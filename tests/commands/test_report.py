"""`report.html`: the numbers of the files, texts that stay texts, and what a browser draws."""

import csv
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from calling import DISTANCES, call, gen, metrics, refused
from pages import data_of

from metrics.page import write_page

FAMILY, METHOD = "MissingPatches", "InvFusion sample (heun)"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
# Clicks a picture, picks another method, and says at the end what is there.
VISIT = """<script>
document.querySelector(".triple").click();
const up = [...document.querySelectorAll("label")].find(l => l.textContent.startsWith("up"));
up.lastChild.value = "H†y";
up.lastChild.dispatchEvent(new Event("change"));
const count = what => document.querySelectorAll(what).length;
console.log("end", getComputedStyle(document.body).backgroundColor, count("section"),
  count("tbody tr"), count("svg"), count("section circle") > 9, count(".triple img"),
  count("dialog[open] img"), document.documentElement.scrollWidth <= innerWidth);
</script>"""


@pytest.fixture(scope="module")
def evaluated(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report") / "out"
    options = ("--images", 5, "--samples", 3, "--metrics", "psnr,ssim,fd", "--any-count")
    result = gen(home, folder, *options, *DISTANCES)
    assert result.exit_code == 0, result.output
    return folder


def test_the_page_has_the_numbers_of_the_files(evaluated: Path) -> None:
    found, cell = (
        data_of(evaluated / "report.html"),
        metrics(evaluated)["metrics"]["values"][FAMILY],
    )
    (table,) = found["tables"]
    assert table["title"] == FAMILY and table["methods"] == ["H†y", METHOD]
    assert table["head"] == ["method", "PSNR (dB)", "SSIM", "FD of 5 images", "NFE", "s/image"]
    for row, (method, values) in zip(table["rows"], cell.items(), strict=True):
        psnr = values["psnr"]
        expected = f"{psnr['mean']:.2f} [{psnr['low']:.2f}, {psnr['high']:.2f}]"
        assert row[0] == method and row[1].replace("**", "") == expected
    column = [row[1] for row in table["rows"]]
    best = max(cell, key=lambda method: cell[method]["psnr"]["mean"])
    assert [text.startswith("**") for text in column] == [m == best for m in cell]
    own = found["cells"][FAMILY][METHOD]
    with (evaluated / "per_image.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == METHOD]
    values = [float(row["psnr"]) for row in rows]
    assert own["rows"]["psnr"] == pytest.approx(values, rel=1e-4) and own["images"] == [*range(5)]
    assert own["nfe"] == 3 and own["metrics"]["fd"]["mean"] == cell[METHOD]["fd"]["mean"]
    places = {place: example["image"] for place, example in own["examples"].items()}
    order = sorted(range(5), key=values.__getitem__)
    assert places == {"worst": order[0], "median": order[2], "best": order[4]}
    assert own["calibration"]["samples"] == 3 and len(own["calibration"]["spread"]) == 5
    assert sum(own["calibration"]["ranks"]) == pytest.approx(4)


def test_every_picture_is_in_the_page_once_and_nothing_is_fetched(evaluated: Path) -> None:
    found = data_of(evaluated / "report.html")
    assert len(set(found["pictures"])) == len(found["pictures"]) >= 6
    assert all(picture.startswith("data:image/png;base64,") for picture in found["pictures"])
    page = (evaluated / "report.html").read_text()
    assert "default-src 'none'" in page
    assert set(re.findall(r"https?://[^\"\s]+", page)) == {"http://www.w3.org/2000/svg"}


def test_a_page_is_written_again_from_the_files(
    home: Path, evaluated: Path, tmp_path: Path
) -> None:
    shutil.copytree(evaluated, tmp_path / "copy")
    page = tmp_path / "copy/report.html"
    before = page.read_text()
    page.unlink()
    result = call(home, "report", tmp_path / "copy")
    assert result.exit_code == 0 and page.read_text() == before, result.output
    (tmp_path / "copy/examples.json").unlink()
    (tmp_path / "copy/samples.csv").unlink()
    assert call(home, "report", tmp_path / "copy").exit_code == 0
    assert not data_of(page)["pictures"]


@pytest.mark.parametrize(
    ("name", "text"),
    [("metrics.json", "{}"), ("metrics.json", None), ("per_image.csv", "image\n1\n"),
     ("examples.json", '{"Box": 1}'), ("examples.json", "[")],
)  # fmt: skip
def test_damaged_results_are_told(
    home: Path, evaluated: Path, tmp_path: Path, name: str, text: str | None
) -> None:
    folder = shutil.copytree(evaluated, tmp_path / "copy")
    (folder / name).unlink() if text is None else (folder / name).write_text(text)
    before = (folder / "report.html").read_text()
    refused(call(home, "report", folder), str(folder))
    assert (folder / "report.html").read_text() == before


def hostile(path: Path) -> Path:
    text = "</script><script>document.title = 'mine'</script><b>{{data}}"
    table = {"title": text, "head": ["method", text], "rows": [[text, text]], "methods": [text]}
    cell = {"metrics": {}, "nfe": 1, "images": [0], "rows": {text: [1.0]}}
    write_page(path, text, [text], [table], {text: {text: cell}}, {text: {text: text}})
    return path


def test_texts_cannot_end_the_data(tmp_path: Path) -> None:
    page = hostile(tmp_path / "page.html")
    assert data_of(page)["title"].startswith("</script>")
    assert page.read_text().count("</script>") == 2 and "<b>" not in page.read_text()


# ---- in a browser --------------------------------------------------------------------------------


def visited(page: Path, profile: Path, *options: str) -> tuple[list[str], str]:
    """What a page says on the console, and its elements as they are in the end."""
    if CHROMIUM is None:
        pytest.skip("needs Chromium")
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--disable-quic",
        f"--user-data-dir={profile}", "--enable-logging=stderr", *options, "--dump-dom",
        page.as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return re.findall(r'CONSOLE.*?\] "(.*)", source', done.stderr), done.stdout


@pytest.mark.parametrize(
    ("options", "background"),
    [(["--window-size=1280,900"], "rgb(246, 247, 249)"),
     (["--window-size=500,900", "--force-dark-mode"], "rgb(15, 18, 22)")],
    ids=["light", "dark and narrow"],
)  # fmt: skip
def test_a_browser_draws_the_page(
    evaluated: Path, tmp_path: Path, options: list[str], background: str
) -> None:
    page = tmp_path / "page.html"
    page.write_text((evaluated / "report.html").read_text() + VISIT)
    said, dom = visited(page, tmp_path / "profile", *options)
    # Sections, rows of the table, charts (plane, scatter, four of the calibration), pictures.
    assert said == [f"end {background} 6 2 6 true 18 3 true"]
    assert "images are better with H†y than with H†y" in dom


def test_a_browser_shows_texts_as_texts(tmp_path: Path) -> None:
    said, dom = visited(hostile(tmp_path / "page.html"), tmp_path / "profile")
    assert not said and "<b>{{" not in dom and "&lt;b&gt;{{data}}" in dom
    assert "<title>mine" not in dom
