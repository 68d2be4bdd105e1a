"""The environment of a launcher: read once, and refused if no launcher makes it."""

import os
import socket
import time

import pytest
from processes import Processes

from runtime import distributed
from runtime.errors import one_sentence_errors
from runtime.launcher import Place, place

SOUND = {"RANK": "1", "WORLD_SIZE": "4", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


def surrounded(monkeypatch: pytest.MonkeyPatch, environment: dict[str, str]) -> None:
    for name in (*SOUND, "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)


def test_the_place_of_a_process(monkeypatch):
    surrounded(monkeypatch, SOUND | {"LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    assert place() == Place(1, 4, 1, 2)
    for alone in ({}, {"LOCAL_RANK": "1"}, {"LOCAL_RANK": "abc"}, {"RANK": "7"}):
        surrounded(monkeypatch, alone)
        assert place() == Place()


@pytest.mark.parametrize(
    "change",
    [
        {"RANK": "4"}, {"RANK": "-1"}, {"RANK": "x"}, {"RANK": ""}, {"WORLD_SIZE": "-3"},
        {"WORLD_SIZE": "0"}, {"WORLD_SIZE": ""}, {"LOCAL_RANK": "abc"}, {"LOCAL_RANK": ""},
        {"LOCAL_WORLD_SIZE": "0"}, {"MASTER_PORT": "port"}, {"MASTER_ADDR": ""},
    ],
    ids=str,
)  # fmt: skip
def test_what_no_launcher_sets_is_refused_by_name(monkeypatch, capsys, change):
    surrounded(monkeypatch, SOUND | change)
    with pytest.raises(SystemExit) as end, distributed.process_group():
        pass
    errors = capsys.readouterr().err
    assert end.value.code == 2 and errors.startswith("error: ") and errors.count("\n") == 1
    assert next(iter(change)) in errors


@pytest.mark.parametrize(
    ("environment", "said"),
    [
        ({"LOCAL_RANK": "1"}, True),
        ({"LOCAL_RANK": "abc"}, True),
        (SOUND | {"LOCAL_RANK": "0"}, True),
        (SOUND | {"LOCAL_RANK": "1"}, False),
        (SOUND | {"LOCAL_RANK": "1", "RANK": "9"}, True),
    ],
    ids=str,
)
def test_only_a_launcher_silences_errors(monkeypatch, capsys, environment, said):
    surrounded(monkeypatch, environment)
    with pytest.raises(SystemExit), one_sentence_errors():
        raise ValueError("a wrong option")
    assert capsys.readouterr().err == ("error: a wrong option\n" if said else "")


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_says_that_it_waits_for_others(tmp_path, rank):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])

    def wait() -> None:
        distributed._SILENCE = 0.01
        os.environ |= SOUND | {"WORLD_SIZE": "2", "RANK": str(rank), "MASTER_PORT": port}
        with distributed.process_group():
            pass

    errors = tmp_path / "errors.txt"
    processes = Processes(wait, errors=errors)
    end = time.monotonic() + 20
    while not (errors.exists() and errors.read_text().endswith("\n")):
        assert processes.alive() and time.monotonic() < end
        time.sleep(0.01)
    processes.signal(9)
    assert f"process {rank} waits at 127.0.0.1, port " in errors.read_text()
    assert "for the others of 2, 30 minutes at most" in errors.read_text()
