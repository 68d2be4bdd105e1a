"""Folders and zip files: their names and contents; a damaged one raises an error."""

import contextlib
import gc
import os
import tracemalloc
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from helpers import sent
from image_files import labels_of, make, png

import datautils.archive
from datautils import DataError
from datautils.archive import open_archive
from datautils.imagedir import ImageDir

# ---- archives ------------------------------------------------------------------------------------


def test_names_are_the_pictures_sorted(where: Path):
    files = dict.fromkeys(
        ["b.JPEG", "a/2.png", "a/10.png", "a-1.webp", "notes.txt", ".hidden.png", "a/.x/1.png",
         "__MACOSX/b.png", "é.jpg"], b"content"
    )  # fmt: skip
    archive = open_archive(make(where, files))
    assert list(archive.names) == ["a-1.webp", "a/10.png", "a/2.png", "b.JPEG", "é.jpg"]
    for i, name in enumerate(archive.names):
        data, place = archive.picture(i)
        assert data == b"content" and place == archive.where(name) and name in place


def test_links_are_followed_once(tmp_path: Path):
    make(tmp_path / "elsewhere", ["1.png"])
    make(tmp_path / "folder", ["0.png"])
    (tmp_path / "folder/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "folder/loop").symlink_to(tmp_path / "folder")
    assert list(open_archive(tmp_path / "folder").names) == ["0.png", "more/1.png"]


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("variant", ["plain", "comment", "prefix", "zip64"])
def test_members_are_those_of_zipfile(tmp_path: Path, method: int, variant: str):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("folder/", b"")
        for i in range(20):
            with archive.open(f"folder/{i}.png", "w", force_zip64=variant == "zip64") as file:
                file.write(b"x%d" % i * (i % 50))
        if variant == "comment":
            archive.comment = b"PK\3\4 no entry"
    if variant == "prefix":  # put before it afterwards, so that all offsets are too small
        path.write_bytes(b"a program that unpacks itself" + path.read_bytes())
    ours = open_archive(path)
    with zipfile.ZipFile(path) as theirs:
        assert list(ours.names) == sorted(theirs.namelist())[1:]
        for i, name in enumerate(ours.names):
            assert ours.picture(i)[0] == theirs.read(name)


def with_plain_names(path: Path, names: dict[str, bytes]) -> Path:
    """A zip file whose names are these bytes, without the flag for UTF-8. names: {ASCII: bytes of
    the same length}."""
    with zipfile.ZipFile(path, "w") as archive:
        for i, name in enumerate(names):
            archive.writestr(zipfile.ZipInfo(name), png(i))
    data = path.read_bytes()
    for name, raw in names.items():
        assert len(name) == len(raw)
        data = data.replace(name.encode(), raw)
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ("é/a.png".encode(), "é/a.png"),
        ("é/a.png".encode("cp437"), "é/a.png"),
        (b"xx\\a.png", "xx/a.png"),
        (b"./xa.png", "xa.png"),
    ],
)
def test_names_without_the_flag_for_utf8(tmp_path: Path, raw: bytes, expected: str):
    plain = f"{'q' * (len(raw) - 4)}.png"
    archive = open_archive(with_plain_names(tmp_path / "a.zip", {plain: raw}))
    assert list(archive.names) == [expected]
    assert archive.picture(0) == (png(0), f"{expected} in {tmp_path}/a.zip")


def test_backslashes_make_class_folders(tmp_path: Path):
    names = {"cat_a.png": b"cat\\a.png", "dog_b.png": b"dog\\b.png"}
    data = ImageDir(with_plain_names(tmp_path / "a.zip", names))
    assert labels_of(data) == [0, 1]


