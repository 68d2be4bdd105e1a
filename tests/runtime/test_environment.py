"""A result says what it was made with."""

import os
import subprocess
import sys

import numpy as np
import torch

from runtime import environment


def test_environment_names_versions():
    record = environment.environment()
    assert record["python"] == sys.version.split()[0]
    assert record["torch"] == torch.__version__
    assert record["numpy"] == np.__version__
    assert record["cpu_count"] == os.cpu_count()
    assert record["device"]
    assert set(record) >= {"platform", "commit"}


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
    command = ["git", *identity, *arguments]
    return subprocess.run(
        command, cwd=folder, check=True, capture_output=True, text=True
    ).stdout.strip()


def test_commit_of_a_checkout(tmp_path):
    git(tmp_path, "init")
    assert environment._commit(tmp_path) is None  # nothing is committed yet
    (tmp_path / "file").write_text("1")
    git(tmp_path, "add", "file")
    git(tmp_path, "commit", "-m", "one")
    git(tmp_path, "tag", "-a", "v1", "-m", "one")
    commit = git(tmp_path, "rev-parse", "HEAD")
    assert environment._commit(tmp_path) == commit
    (tmp_path / "file").write_text("2")
    assert environment._commit(tmp_path) == commit + "-dirty"
    (tmp_path / "inside").mkdir()
    assert environment._commit(tmp_path / "inside") is None


def test_commit_is_quiet_without_git(tmp_path, monkeypatch, capfd):
    (tmp_path / ".git").mkdir()
    assert environment._commit(tmp_path) is None
    monkeypatch.setenv("PATH", "")
    assert environment._commit(tmp_path) is None
    assert capfd.readouterr() == ("", "")
