"""Opening the SQLite file of this home, and turning SQLite's errors into ones a person can act on."""

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.errors import ConversationError, DiskFullError
from localllm.paths import FILE_MODE

BUSY_SECONDS = 5.0
_DAMAGED = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_FORMAT})
_BUSY = frozenset({sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED})


def open_database(path: Path) -> sqlite3.Connection:
    """Open or create ``path``: mode 0600, write-ahead log, foreign keys on, in autocommit mode.

    The connection may be used from any thread, by one at a time: the caller locks.

    Raises:
        ConversationError: The file is damaged, locked or cannot be opened. It is left as it is.
    """
    with errors_for(path):
        try:
            descriptor = os.open(path, os.O_CREAT | os.O_RDWR, FILE_MODE)  # before SQLite would, with a looser mode
            os.close(descriptor)
            if path.stat().st_mode & 0o077:
                path.chmod(FILE_MODE)  # SQLite gives its -wal and -shm files the mode of this one
        except OSError as error:
            raise ConversationError(
                f"The database {path} cannot be opened: {error.strerror}.", "Is its directory yours, and writable?"
            ) from error
        connection = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, check_same_thread=False)
        try:
            _enter_wal(connection)
            # A prompt must survive a power cut; at one write a second the fsync costs nothing that is felt.
            connection.execute("PRAGMA synchronous = FULL")
            connection.execute("PRAGMA foreign_keys = ON")
            connection.execute("PRAGMA secure_delete = ON")  # what a person deletes is overwritten, not just unlinked
        except BaseException:
            connection.close()
            raise
        connection.row_factory = sqlite3.Row
        return connection


def _enter_wal(connection: sqlite3.Connection) -> None:
    # SQLite's busy timeout does not cover the change to WAL when two processes make it on a new file at once.
    deadline = time.monotonic() + BUSY_SECONDS
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
        except sqlite3.OperationalError as error:
            if _primary(error) not in _BUSY or time.monotonic() > deadline:
                raise
            time.sleep(0.02)
        else:
            return


@contextmanager
def errors_for(path: Path) -> Iterator[None]:
    """Turn SQLite's errors about ``path`` into :class:`ConversationError` and :class:`DiskFullError`.

    Errors that only a bug can cause (wrong SQL, misuse) pass unchanged.
    """
    try:
        yield
    except sqlite3.IntegrityError as error:
        raise ConversationError("That conversation or message is not there (any more).") from error
    except sqlite3.DatabaseError as error:
        code = _primary(error)
        if code in _DAMAGED:
            raise ConversationError(
                f"The database {path} is damaged, or is no database.",
                "It has been kept as it is. Move it away to start with an empty one, or put a backup in its place.",
            ) from error
        if code in _BUSY:
            raise ConversationError(
                f"The database {path.name} is held by another program.", "Close that program, then try again."
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise DiskFullError(f"The disk is full: {path.name} could not be written.", "Free some room.") from error
        if code in {sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PERM}:
            raise ConversationError(f"The database {path} cannot be read or written: {error}.") from error
        raise


def _primary(error: sqlite3.Error) -> int:
    # Extended codes keep the primary one in the low byte; errors of the Python module itself carry none.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF
