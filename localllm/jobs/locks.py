"""Locks that die with their owner: ``flock`` on a file. A lock that is free means that its owner is gone.

Not filelock: a lock is handed to a child process here (there is no moment in which a started job looks dead), and is
looked at without being taken (two who look at once must not see each other).
"""

import fcntl
import os
import time
from pathlib import Path

from localllm.paths import FILE_MODE

_POLL_SECONDS = 0.02


class HeldLock:
    """A lock that this process holds until :meth:`close`, or its own end.

    Attributes:
        descriptor: The open file; closed in every program that this process starts.
    """

    def __init__(self, descriptor: int) -> None:
        os.set_inheritable(descriptor, False)
        self.descriptor = descriptor

    def close_in_forks(self) -> None:
        """Keep children that are forked without a new program (multiprocessing) from holding it too."""
        os.register_at_fork(after_in_child=self.close)

    def note(self, text: str) -> None:
        """Write who holds it into the file, for those who wait."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, text.encode("utf-8", "replace"), 0)

    def close(self) -> None:
        """Let go of it. Where it was handed to a child, the child still holds it; closing twice is fine."""
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)  # and no LOCK_UN, which would free it for the child too


def take(path: Path, patience: float = 0.0) -> HeldLock | None:
    """Take the lock of ``path`` (made if need be); None when another holds it for longer than ``patience`` seconds."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, FILE_MODE)
    deadline = time.monotonic() + patience
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                os.close(descriptor)
                return None
            time.sleep(_POLL_SECONDS)
        except BaseException:
            os.close(descriptor)
            raise
        else:
            return HeldLock(descriptor)


def is_held(path: Path) -> bool:
    """Whether somebody alive holds the lock of ``path``; it is not taken by looking."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
