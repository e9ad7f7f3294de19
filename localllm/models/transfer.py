"""Moving model files: progress, checksums, room on the disk, links and copies."""

import errno
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from localllm.errors import ChecksumError, DiskFullError, StoreError
from localllm.files import disk_full_as_error
from localllm.models.manifest import ModelFile
from localllm.paths import FILE_MODE

_CHUNK = 1 << 20
# Left free for everything else on the disk (the database, logs, the system).
_SPARE = 64 << 20
# A hard link may be refused although nothing is wrong: another disk, a file system without them, a protected file.
_NO_LINK = frozenset(
    {errno.EXDEV, errno.EPERM, errno.EACCES, errno.EMLINK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}
)


@dataclass(frozen=True)
class PullProgress:
    """How far a pull has come.

    Attributes:
        stage: ``wait`` while another process pulls the same model; then the stages in their order.
        done: Bytes of this stage and file.
        total: Bytes to do; None while that is unknown.
        file: The file's name, or what the stage works on.
    """

    stage: Literal["wait", "resolve", "download", "verify", "install"]
    done: int
    total: int | None
    file: str


Report = Callable[[PullProgress], None]


def require_room(directory: Path, size: int) -> None:
    """Check that ``size`` more bytes fit on the disk that holds ``directory``.

    Raises:
        DiskFullError: They do not.
    """
    free = shutil.disk_usage(directory).free
    if free < size + _SPARE:
        raise DiskFullError(
            f"The disk is too full: {size / 1e6:,.1f} MB are needed, {free / 1e6:,.1f} MB are free.",
            f"Free some room on the disk that holds {directory}.",
        )


def copy_stream(
    source: BinaryIO, target: Path, *, limit: int, on_bytes: Callable[[int], None], append: bool = False
) -> str:
    """Copy ``source`` to the file ``target`` (0600, synced to the disk) and return the SHA-256 of what was copied.

    Args:
        source: Read to its end.
        target: Created, or appended to.
        limit: The most bytes to accept.
        on_bytes: Called with the number of bytes copied so far.
        append: Add to a file that is already there.

    Raises:
        ChecksumError: ``source`` holds more than ``limit`` bytes.
        DiskFullError: There is no room; ``target`` is gone.
    """
    digest = hashlib.sha256()
    done = 0
    flags = os.O_WRONLY | os.O_CREAT | (os.O_APPEND if append else os.O_EXCL)
    try:
        with disk_full_as_error(target), os.fdopen(os.open(target, flags, FILE_MODE), "wb") as handle:
            while chunk := source.read(_CHUNK):
                done += len(chunk)
                _require_within(limit, done, target.name)
                digest.update(chunk)
                handle.write(chunk)
                on_bytes(done)
            handle.flush()
            os.fsync(handle.fileno())
    except (DiskFullError, ChecksumError):
        target.unlink(missing_ok=True)
        raise
    return digest.hexdigest()


def _require_within(limit: int, done: int, name: str) -> None:
    if done > limit:
        raise ChecksumError(f"{name} is longer than promised ({limit:,} bytes).", "It was removed.")


def sha256_of(path: Path, on_bytes: Callable[[int], None]) -> str:
    """SHA-256 of a file, read in pieces; ``on_bytes`` is called with the number of bytes read so far."""
    digest = hashlib.sha256()
    done = 0
    with path.open("rb") as handle:
        while chunk := handle.read(_CHUNK):
            digest.update(chunk)
            done += len(chunk)
            on_bytes(done)
    return digest.hexdigest()


def import_file(source: Path, target: Path, report: Report) -> ModelFile:
    """Bring a file of this computer into the store: a hard link on the same disk, else a copy.

    The original's mode and content are never changed. Symbolic links are followed.

    Raises:
        StoreError: The file cannot be read.
        DiskFullError: There is no room for a copy.
    """
    try:
        original = source.resolve(strict=True)
        size = original.stat().st_size
        try:
            target.hardlink_to(original)
        except OSError as error:
            if error.errno not in _NO_LINK:
                raise
            require_room(target.parent, size)
            with original.open("rb") as handle:
                sha256 = copy_stream(
                    handle, target, limit=size, on_bytes=counting(report, "install", size, target.name)
                )
        else:
            sha256 = sha256_of(target, counting(report, "verify", size, target.name))
    except PermissionError as error:
        raise StoreError(f"{source} cannot be read: permission denied.", "Check the file's permissions.") from error
    except FileNotFoundError as error:
        raise StoreError(f"{source} is gone.", "Was it moved while it was being read?") from error
    return ModelFile(target.name, size, sha256)


def import_files(files: Iterable[Path], work: Path, report: Report) -> tuple[ModelFile, ...]:
    """:func:`import_file` for each of ``files``, under their own names, into ``work``."""
    return tuple(import_file(path, work / path.name, report) for path in files)


def counting(
    report: Report, stage: Literal["download", "verify", "install"], total: int | None, file: str
) -> Callable[[int], None]:
    """A callback that reports a number of bytes as progress of ``file`` in ``stage``."""
    return lambda done: report(PullProgress(stage, done, total, file))
