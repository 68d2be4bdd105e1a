"""What cannot fit into the memory is refused before it is begun."""

import resource

import pytest

from runtime import memory
from runtime.memory import check_memory


def test_more_than_the_machine_has_is_refused() -> None:
    check_memory(memory.memory() // 4, "--samples 4")
    with pytest.raises(ValueError, match=r"--samples 9 takes .* GiB of memory, and there are"):
        check_memory(memory.memory() // 4 + 1, "--samples 9")


def test_limits_of_a_shell_and_of_a_container_count(monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(memory, "_GROUP", tmp_path / "max")
    machine = memory.memory()
    (tmp_path / "max").write_text("max\n")
    assert memory.memory() == machine
    (tmp_path / "max").write_text("4096\n")
    assert memory.memory() == 4096
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (1024, -1))
    assert memory.memory() == 1024
