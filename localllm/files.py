"""Writing files so that a reader never sees half of one."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.errors import DiskFullError
from localllm.paths import FILE_MODE

_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@contextmanager
def disk_full_as_error(path: Path) -> Iterator[None]:
    """Turn "no space left" and "quota exceeded" on ``path`` into :class:`DiskFullError`; let other errors pass."""
    try:
        yield
    except OSError as error:
        if error.errno not in _NO_ROOM:
            raise
        raise DiskFullError(
            f"The disk is full: {path.name} could not be written.",
            f"Free some room on the disk that holds {path.parent}; what was complete before is untouched.",
        ) from error


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` to ``path`` as a whole or not at all: temporary file, fsync, rename. The file gets mode 0600.

    Raises:
        DiskFullError: There is no room; ``path`` is as it was.
    """
    raw = data.encode() if isinstance(data, str) else data
    with disk_full_as_error(path):
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
        try:
            with os.fdopen(descriptor, "wb") as handle:
                handle.write(raw)
                handle.flush()
                os.fsync(handle.fileno())
            Path(temporary).chmod(FILE_MODE)
            Path(temporary).replace(path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        sync_directory(path.parent)


def subdirectories(directory: Path) -> list[Path]:
    """The directories in ``directory``, sorted, without hidden ones; none where it is not there, or no more."""
    try:
        return sorted(path for path in directory.iterdir() if path.is_dir() and not path.name.startswith("."))
    except FileNotFoundError:
        return []


def sync_file(path: Path) -> None:
    """Bring to the disk what was written to ``path``, by whichever process."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_directory(directory: Path) -> None:
    """Make renames inside ``directory`` durable (a rename alone may be lost with the power)."""
    if os.name != "posix":
        return  # Windows has no handle on a directory to sync
    sync_file(directory)
