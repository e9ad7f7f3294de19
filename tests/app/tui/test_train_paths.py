"""Paths as people type, paste and drop them."""

import shlex

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.tui.train_paths import complete, describe_paths, join_paths, split_paths
from localllm.errors import DataError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in (
        "my rows.jsonl",
        "my rules.jsonl",
        "it's.json",
        "data/train.jsonl",
        "data/valid.jsonl",
        "Grüße 模型.csv",
    ):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
    return tmp_path


def test_a_dropped_file_is_its_path(tree):
    there = str(tree / "my rows.jsonl")
    for text in (
        there,
        f" {there} ",
        f"'{there}'",
        f'"{there}"',
        there.replace(" ", "\\ "),
        f"file://{there.replace(' ', '%20')}",
        "~/my rows.jsonl",
        "~/my\\ rows.jsonl",
        "my rows.jsonl",
        "'my rows.jsonl'",
    ):
        assert split_paths(text) == (there,), text


def test_several_and_odd_ones(tree):
    assert split_paths("data 'my rows.jsonl' data") == (str(tree / "data"), str(tree / "my rows.jsonl"))
    assert split_paths("data\n my rows.jsonl \n\n'it'\\''s.json'") == tuple(
        str(tree / name) for name in ("data", "my rows.jsonl", "it's.json")
    )
    assert split_paths("it's.json") == (str(tree / "it's.json"),)
    assert split_paths("Grüße\\ 模型.csv") == (str(tree / "Grüße 模型.csv"),)
    assert split_paths("  ") == ()
    assert split_paths("~nobody-of-this-name/x") == ("~nobody-of-this-name/x",)
    assert split_paths("it's not there") == ("it's not there",)
    assert split_paths("a\0b") == ("a\0b",)
    assert split_paths("x" * 5000) == ("x" * 5000,)


def test_what_is_named_is_counted(tree):
    assert describe_paths(split_paths("data 'my rows.jsonl'")) == "3 files, 3 B"
    with pytest.raises(DataError, match="no file or directory none"):
        describe_paths(("none",))
    (tree / "data" / "train.jsonl").unlink()
    with pytest.raises(DataError, match="only held-out"):
        describe_paths(("data",))


def test_a_name_of_the_hub_is_said_to_be_fetched(tree):
    assert describe_paths(("acme/chats",)) == "acme/chats: no file here, to be fetched from the Hugging Face hub"
    assert describe_paths(split_paths("acme/chats data")).startswith("2 files, 2 B; acme/chats: no file here")
    assert describe_paths(split_paths("data/")) == "2 files, 2 B"


def test_completion_goes_as_far_as_names_agree(tree):
    assert complete("da") == ("data/", ())
    assert complete("data/") == ("data/", ("train.jsonl", "valid.jsonl"))
    assert complete("data/t") == ("data/train.jsonl", ())
    assert complete("m") == ("my\\ r", ("my rows.jsonl", "my rules.jsonl"))
    assert complete("my\\ ro") == ("my\\ rows.jsonl", ())
    assert complete("'my ro") == ("my\\ rows.jsonl", ())
    assert complete("data/train.jsonl ~/it") == ("data/train.jsonl ~/it\\'s.json", ())
    assert complete(f"{tree}/Gr") == (f"{tree}/Grüße\\ 模型.csv", ())
    assert complete("none/x") == ("none/x", ())
    assert complete("x\0") == ("x\0", ())


def test_names_that_would_write_to_the_terminal_are_not_offered(tree):
    (tree / "a\x1b[2Jb").touch()
    (tree / "a\udcff").touch()
    (tree / "a\nb").touch()
    assert complete("a") == ("a", ())


@given(st.lists(st.text(st.characters(exclude_characters="\0\n"), min_size=1), min_size=2, max_size=4, unique=True))
@settings(derandomize=True, deadline=None)
def test_any_paths_survive_being_written_down(paths):
    wanted = tuple(path for path in paths if not path.startswith(("~", "file:")) and path.strip() == path)
    if len(wanted) > 1:
        assert split_paths(join_paths(wanted)) == wanted
        assert tuple(shlex.split(join_paths(wanted))) == wanted