def test_many_entries_take_little_more_memory_than_their_names(tmp_path: Path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for i in range(3_000):
            archive.writestr(f"{i // 1000:05d}/img{i:08d}.png", b"")
    open_archive(make(tmp_path / "first.zip", ["a.png"]))  # whatever is imported once
    gc.collect()
    tracemalloc.start()
    try:
        opened = open_archive(tmp_path / "a.zip")
        gc.collect()
        traces = tracemalloc.take_snapshot()
    finally:
        tracemalloc.stop()
    # only by the modules that read archives: other threads of the process allocate, too
    readers = [tracemalloc.Filter(True, module.__file__) for module in (datautils.archive, zipfile)]
    held = sum(trace.size for trace in traces.filter_traces(readers).traces)
    assert len(opened.names) == 3_000 and held < 80 * 3_000  # of zipfile it would be 500


def test_encrypted_and_unknown_compression_are_told(tmp_path: Path):
    path = make(tmp_path / "a.zip", {"a.png": png()})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\1\2") + 8] |= 1
    path.write_bytes(data)
    lzma = make(tmp_path / "b.zip", {"a.png": png()}, method=zipfile.ZIP_LZMA)
    for archive in (path, lzma):
        with pytest.raises(DataError, match=rf"a\.png in .*{archive.name} is encrypted or compr"):
            open_archive(archive)


def test_damaged_zips_are_told(tmp_path: Path):
    path = make(tmp_path / "a.zip", [f"{i}.png" for i in range(5)])
    whole = path.read_bytes()
    for data in (b"", b"PK\5\6", b"no zip" * 100, whole[:-100], whole[:20]):
        path.write_bytes(data)
        with pytest.raises(DataError, match=r"a\.zip is no zip file, or a damaged one"):
            open_archive(path)
    at = whole.index(png(0)) + 30
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
    archive = open_archive(path)
    with pytest.raises(DataError, match=r"^0\.png in .*a\.zip is damaged"):
        archive.picture(0)
    assert archive.picture(1)[0] == png(1)


def test_any_damage_to_the_directory_raises_data_errors_only(tmp_path: Path):
    path = make(tmp_path / "a.zip", [f"{i}.png" for i in range(5)], method=zipfile.ZIP_DEFLATED)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    directory = whole.index(b"PK\1\2")
    for _ in range(300):
        data = np.frombuffer(whole, np.uint8).copy()
        data[generator.integers(directory, len(data), 3)] = generator.integers(0, 256, 3)
        path.write_bytes(data.tobytes())
        with contextlib.suppress(DataError):
            archive = open_archive(path)
            for i in range(len(archive.names)):
                archive.picture(i)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"nowhere is not there"):
        open_archive(tmp_path / "nowhere")
    for path in (make(tmp_path / "folder", {"a.txt": b""}), make(tmp_path / "a.zip", {})):
        with pytest.raises(DataError, match=rf"{path.name} holds no image"):
            open_archive(path)


def test_threads_share_an_archive(where: Path):
    files = {f"{i:03d}.png": os.urandom(2000 + i) for i in range(200)}
    archive = open_archive(make(where, files))
    with ThreadPoolExecutor(8) as pool:
        read = [data for data, _ in pool.map(archive.picture, [*range(200)] * 5)]
    assert read == [*files.values()] * 5


def test_an_opened_archive_can_be_sent_to_a_process(where: Path):
    archive = open_archive(make(where, ["a.png"]))
    assert sent(archive).picture(0) == archive.picture(0)


def test_files_of_other_extensions_are_counted_in_one_line(where: Path):
    names = ["a.jfif", "b.JPE", "c.heic", "d.heic", "e.txt", "f", ".hidden.txt"]
    with pytest.warns(UserWarning, match="are left out") as told:
        archive = open_archive(make(where, names, labels=None))
    assert list(archive.names) == ["a.jfif", "b.JPE"]
    (warning,) = told
    assert str(warning.message).endswith("left out: 2 .heic, 1 .txt, 1 without an extension")
    other = where.with_name(f"none{where.suffix}")
    with pytest.raises(DataError, match=r"holds no image: .*\.jpg.* are read, there are 1 \.heic$"):
        open_archive(make(other, {"x.heic": b""}))


def test_a_bug_in_a_folder_is_no_damaged_zip_file(tmp_path: Path, monkeypatch):
    def fail(path: Path) -> list[str]:
        raise ValueError("a bug")

    monkeypatch.setattr("datautils.archive._files_below", fail)
    with pytest.raises(ValueError, match=r"^a bug$"):
        open_archive(tmp_path)
