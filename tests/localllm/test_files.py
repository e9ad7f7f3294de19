"""Files appear whole or not at all; homes and logs are private."""

import logging
import os
from pathlib import Path

import pytest

from localllm.errors import DiskFullError, SettingsError
from localllm.files import subdirectories, write_atomic
from localllm.logs import log_to_file
from localllm.paths import Home


def test_a_file_is_replaced_as_a_whole_and_private(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")
    path.chmod(0o644)
    write_atomic(path, "new é")
    assert path.read_bytes() == "new é".encode()
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(("number", "error"), [(28, DiskFullError), (122, DiskFullError), (5, OSError)])
def test_what_breaks_off_leaves_the_old_file_and_no_other(tmp_path, monkeypatch, number, error):
    def broken(descriptor):
        raise OSError(number, os.strerror(number))

    path = tmp_path / "file"
    path.write_text("old")
    monkeypatch.setattr("localllm.files.os.fsync", broken)
    with pytest.raises(error):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_the_home_is_named_or_the_platform_s(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_DATA_HOME", raising=False)
    assert Home.resolve({"LOCALLLM_HOME": "~/models"}).root == tmp_path / "models"
    assert Home.resolve({"LOCALLLM_HOME": "here"}).root == Path.cwd() / "here"
    platform = Home.resolve({}).root
    assert platform.is_relative_to(tmp_path)
    assert platform.name == "localllm"


def test_the_home_is_made_private_even_where_it_was_not(tmp_path):
    root = tmp_path / "home"
    root.mkdir(mode=0o755)
    home = Home(root).ensure()
    made = [root, home.models, home.partial, home.locks, home.logs]
    assert {path.stat().st_mode & 0o777 for path in made} == {0o700}


def test_a_home_that_is_a_file_is_an_error_for_a_person(tmp_path):
    (tmp_path / "home").write_text("")
    with pytest.raises(SettingsError, match="cannot be used") as caught:
        Home(tmp_path / "home").ensure()
    assert "LOCALLLM_HOME" in caught.value.hint


def test_logs_are_private_and_on_the_level_asked_for(home):
    log_to_file(home, "try", "warning")
    logging.getLogger("any").info("quiet")
    logging.getLogger("any").warning("loud")
    file = home.logs / "try.log"
    assert file.stat().st_mode & 0o777 == 0o600
    assert "loud" in file.read_text()
    assert "quiet" not in file.read_text()


def test_a_log_that_was_turned_over_stays_private(home, monkeypatch):
    monkeypatch.setattr("localllm.logs._MAX_BYTES", 200)
    log_to_file(home, "try")
    for _ in range(20):
        logging.getLogger("any").warning("a line of a certain length")
    files = sorted(home.logs.glob("try.log*"))
    assert [file.name for file in files] == ["try.log", "try.log.1", "try.log.2"]
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_log_that_cannot_be_written_is_an_error_for_a_person(home):
    (home.logs / "try.log").mkdir()
    with pytest.raises(SettingsError, match=r"try\.log cannot be written: Is a directory"):
        log_to_file(home, "try")


def test_what_is_in_a_directory_that_may_be_gone(tmp_path):
    for name in ("b", "a", ".hidden"):
        (tmp_path / name).mkdir()
    (tmp_path / "file").touch()
    assert [path.name for path in subdirectories(tmp_path)] == ["a", "b"]
    assert subdirectories(tmp_path / "gone") == []
