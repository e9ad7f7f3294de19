"""How a job learns that it shall end: a signal, or the file ``cancel`` in its directory."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

_POLL_SECONDS = 0.1
GRACE_SECONDS = 120.0


class CancelSwitch:
    """Set once, by SIGTERM, SIGINT or the file; a second signal, or the end of the grace period, is the end.

    Args:
        file: There as soon as somebody wants the job to end.
        on_last: Writes down that it is over, before the process group is killed.
        grace: Seconds that a job has to save and end.
    """

    def __init__(self, file: Path, on_last: Callable[[], object], grace: float = GRACE_SECONDS) -> None:
        self._file = file
        self._on_last = on_last
        self._grace = grace
        self._requested = threading.Event()
        self._again = False
        self._over = threading.Event()
        self._interrupts = False

    @property
    def requested(self) -> bool:
        """Whether the job shall end."""
        return self._requested.is_set()

    def install(self) -> None:
        """Take over the process's signals, and watch the file. The terminal that is closed means nothing to a job."""
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        signal.signal(signal.SIGUSR1, self._on_file)
        threading.Thread(target=self._watch, daemon=True, name="cancel").start()

    def finished(self) -> None:
        """The work is over: nothing is cancelled any more."""
        self._over.set()
        self._interrupts = False

    @contextmanager
    def interrupting(self) -> Iterator[None]:
        """Raise KeyboardInterrupt in the main thread when the job shall end, and at once when that was wanted before.

        KeyboardInterrupt, because that is what every library lets pass.
        """
        self._interrupts = True
        try:
            self._interrupt()
            yield
        finally:
            self._interrupts = False

    def _interrupt(self) -> None:
        if self._interrupts and self.requested:
            self._interrupts = False
            raise KeyboardInterrupt

    def _on_signal(self, _number: int, _frame: FrameType | None) -> None:
        if self._over.is_set():
            return
        # The watcher ends it: this handler runs in the middle of anything, and may not wait for a lock.
        self._again = self.requested
        self._requested.set()
        self._interrupt()

    def _on_file(self, _number: int, _frame: FrameType | None) -> None:
        self._interrupt()

    def _watch(self) -> None:
        while not self._requested.wait(_POLL_SECONDS):
            if self._file.exists():
                self._requested.set()
        main = threading.main_thread().ident
        if main is not None and not self._over.is_set():
            signal.pthread_kill(main, signal.SIGUSR1)  # exceptions of signals are raised in the main thread alone
        deadline = time.monotonic() + self._grace
        while not self._again and time.monotonic() < deadline:
            if self._over.wait(_POLL_SECONDS):
                return
        self._on_last()
        os.killpg(os.getpgrp(), signal.SIGKILL) if os.getpgrp() == os.getpid() else os._exit(130)
