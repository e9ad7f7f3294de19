import errno
import math
import os
import threading

import pytest

from localllm.errors import JobError
from localllm.jobs import event_log
from localllm.jobs.event_log import EventWriter, read_events, read_last_events
from localllm.jobs.events import (
    Cancelled,
    Checkpoint,
    Done,
    Evaluation,
    Failed,
    Message,
    Progress,
    Record,
    Sample,
    State,
    Step,
    Unknown,
    from_line,
    to_line,
)

EVENTS = [
    State("waiting", "for job x: Ä 模型"),
    Progress("download", 1, None, "a.gguf", "B"),
    Progress("download", 1.5, 3),
    Step(3, 10, {"loss": 0.25}),
    Evaluation(3, {"loss": 0.5}),
    Sample(3, "Who?\n", "\u2028I.\x1b"),
    Checkpoint(3, "out/3"),
    Message("warning", "Careful."),
    Done({"name": "m:q4", "list": [1, None]}),
    Failed("No.", "Why.", 2),
    Cancelled(),
    Unknown("later", {"x": 1}),
]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "events.jsonl"


@pytest.fixture
def writer(path):
    opened = EventWriter(path)
    yield opened
    opened.close()


@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_every_event_is_one_line_and_comes_back(event):
    line = to_line(Record(12.5, event))
    assert line.count(b"\n") == 1
    assert line.endswith(b"\n")
    assert from_line(line) == Record(12.5, event)


def test_a_loss_that_is_no_number_comes_back():
    record = from_line(to_line(Record(0, Step(1, 2, {"loss": math.nan}))))
    assert math.isnan(record.event.metrics["loss"])


def test_what_a_later_version_wrote():
    assert from_line(b'{"time": 1, "event": "checkpoint", "step": 1, "path": "p", "size": 9}') == Record(
        1.0, Checkpoint(1, "p")
    )
    assert from_line(b'{"time": 1, "event": "checkpoint", "at": 1}') == Record(1.0, Unknown("checkpoint", {"at": 1}))


@pytest.mark.parametrize("line", [b"", b"{", b"[]", b"1", b"{}", b'{"time": "x", "event": "done"}', b"\xff\xfe"])
def test_damaged_lines_are_none(line):
    assert from_line(line) is None


def test_what_is_no_json_is_refused(writer):
    with pytest.raises(JobError, match="written down"):
        writer.write(Record(0, Done({"x": object()})))


def test_reading_goes_on_from_an_offset_and_leaves_a_torn_line(writer, path):
    writer.write(Record(1, Message("info", "one")))
    records, offset = read_events(path)
    assert [record.event.text for record in records] == ["one"]
    whole = to_line(Record(2, Message("info", "two")))
    with path.open("ab") as handle:
        handle.write(whole[:20])
    assert read_events(path, offset) == ([], offset)
    with path.open("ab") as handle:
        handle.write(whole[20:])
    records, end = read_events(path, offset)
    assert [record.event.text for record in records] == ["two"]
    assert end == path.stat().st_size


def test_a_writer_begins_a_new_line_after_a_torn_one(path):
    path.write_bytes(to_line(Record(1, Cancelled())) + b'{"time": 1, "ev')
    again = EventWriter(path)
    again.write(Record(2, Done({})))
    again.close()
    assert [record.event for record in read_events(path)[0]] == [Cancelled(), Done({})]


def test_no_file_has_no_events(path):
    assert read_events(path, 7) == ([], 7)
    assert read_last_events(path) == []


def test_the_last_events_begin_at_a_whole_line(writer, path):
    for step in range(1000):
        writer.write(Record(step, Step(step, 1000)))
    steps = [record.event.step for record in read_last_events(path, 1000)]
    assert steps == list(range(1000 - len(steps), 1000))
    assert 5 < len(steps) < 30


def test_the_file_is_the_persons_own(writer, path):
    assert path.stat().st_mode & 0o777 == 0o600


def test_threads_write_whole_lines(writer, path):
    threads = [
        threading.Thread(target=lambda: [writer.write(Record(0, Step(n, 200))) for n in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(read_events(path)[0]) == 1600


class FullDisk:
    """``os.write`` on a disk with ``room`` bytes."""

    def __init__(self, room):
        self.room = room

    def __call__(self, descriptor, data):
        if not self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        written = REAL_WRITE(descriptor, data[: self.room])
        self.room -= written
        return written


REAL_WRITE = os.write


def test_a_full_disk_delays_events_and_tears_none(writer, path, monkeypatch, caplog):
    disk = FullDisk(room=30)
    monkeypatch.setattr(event_log.os, "write", disk)
    assert not writer.write(Record(1, Message("info", "first")))
    assert not writer.write(Record(2, Message("info", "second")))
    assert read_events(path)[0] == []
    assert "No space left" in caplog.text
    disk.room = 10_000
    assert writer.write(Record(3, Message("info", "third")))
    assert [record.event.text for record in read_events(path)[0]] == ["first", "second", "third"]


def test_another_fault_of_the_disk_is_an_error(writer, monkeypatch):
    def broken(descriptor, data):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(event_log.os, "write", broken)
    with pytest.raises(OSError, match="Input"):
        writer.write(Record(1, Cancelled()))
