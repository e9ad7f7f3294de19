from pathlib import Path

import pytest

from localllm.typed_paths import is_directory, is_file, is_there, typed_path


def test_homes_and_relative_paths(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert typed_path("~/a b.txt") == typed_path("a b.txt") == tmp_path / "a b.txt"
    assert typed_path("~nobody-of-that-name/x") == tmp_path / "~nobody-of-that-name" / "x"


def test_what_is_there(tmp_path):
    (tmp_path / "x").touch()
    assert (is_there(tmp_path / "x"), is_file(tmp_path / "x"), is_directory(tmp_path / "x")) == (True, True, False)
    assert (is_there(str(tmp_path)), is_file(tmp_path), is_directory(tmp_path)) == (True, False, True)


@pytest.mark.parametrize("text", ["", "none", "x" * 300, "a\0b", "/dev/null/x", "\udce9"])
def test_what_cannot_be_seen_is_not_there(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert (is_there(text), is_file(text), is_directory(text)) == (False, False, False)


def test_a_closed_directory_hides_what_is_in_it(monkeypatch):
    def closed(*_args, **_more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.stat", closed)
    with pytest.raises(PermissionError):
        Path("/closed/x").exists()
    assert not is_there("/closed/x")
