"""What the pages of the project name is there: links, and the files of the rooms."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_linked_files_and_headings_are_there(page: Path) -> None:
    for target, heading in re.findall(r"\]\((?!http)([^)#]*)#?([^)]*)\)", page.read_text()):
        path = page.parent / target if target else page
        assert path.exists(), target
        if heading:
            titles = re.findall(r"^#+ (.+)$", path.read_text(), re.M)
            anchors = {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}
            assert heading in anchors, f"{target}#{heading}"


def test_the_files_of_the_rooms_are_there() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    table, room = text.partition("## Rooms")[2].partition("\n## ")[0], ""
    rows = [row.split(" | ") for row in table.splitlines() if row.startswith("| ")][1:]
    for first, _, files in rows:
        room = "".join(re.findall(r"`(\w+)/`", first)) or room
        for name in re.findall(r"`([\w./]+)`", files):
            assert (ROOT / room / name).exists(), f"{room}/{name}"
