"""Data sets of the hub, against the fake one."""

import json

import pytest

from localllm.errors import (
    AccessDeniedError,
    ChecksumError,
    DataError,
    NetworkError,
    SourceNotFoundError,
    UsageError,
)
from localllm.models.sources.hub_rows import HubRows, fetch_rows, find_kept_rows
from tests.fakes.hub import COMMIT, FakeRepository

NAME = "acme/sums"
OTHER_COMMIT = "f" * 40


def rows(n, first=0):
    return "".join(
        json.dumps({"prompt": f"{i} + 1?", "completion": str(i + 1)}) + "\n" for i in range(first, n)
    ).encode()


@pytest.fixture
def fetch(hub, home):
    def fetched(text, **more):
        wanted = HubRows.parse(text)
        assert wanted is not None
        return fetch_rows(wanted, home, lambda _: None, **more)

    return fetched


def offer(hub, files, **more):
    hub.repositories[f"datasets/{NAME}"] = FakeRepository({"README.md": b"# Sums", **files}, **more)


def names(found):
    return [(path.name, part) for path, part in found.files]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("acme/sums", HubRows("acme/sums")),
        ("hf:acme/sums", HubRows("acme/sums")),
        ("acme/sums/hard:train_sft@v1.0", HubRows("acme/sums", "hard", "train_sft", "v1.0")),
        ("acme/sums.jsonl", None),
        ("data/more/rows.parquet", None),
        ("rows", None),
        ("./acme/sums", None),
        ("../sums", None),
        ("acme/../sums", None),
        ("/acme/sums", None),
        ("a/b/c/d", None),
    ],
)
def test_names(text, expected):
    assert HubRows.parse(text) == expected


def test_its_splits_are_found_by_their_names_and_kept_in_the_home(hub, fetch, home):
    offer(
        hub,
        {
            "data/train-00000-of-00002.jsonl": rows(3),
            "data/train-00001-of-00002.jsonl": rows(6, 3),
            "data/validation.jsonl": rows(8, 6),
            "data/test.jsonl": rows(9, 8),
            "dataset_infos.json": b"{}",
            "data/train.csv": b"prompt,completion\n",
        },
    )
    found = fetch(NAME)
    assert names(found) == [
        ("train-00000-of-00002.jsonl", "train"),
        ("train-00001-of-00002.jsonl", "train"),
        ("validation.jsonl", "valid"),
    ]
    assert found.commit == COMMIT
    path = found.files[0][0]
    assert path == home.datasets / "acme--sums" / COMMIT / "data" / "train-00000-of-00002.jsonl"
    assert path.read_bytes() == rows(3)
    assert path.stat().st_mode & 0o777 == 0o600
    assert not list(home.partial.iterdir())
    assert all(url.startswith("/cdn/datasets/acme/sums/") for url, _ in hub.downloads())

    hub.requests.clear()
    assert fetch(NAME) == found  # the hub is asked what the branch is now, and nothing is fetched again
    assert hub.downloads() == []
    hub.requests.clear()
    assert fetch(NAME, commit=COMMIT) == found
    assert hub.requests == []
    assert names(fetch(f"{NAME}:test")) == [("test.jsonl", "train")]


def test_the_card_says_what_belongs_where(hub, fetch):
    configs = [
        {"config_name": "main", "data_files": [{"split": "train", "path": "main/tr*"}, {"split": "test", "path": "x"}]},
        {"config_name": "hard", "data_files": [{"split": "train_sft", "path": ["hard/a.jsonl", "hard/b.jsonl"]}]},
        {"config_name": "odd", "data_files": "odd/*.jsonl"},
        {"config_name": "gone", "data_files": "gone/*"},
    ]
    files = {path: rows(2) for path in ("main/tr.jsonl", "hard/a.jsonl", "hard/b.jsonl", "odd/c.jsonl")}
    offer(hub, files, configs=configs)
    with pytest.raises(UsageError, match="3 parts: main, hard, odd") as caught:
        fetch(NAME)
    assert caught.value.hint == "Name one, as in acme/sums/main."
    assert names(fetch(f"{NAME}/main")) == [("tr.jsonl", "train")]
    assert names(fetch(f"{NAME}/odd")) == [("c.jsonl", "train")]
    with pytest.raises(UsageError, match="no split named train") as caught:
        fetch(f"{NAME}/hard")
    assert caught.value.hint == "Name one, as in acme/sums/hard:train_sft. It has train_sft."
    assert names(fetch(f"{NAME}/hard:train_sft")) == [("a.jsonl", "train"), ("b.jsonl", "train")]
    with pytest.raises(SourceNotFoundError, match="no part 'easy'"):
        fetch(f"{NAME}/easy")
    with pytest.raises(SourceNotFoundError, match="no split 'dev'"):
        fetch(f"{NAME}/main:dev")
    configs[1]["default"] = True
    configs[1]["data_files"][0]["split"] = "train"
    assert len(fetch(NAME).files) == 2


def test_directories_without_a_card_are_parts(hub, fetch):
    offer(hub, {"easy/train.jsonl": rows(2), "hard/train.jsonl": rows(3)})
    with pytest.raises(UsageError, match="2 parts: easy, hard"):
        fetch(NAME)
    assert fetch(f"{NAME}/hard").files[0][0].read_bytes() == rows(3)
    assert fetch(f"{NAME}/easy").files[0][0].read_bytes() == rows(2)


def test_a_broken_fetch_goes_on_and_a_wrong_file_is_thrown_away(hub, fetch, home):
    offer(hub, {"train.jsonl": rows(2000)})
    hub.cuts["train.jsonl"] = [1000, 500]
    assert fetch(NAME).files[0][0].read_bytes() == rows(2000)
    assert [ranged for _, ranged in hub.downloads()] == ["", "bytes=1000-", "bytes=1500-"]

    offer(hub, {"train.jsonl": rows(1000)}, commit=OTHER_COMMIT)
    hub.corrupt.add("train.jsonl")
    with pytest.raises(ChecksumError):
        fetch(NAME)
    assert find_kept_rows(HubRows(NAME), home, OTHER_COMMIT) is None


def test_what_cannot_be_fetched_is_said(hub, fetch):
    with pytest.raises(SourceNotFoundError, match="no repository acme/none"):
        fetch("acme/none")
    offer(hub, {"train.jsonl": rows(2)}, gated=True)
    with pytest.raises(AccessDeniedError, match="acme/sums is gated"):
        fetch(NAME)
    offer(hub, {"notes.txt": b"hello", "../train.jsonl": rows(2)})
    with pytest.raises(DataError, match="holds no file of rows"):
        fetch(NAME)
    with pytest.raises(SourceNotFoundError, match="no revision 'old'"):
        fetch(f"{NAME}@old")


def test_without_a_hub_what_was_fetched_before_is_used_and_said(hub, fetch):
    offer(hub, {"train.jsonl": rows(2)})
    before = fetch(NAME)
    hub.status = 503
    found = fetch(NAME)
    assert (found.files, found.commit) == (before.files, before.commit)
    assert found.note.endswith("What was fetched before is used.")
    with pytest.raises(NetworkError):
        fetch(f"{NAME}@v1")
