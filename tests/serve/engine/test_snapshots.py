"""Prefixes on the disk: found again by a new engine, by nobody else, and within the cap."""

import errno
import os
from itertools import count

import numpy as np
import pytest

from localllm.snapshots import clear_snapshots, remove_model_snapshots, snapshot_bytes, snapshot_directory
from serve.engine.prefix import Parked, as_tokens
from serve.engine.request import Adapter, Job
from serve.engine.scheduler import Scheduler
from serve.engine.snapshots import MIN_TOKENS, Snapshots
from serve.engine.types import Delta, SamplingParams, Started
from tests.fakes.backend import FakeBackend

ALICE = ("alice", ())
PROMPT = [n % 200 for n in range(400)]


@pytest.fixture
def directory(home):
    return snapshot_directory(home, "ab" * 32)


def engine(directory, max_bytes=10_000_000, kind="f16", n_ctx=2000, n_seq=4, n_parallel=2):
    backend = FakeBackend(n_ctx=n_ctx, n_batch=512, n_seq=n_seq)
    snapshots = Snapshots(directory, max_bytes, kind)
    return Scheduler(backend, n_parallel=n_parallel, snapshots=snapshots, clock=count().__next__)


def ask(scheduler, prompt, client="alice", adapters=()):
    """How many tokens were cached, and the answer."""
    scheduler.submit(Job(0, tuple(prompt), SamplingParams(), 6, client=client, adapters=adapters))
    cached, text = None, ""
    while not scheduler.idle:
        for _, event in scheduler.step():
            if isinstance(event, Started):
                cached = event.n_cached
            elif isinstance(event, Delta):
                text += event.text
    return cached, text


def files(directory):
    return sorted(directory.glob("*.kv"))


def test_another_process_goes_on_where_this_one_ended(directory):
    first = engine(directory)
    assert ask(first, PROMPT) == (0, wanted := ask(engine(directory / "other"), PROMPT)[1])
    first.save()
    second = engine(directory)
    assert ask(second, [*PROMPT, 7, 8])[0] >= len(PROMPT)
    assert ask(second, PROMPT) == (len(PROMPT) - 1, wanted)


def test_what_is_evicted_comes_back(directory):
    scheduler = engine(directory)
    for start in range(4):
        ask(scheduler, [start, *PROMPT])
    assert len(files(directory)) == 2, "two of four have room in memory"
    assert ask(scheduler, [0, *PROMPT])[0] == len(PROMPT)
    assert scheduler.n_free + len(scheduler._backend.cells) == 4


def test_it_is_private(directory):
    scheduler = engine(directory)
    ask(scheduler, PROMPT)
    scheduler.save()
    (path,) = files(directory)
    assert path.stat().st_mode & 0o777 == 0o600
    assert directory.stat().st_mode & 0o777 == directory.parent.stat().st_mode & 0o777 == 0o700
    assert b"alice" not in path.read_bytes()


@pytest.mark.parametrize(
    ("client", "adapters", "kind"),
    [("bob", (), "f16"), ("alice", (Adapter("x", "f", 1),), "f16"), ("alice", (), "q8_0")],
)
def test_nobody_elses_is_used(directory, client, adapters, kind):
    first = engine(directory)
    ask(first, PROMPT)
    first.save()
    assert ask(engine(directory, kind=kind), PROMPT, client, adapters)[0] == 0


def test_short_ones_are_not_worth_a_file(directory):
    scheduler = engine(directory)
    ask(scheduler, PROMPT[: MIN_TOKENS - 20])
    scheduler.save()
    assert files(directory) == []


