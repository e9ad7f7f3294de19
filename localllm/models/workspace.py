"""Where models are put together before they appear in the store: one directory and one lock for each."""

import hashlib
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from localllm.paths import DIR_MODE, FILE_MODE, Home

_REMOVED = "removed-"
_RESUMABLE = "hf-"
_KEEP_SECONDS = 7 * 24 * 3600


class Workspace:
    """The directories under ``partial/``. A directory whose lock is free belongs to nobody alive."""

    def __init__(self, home: Home) -> None:
        self._home = home

    @staticmethod
    def key(source: str) -> str:
        """The name of the directory and lock for ``source`` (in its full form)."""
        readable = re.sub(r"[^a-z0-9._-]+", "-", source.lower()).strip("-.")[:60]
        return f"{readable}-{hashlib.sha256(source.encode()).hexdigest()[:12]}"

    @contextmanager
    def exclusive(self, key: str, on_wait: Callable[[], None]) -> Iterator[Path]:
        """Hold the lock of ``key``; yields its directory, which may hold what an earlier pull left.

        Args:
            key: From :meth:`key`.
            on_wait: Called once when another process holds the lock, before waiting for it.
        """
        lock = self._lock(key)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            on_wait()
            lock.acquire(poll_interval=0.1)
        try:
            directory = self._home.partial / key
            directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
            yield directory
        finally:
            lock.release()

    def can_resume(self, key: str) -> bool:
        """Whether a later pull of the same source goes on with what this one left."""
        return key.startswith(_RESUMABLE)

    def discard(self, directory: Path) -> None:
        """Delete a directory under ``partial/``; one that is gone already is fine."""
        shutil.rmtree(directory, ignore_errors=True)

    def bin_for(self, directory: Path) -> Path:
        """A name under ``partial/`` to move a removed model to; whoever comes by may delete it."""
        return self._home.partial / f"{_REMOVED}{directory.parent.name}-{directory.name}-{time.time_ns()}"

    def clean(self) -> None:
        """Delete what dead processes left: removed models at once, broken-off downloads after a week."""
        for directory in self._home.partial.iterdir():
            if not directory.is_dir() or directory.is_symlink():
                continue
            if directory.name.startswith(_REMOVED):
                self.discard(directory)
                continue
            lock = self._lock(directory.name)
            try:
                lock.acquire(timeout=0)
            except Timeout:
                continue
            try:
                if not (self.can_resume(directory.name) and time.time() - _newest(directory) < _KEEP_SECONDS):
                    self.discard(directory)
            finally:
                lock.release()

    def _lock(self, key: str) -> FileLock:
        # thread_local=False: a pull may be started in one thread and ended in another.
        return FileLock(self._home.locks / f"pull-{key}.lock", mode=FILE_MODE, thread_local=False)


def _newest(directory: Path) -> float:
    try:
        return max(path.lstat().st_mtime for path in [directory, *directory.iterdir()])
    except FileNotFoundError:
        return 0.0  # whose it was has just deleted it
