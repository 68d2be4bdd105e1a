"""What every test leans on: one torch thread, fixed seeds, and reference files that may be absent.

Reference files (recorded outputs of an independent implementation, real photos) are not part of the
project. They lie in a folder `shared` beside the checkout, or where INVFUSION_SHARED points; a test
that asks for them is skipped by name where they are not.
"""

import os

# Set before torch is imported; the processes that tests start inherit it. Workers share the cores.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[_name] = "1"
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["HF_HUB_OFFLINE"] = "1"  # the package datasets reads it when it is imported

import random
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import matplotlib.figure
import numpy as np
import pytest
import torch
from natten_stand_in import merge_attentions, na2d

from benchmarks.reference_path import DenseNeighbourhood
from networks.attention import BACKENDS, use_backend

SHARED = Path(os.environ.get("INVFUSION_SHARED") or Path(__file__).resolve().parents[2] / "shared")

torch.set_num_threads(1)

# Timing says nothing on a busy machine; the same examples everywhere, so a red test stays red.
hypothesis.settings.register_profile("suite", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("suite")


_savefig = matplotlib.figure.Figure.savefig
_drawn = False


def _saved(figure: matplotlib.figure.Figure, *arguments: Any, **options: Any) -> None:
    """The figure, empty unless a test is marked `drawn`: drawing takes half a second."""
    if not _drawn:
        figure.clear()
        figure.set_layout_engine("none")
    _savefig(figure, *arguments, **options)


matplotlib.figure.Figure.savefig = _saved  # type: ignore[method-assign]


def pytest_runtest_setup(item: pytest.Item) -> None:
    global _drawn
    _drawn = item.get_closest_marker("drawn") is not None
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device")


@pytest.fixture(autouse=True)
def seeded() -> None:
    """The global generators start from the same state in every test, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    torch.manual_seed(0)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heeded, though a shell may have started the tests in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def find_shared(relative: str) -> Path:
    """Path of a reference file or folder; skips the test by its name where the file is absent."""
    path = SHARED / relative
    if not path.exists():
        pytest.skip(f"reference file {relative} is not here")
    return path


@pytest.fixture
def shared() -> Callable[[str], Path]:
    """`shared("data/photos256.zip")`: path of a reference file; skips where it is absent."""
    return find_shared


@pytest.fixture
def golden() -> Callable[[str], Any]:
    """`golden("samplers")`: contents of golden/samplers.pt, loaded afresh for every test."""

    def load(name: str) -> Any:
        path = find_shared("golden") / f"{name}.pt"
        if not path.exists():  # misspelt: skipped, it would never run anywhere
            there = ", ".join(sorted(p.stem for p in path.parent.glob("*.pt")))
            pytest.fail(f"golden has no {name}; it has {there}")
        return torch.load(path, map_location="cpu", weights_only=True)

    return load


@pytest.fixture(params=["tiled", "flex", "natten", "dense"])
def backend(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Everything inside is computed by one backend; natten's kernels need a GPU, so a stand-in."""
    monkeypatch.setitem(BACKENDS, "dense", DenseNeighbourhood)
    stand_in = SimpleNamespace(na2d=na2d, merge_attentions=merge_attentions, HAS_LIBNATTEN=True)
    monkeypatch.setitem(sys.modules, "natten", stand_in)
    with use_backend(request.param):
        yield request.param