def test_a_longer_one_replaces_what_it_begins_with(directory):
    def state(_):
        return np.zeros(10, np.uint8)

    snapshots = Snapshots(directory, 10_000_000, "f16")
    for n in (300, 400, 350):
        snapshots.save(Parked(0, as_tokens(PROMPT[:n]), ALICE, 0.0), state)
        assert len(files(directory)) == 1
    found = snapshots.find(as_tokens([*PROMPT, 1]), ALICE, 1)
    assert found is not None
    assert len(found[0].tokens) == 400
    snapshots.save(Parked(0, as_tokens(PROMPT), ("bob", ()), 0.0), state)
    snapshots.save(Parked(0, as_tokens([9, *PROMPT]), ALICE, 0.0), state)
    assert len(files(directory)) == 3


def test_the_least_recently_used_goes_beyond_the_cap(directory):
    snapshots = Snapshots(directory, 3 * 12_000, "f16")
    texts = [as_tokens([start, *PROMPT]) for start in range(4)]
    for tokens in texts[:3]:
        snapshots.save(Parked(0, tokens, ALICE, 0.0), lambda _: np.zeros(9000, np.uint8))
    for age, path in enumerate(sorted(files(directory), key=lambda path: path.stat().st_mtime_ns)):
        os.utime(path, (1000 + age, 1000 + age))
    assert snapshots.find(texts[0], ALICE, 1) is not None
    snapshots.save(Parked(0, texts[3], ALICE, 0.0), lambda _: np.zeros(9000, np.uint8))
    assert sum(path.stat().st_size for path in files(directory)) <= 3 * 12_000
    assert [snapshots.find(tokens, ALICE, 300) is not None for tokens in texts] == [True, False, True, True]
    snapshots.save(Parked(0, as_tokens([9, *PROMPT]), ALICE, 0.0), lambda _: np.zeros(50_000, np.uint8))
    assert len(files(directory)) == 3, "one that is larger than the cap takes nobody's place"


def damage_state(data):
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [
        damage_state,
        lambda data: data[:-5],
        lambda data: data[:200],
        lambda data: b"",
        lambda data: b"\xff" * 5000,
        lambda data: b"[1]\n" + data,
        lambda data: data.replace(b'"format": 1', b'"format": 2'),
    ],
)
def test_a_damaged_file_is_ignored_and_removed(directory, damage):
    first = engine(directory)
    _, wanted = ask(first, PROMPT)
    first.save()
    (path,) = files(directory)
    path.write_bytes(damage(path.read_bytes()))
    assert ask(engine(directory), PROMPT) == (0, wanted)
    assert not path.exists()


def test_what_was_not_finished_is_removed(directory):
    directory.mkdir(parents=True)
    (directory / "abc.123").write_bytes(b"half")
    engine(directory)
    assert not any(directory.iterdir())


def test_a_full_disk_is_no_error(directory, monkeypatch, caplog):
    scheduler = engine(directory)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fdopen", full)
    _, text = ask(scheduler, PROMPT)
    scheduler.save()
    assert text
    assert "No space left" in caplog.text
    assert list(directory.iterdir()) == []


def test_no_room_in_the_cache(directory):
    first = engine(directory)
    ask(first, PROMPT)
    first.save()
    small = engine(directory, n_ctx=350)
    assert ask(small, PROMPT[:330])[0] == 0
    assert small.n_free + len(small._backend.cells) == 4
    assert files(directory), "it may fit another time"


def test_deleting_a_conversation_clears_them_and_what_engines_still_hold(home, directory):
    scheduler = engine(directory)
    ask(scheduler, PROMPT)
    scheduler.save()
    assert snapshot_bytes(home) > 0
    clear_snapshots(home)
    assert snapshot_bytes(home) == 0
    scheduler.save()
    assert files(directory) == [], "the engine still holds the text"


def test_removing_a_model_removes_its_own(home, directory):
    clear_snapshots(home)  # nothing is there
    assert remove_model_snapshots(home, "ab" * 32) == 0
    other = snapshot_directory(home, "cd" * 32)
    for one in (directory, other):
        scheduler = engine(one)
        ask(scheduler, PROMPT)
        scheduler.save()
    assert remove_model_snapshots(home, "ab" * 32) > 0
    assert not directory.exists()
    assert len(files(other)) == 1
