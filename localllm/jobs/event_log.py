"""``events.jsonl``: appended line by line by the worker, read from an offset by anyone at any time."""

import errno
import logging
import os
import threading
from collections import deque
from pathlib import Path

from localllm.jobs.events import Record, from_line, to_line
from localllm.paths import FILE_MODE

_log = logging.getLogger(__name__)
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_KEPT = 1000  # events that wait for room on a full disk


class EventWriter:
    """Appends events; any thread may write.

    A full disk ends no work: events wait in memory and are written, in their order, when there is room again.

    Args:
        path: Created with mode 0600.
    """

    def __init__(self, path: Path) -> None:
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT, FILE_MODE)
        self._lock = threading.Lock()
        self._waiting: deque[bytes] = deque(maxlen=_KEPT)
        self._torn = self._ends_in_a_torn_line()

    def write(self, record: Record) -> bool:
        """Append; False while the disk is too full for it.

        Raises:
            JobError: The event cannot be written as JSON.
        """
        line = to_line(record)
        with self._lock:
            if len(self._waiting) == _KEPT:
                _log.warning("the disk is full: the oldest event that waits is lost")
            self._waiting.append(line)
            return self._write_waiting()

    def close(self) -> None:
        """Give the file back."""
        os.close(self._descriptor)

    def _write_waiting(self) -> bool:
        while self._waiting:
            line = self._waiting[0]
            data = b"\n" + line if self._torn else line
            try:
                written = os.write(self._descriptor, data)  # one call a line: lines of two processes never mix
            except OSError as error:
                if error.errno not in _NO_ROOM:
                    raise
                _log.warning("an event waits: %s", error.strerror)
                return False
            self._torn = written < len(data)
            if self._torn:
                continue  # the disk filled up in the middle of the line: the whole line is written again
            self._waiting.popleft()
        return True

    def _ends_in_a_torn_line(self) -> bool:
        size = os.fstat(self._descriptor).st_size
        return bool(size) and os.pread(self._descriptor, 1, size - 1) != b"\n"


def read_events(path: Path, offset: int = 0) -> tuple[list[Record], int]:
    """The events after ``offset`` bytes, and the offset to go on from; a last line without its end is left for later.

    A file that is not there yet has no events.
    """
    try:
        with path.open("rb") as handle:
            handle.seek(offset)
            data = handle.read()
    except FileNotFoundError:
        return [], offset
    end = data.rfind(b"\n") + 1
    records = (from_line(line) for line in data[:end].split(b"\n") if line)
    return [record for record in records if record is not None], offset + end


def read_last_events(path: Path, n_bytes: int = 65536) -> list[Record]:
    """The events in about the last ``n_bytes`` of the file."""
    try:
        start = max(0, path.stat().st_size - n_bytes)
    except FileNotFoundError:
        return []
    # From the middle of a line on: what is left of that line is damaged, and skipped.
    return read_events(path, start)[0]
