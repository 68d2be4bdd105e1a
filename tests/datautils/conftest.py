"""A place for images that is a folder, then a zip file."""

from pathlib import Path

import pytest


@pytest.fixture(params=["folder", "archive.zip"])
def where(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder and a zip file, which must behave alike."""
    return tmp_path / request.param
