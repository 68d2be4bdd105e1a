"""Batches from processes that load, and data sets by their names."""

import multiprocessing
import os
import re
from collections.abc import Iterator, Sequence
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch
from image_files import TEN, make, png

from datautils import DATASETS, DataError, get_dataset
from datautils.imagedir import ImageDir
from datautils.loading import load_batches

# ---- loading -------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_those_asked_for(where: Path, workers: int):
    data = ImageDir(make(where, TEN, [[name, i] for i, name in enumerate(TEN)]))
    state = torch.random.get_rng_state()
    batches = [[3, 1], [9], [0, 0, 7]]
    loaded = list(load_batches(data, batches, workers))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [labels.tolist() for _, labels in loaded] == batches
    for images, labels in loaded:
        assert images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert (images[:, 2] == 3 * labels[:, None, None]).all()


def endless() -> Iterator[Sequence[int]]:
    yield from ([i % 10, (i + 1) % 10] for i in count())


def test_endless_batches(where: Path):
    data = ImageDir(make(where, TEN))
    loaded = islice(load_batches(data, endless(), 2), 12)
    assert [images[0, 0, 0, 0].item() for images, _ in loaded] == [i % 10 for i in range(12)]


@pytest.mark.parametrize("workers", [0, 2])
def test_a_data_error_comes_out_of_a_worker_as_it_was(where: Path, workers: int):
    files = {name: png(i) for i, name in enumerate(TEN)} | {"4.png": png(4)[:50]}
    data = ImageDir(make(where, files))
    with pytest.raises(DataError) as expected:
        data[4]
    batches = load_batches(data, [[0, 1], [2, 3], [4, 5], [6, 7]], workers)
    assert next(batches)[0].shape == next(batches)[0].shape == (2, 3, 4, 4)
    with pytest.raises(DataError) as caught:
        next(batches)
    assert str(caught.value) == str(expected.value)
    assert "4.png" in str(caught.value) and "\n" not in str(caught.value)
    assert not multiprocessing.active_children()  # although the traceback is still here


class Deadly(ImageDir):
    """A data set that ends the process which reads it, as a lack of memory would."""

    def __getitem__(self, index: int) -> Any:
        os._exit(1)


def test_a_process_that_was_killed_is_told(tmp_path: Path):
    data = Deadly(make(tmp_path / "a.zip", TEN))
    with pytest.raises(DataError, match=r"loads images was killed.*--workers") as caught:
        next(load_batches(data, [[0, 1]], 1))
    assert "\n" not in str(caught.value)


class Mistaken(ImageDir):
    """A data set with a fault of the code."""

    def __getitem__(self, index: int) -> Any:
        raise RuntimeError("shapes do not match")


def test_a_mistake_within_a_worker_is_not_called_a_lack_of_memory(tmp_path: Path):
    data = Mistaken(make(tmp_path / "a.zip", TEN))
    with pytest.raises(RuntimeError, match="shapes do not match") as caught:
        next(load_batches(data, [[0, 1]], 1))
    assert not isinstance(caught.value, DataError)


def sums(data: ImageDir, indices: Sequence[int]) -> list[int]:
    return [int(data[i][0].sum()) for i in indices]


def test_processes_share_a_data_set(tmp_path: Path):
    data = ImageDir(make(tmp_path / "a.zip", [f"{i:03d}.png" for i in range(80)]))
    data[0]  # the file is open before the processes start, and before the pool pickles it
    shares = [range(k, 80, 2) for k in range(2)]
    with multiprocessing.get_context("fork").Pool(2) as pool:
        found = pool.starmap(sums, [(data, share) for share in shares])
    assert found == [sums(data, share) for share in shares]


# ---- get_dataset ---------------------------------------------------------------------------------


def test_every_known_data_set_exists():
    for name in DATASETS:
        with pytest.raises(ValueError, match=f"dataset '{name}' has no option 'nonsense'"):
            get_dataset(name, "train", nonsense=1)


def test_data_sets_are_built_with_their_options(where: Path):
    make(where, TEN)
    data = get_dataset("datautils.imagedir.ImageDir", "heldout", path=str(where), heldout=2, size=8)
    assert len(data) == 2 and data.image_shape == (3, 8, 8)
    with pytest.raises(ValueError, match="needs the option 'path'"):
        get_dataset("datautils.imagedir.ImageDir", "train")
    with pytest.raises(DataError, match="nowhere is not there"):
        get_dataset("datautils.imagedir.ImageDir", "train", path="nowhere")


def test_a_module_that_fails_is_not_called_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "needy_set.py").write_text("import no_such_package")
    (tmp_path / "wrong_set.py").write_text("from json import no_such_name")
    for module, culprit in (("needy_set", "no_such_package"), ("wrong_set", "no_such_name")):
        with pytest.raises(ValueError, match=f"cannot be imported: .*{culprit}"):
            get_dataset(f"{module}.Images", "train")
    (tmp_path / "broken_set.py").write_text("[].nothing")
    with pytest.raises(AttributeError, match="nothing"):
        get_dataset("broken_set.Images", "train")


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("", ""), ("nowhere", ""), (".x.Y", ""),
        ("no_such.X", " (there is no module no_such on Python's path; PYTHONPATH adds its folder)"),
        ("datautils.nope.X", " (there is no module datautils.nope)"),
        ("datautils.photos.x.Y", " (there is no module datautils.photos.x)"),
        ("datautils.photos.Fotos", " (module datautils.photos has no Fotos)"),
        ("datautils.photos.Photos.x", " (there is no module datautils.photos.Photos)"),
    ],
)  # fmt: skip
def test_unknown_data_sets(name: str, why: str):
    named = re.escape(f"unknown dataset '{name}'{why}")
    with pytest.raises(ValueError, match=rf"^{named}(; known are Emoji|: is it Photos)"):
        get_dataset(name, "train")
