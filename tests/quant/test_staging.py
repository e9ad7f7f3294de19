"""What is written beside its place: brought to the disk as it comes, gone when it fails."""

import errno
import os
import time

import pytest

from quant import staging as module
from quant.staging import staging, synced_meanwhile


@pytest.fixture(autouse=True)
def quickly(monkeypatch):
    monkeypatch.setattr(module, "_SECONDS_BETWEEN", 0.01)


def wait_until(true):
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_files_are_synced_as_they_come(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(module, "sync_file", synced.append)
    with synced_meanwhile(tmp_path):
        (tmp_path / "first").touch()
        wait_until(lambda: tmp_path / "first" in synced)
        (tmp_path / "second").touch()
        wait_until(lambda: tmp_path / "second" in synced)
    count = len(synced)
    time.sleep(0.05)
    assert len(synced) == count


def test_an_error_of_a_sync_is_raised_once_the_work_is_done(tmp_path, monkeypatch):
    tried = []

    def full(path):
        tried.append(path)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(module, "sync_file", full)
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="No space"), synced_meanwhile(tmp_path):
        wait_until(lambda: tried)
    with pytest.raises(KeyError), synced_meanwhile(tmp_path):
        raise KeyError  # the work's own error comes first


def test_a_file_that_was_renamed_meanwhile_is_no_error(tmp_path, monkeypatch):
    tried = []

    def gone(path):
        tried.append(path)
        raise FileNotFoundError(path)

    monkeypatch.setattr(module, "sync_file", gone)
    (tmp_path / "file").touch()
    with synced_meanwhile(tmp_path):
        wait_until(lambda: len(tried) > 1)


def test_nothing_half_made_is_left(tmp_path):
    def fail(directory):
        (directory / "half").touch()
        raise KeyError

    with pytest.raises(KeyError), staging(tmp_path / "model.gguf") as directory:
        fail(directory)
    assert not list(tmp_path.iterdir())
