"""Where commands write: nobody's files are replaced, and two commands do not share a folder."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import pytest
from calling import DATA, FAST, call, gen, network, refused
from PIL import Image
from runner import Runner

import restore
from datautils import prepare
from networks import Denoiser, make_config, save_weights
from runtime.files import replacing, write_json, writing
from training import curves, posthoc, publish

HOLD = """
import fcntl, sys
file = open(sys.argv[1], "a")
fcntl.lockf(file, fcntl.LOCK_EX)
print(flush=True)
input()
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("home")
    network(folder / "net.safetensors")
    return folder


@contextmanager
def held(lock: Path) -> Iterator[None]:
    """The lock of a folder, held by another process."""
    command = [sys.executable, "-c", HOLD, str(lock)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout and process.stdout.readline()
        yield
        process.communicate(b"\n")


@pytest.mark.parametrize("name", ["metrics.json", "grid.png", "grid-2.png", "report.html"])
def test_gen_replaces_no_result_that_is_there(home: Path, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    refused(gen(home, tmp_path), name)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]


def test_two_commands_do_not_write_into_one_folder(home: Path, tmp_path: Path) -> None:
    out, photo = tmp_path / "out", tmp_path / "photo.png"
    Image.new("RGB", (16, 16)).save(photo)
    net = home / "net.safetensors"
    words = [f"--image={photo}", "--degradation=Box", f"--net={net}", f"--outdir={out}"]
    out.mkdir()
    with held(out / ".lock"):
        refused(gen(home, out), "another process writes into", str(out))
        refused(call(home, "gen", "--net", net, *FAST, "--outdir", out, "--images", 2), "another")
        refused(Runner().invoke(restore.main, words), "another process")
        assert [path.name for path in out.iterdir()] == [".lock"]
    assert gen(home, out, "--images", 2).exit_code == 0
    made = {"metrics.json", "per_image.csv", "grid.png", "examples.json", "report.html"}
    assert {path.name for path in out.iterdir()} == made


def test_temporary_files_are_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("uuid.uuid4", lambda: type("U", (), {"hex": "known"}))
    (tmp_path / "mine").write_text("precious")
    (tmp_path / ".a.json.known.tmp").symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match=r"a\.json cannot be written: File exists"):
        write_json(tmp_path / "a.json", 1)
    assert (tmp_path / "mine").read_text() == "precious"


@pytest.mark.parametrize("wrap", [replacing, writing])
def test_a_full_disk_names_the_file(tmp_path: Path, wrap: Callable) -> None:
    with pytest.raises(OSError, match=r"a\.json cannot be written: No space"):  # noqa: SIM117
        with wrap(tmp_path / "a.json"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert not list(tmp_path.iterdir())


def written(command: click.Command, *words: object) -> str:
    """The sentence with which a command that writes a file ends."""
    result = Runner().invoke(command, [str(word) for word in words])
    assert result.exit_code == 2, (result.output, result.exception)
    return result.stderr.splitlines()[-1]


def test_files_that_are_not_theirs_stay(tmp_path: Path) -> None:
    net, mine = tmp_path / "net.safetensors", tmp_path / "mine.safetensors"
    save_weights(net, Denoiser(make_config("tiny")), {"images": 1, "sigma_rel": 0.1})
    run = tmp_path / "run"
    (run / "snapshots").mkdir(parents=True)
    (run / "log.jsonl").write_text('{"images": 4, "loss": 1.0}\n')
    picture = tmp_path / "photo.png"
    Image.new("RGB", (4, 4)).save(picture)
    mine.write_text("mine")
    before = picture.read_bytes(), mine.read_bytes()
    assert "already" in written(posthoc.main, run, "--sigma-rel=0.1", "--dest", mine)
    assert "already" in written(publish.main, net, mine)
    assert "already" in written(curves.main, run, "--dest", picture)
    assert (picture.read_bytes(), mine.read_bytes()) == before


def test_files_end_as_their_kind_does(home: Path, tmp_path: Path) -> None:
    png, net = tmp_path / "a.png", home / "net.safetensors"
    assert ".safetensors" in written(posthoc.main, "run", "--sigma-rel=0.1", "--dest", png)
    assert ".safetensors" in written(publish.main, net, png)
    assert ".png" in written(curves.main, "run", "--dest", tmp_path / "a.jpg")
    assert ".zip" in written(prepare.main, "--source", home, "--size=8", "--dest", png)
    refused(call(home, "prior", *DATA, "--dest", png), ".safetensors")
    assert not list(tmp_path.iterdir())
