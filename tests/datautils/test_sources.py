"""Every source with an index gives the same images, in the same order, to any processes."""

import itertools
import zipfile
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from pictures import play, png
from torch import Tensor

from datautils import DataError, ImageDataset, get_dataset
from datautils.loading import Batches, load_batches
from training.data import training_batches

COUNT, BATCH, SEED = 22, 8, 5


def files(broken: Iterable[int] = ()) -> dict[str, bytes]:
    broken = set(broken)
    return {f"{i:03d}.png": png(i)[: 80 if i in broken else None] for i in range(COUNT)}


def build(kind: str, folder: Path, broken: Iterable[int] = ()) -> ImageDataset:
    """The same pictures in a folder, a zip file, or a data set of Hugging Face."""
    path = folder / f"{kind}.zip" if kind == "zip" else folder / kind
    pictures = files(broken)
    name = "datautils.imagedir.ImageDir"
    if kind == "folder":
        path.mkdir()
        for file, data in pictures.items():
            (path / file).write_bytes(data)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            for file, data in pictures.items():
                archive.writestr(file, data)
    else:
        datasets = pytest.importorskip("datasets")
        datasets.disable_progress_bars()
        rows = [{"bytes": data, "path": None} for data in pictures.values()]
        features = datasets.Features({"image": datasets.Image()})
        datasets.Dataset.from_dict({"image": rows}, features=features).save_to_disk(path)
        name = "datautils.huggingface.HuggingFace"
    return get_dataset(name, "train", path=str(path))


def taken(batches: Batches, steps: int) -> list[Tensor]:
    return [images for images, _ in itertools.islice(batches, steps)]


def order(
    data: ImageDataset, monkeypatch: pytest.MonkeyPatch, world: int, steps: int, step: int = 0,
    workers: int = 0, skip_broken: bool = False,
) -> tuple[Tensor, list[Batches]]:  # fmt: skip
    """The images `[steps · batch, ...]` of all processes in the order of the samples."""
    parts, loaders = [], []
    for rank in range(world):
        play(monkeypatch, rank, world)
        loaders.append(training_batches(data, BATCH, SEED, step, workers, skip_broken=skip_broken))
        parts.append(taken(loaders[-1], steps))
    return torch.cat([torch.cat(batch) for batch in zip(*parts, strict=True)]), loaders


def numbers(images: Tensor, data: ImageDataset) -> list[int]:
    """Which image of a data set each one is."""
    known = {bytes(data[i][0].numpy()): i for i in range(COUNT)}
    return [known[bytes(image.numpy())] for image in images]


KINDS = pytest.mark.parametrize("kind", ["folder", "zip", "hub"])


@KINDS
def test_every_source_gives_the_same_images(kind: str, tmp_path: Path):
    (tmp_path / "plain").mkdir()
    data, folder = build(kind, tmp_path), build("folder", tmp_path / "plain")
    assert len(data) == COUNT and data.image_shape == (3, 4, 4) and data.num_classes == 0
    for i in range(COUNT):
        assert torch.equal(data[i][0], folder[i][0]) and data[i][0].is_contiguous()
        assert data[i][0].dtype == torch.uint8 and data[i][1] == -1
    for index in (-1, COUNT):
        with pytest.raises(IndexError):
            data[index]


@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_an_epoch_exactly(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = build("zip", tmp_path)
    images, _ = order(data, monkeypatch, world, 11)  # four epochs
    found = numbers(images, data)
    epochs = [found[COUNT * k : COUNT * (k + 1)] for k in range(4)]
    assert all(sorted(epoch) == list(range(COUNT)) for epoch in epochs)
    assert epochs[0] != epochs[1] != list(range(COUNT))


@KINDS
@pytest.mark.parametrize(("world", "workers"), [(2, 0), (4, 0), (2, 2)])
def test_the_order_is_that_of_one_process(
    kind: str, world: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = build(kind, tmp_path)
    expected, _ = order(data, monkeypatch, 1, 4)
    found, _ = order(data, monkeypatch, world, 4, workers=workers)
    assert torch.equal(found, expected)


@pytest.mark.parametrize("world", [1, 2, 4])
def test_a_run_goes_on_with_the_next_sample(
    world: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    data = build("zip", tmp_path)
    expected, _ = order(data, monkeypatch, 1, 12)
    for step in range(9):
        found, _ = order(data, monkeypatch, world, 3, step)
        assert torch.equal(found, expected[step * BATCH : (step + 3) * BATCH])


# ---- broken images -------------------------------------------------------------------------------


@KINDS
@pytest.mark.parametrize(("world", "step", "workers"), [(1, 0, 0), (2, 0, 0), (4, 2, 0), (1, 1, 2)])
def test_a_broken_image_is_replaced_by_the_next_sound_one(
    kind: str, world: int, step: int, workers: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    broken = {4: 5, 10: 12, 11: 12, 21: 0}  # and what takes its place
    sound = build(kind, tmp_path)
    (tmp_path / "broken").mkdir()
    data = build(kind, tmp_path / "broken", broken)
    images, _ = order(sound, monkeypatch, 1, 11, step)
    expected = numbers(images, sound)
    images, loaders = order(data, monkeypatch, world, 11, step, workers, skip_broken=True)
    assert numbers(images, sound) == [broken.get(i, i) for i in expected]
    assert sum(b.skipped for b in loaders) == sum(i in broken for i in expected) > 0
    faults = {sentence for b in loaders for sentence in b.faults}
    assert len(faults) == len(broken) and all("picture" in f and "\n" not in f for f in faults)


@KINDS
def test_without_that_it_ends_the_run(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    data = build(kind, tmp_path, [7])
    name = {"hub": "row 7 of the split train"}.get(kind, r"007\.png")
    with pytest.raises(DataError, match=rf"{name}.* is a damaged picture"):
        order(data, monkeypatch, 1, 3)


def test_too_many_broken_images_end_any_run(tmp_path: Path):
    data = build("zip", tmp_path, range(1, COUNT))
    with pytest.raises(DataError, match=r"100 images in a row are broken, the first: 002\.png"):
        next(load_batches(_Many(data), [[1]], 0, skip_broken=True))
    batches = load_batches(data, [[1, 0]], 0, skip_broken=True)
    images, _ = next(batches)
    assert torch.equal(images[0], images[1]) and batches.skipped == 1
    (tmp_path / "none").mkdir()
    data = build("zip", tmp_path / "none", range(COUNT))
    data._shape = (3, 4, 4)  # type: ignore[attr-defined]  # as `size` would give it
    with pytest.raises(DataError, match="22 images in a row are broken"):
        next(load_batches(data, [[3]], 0, skip_broken=True))


class _Many:
    """A data set that claims to be larger than it is."""

    def __init__(self, data: ImageDataset):
        self.data = data

    def __len__(self) -> int:
        return 1000

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.data[1 + index % (COUNT - 1)]
