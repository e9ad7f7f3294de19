"""What a job's function is given."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from localllm.errors import JobCancelledError
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Event, Progress, Record
from localllm.jobs.job import Job
from localllm.jobs.switch import CancelSwitch

_PROGRESS_SECONDS = 0.1


class JobContext:
    """A running job, seen from inside.

    Attributes:
        id: The job's id.
        directory: The job's directory.
        out: For what it makes; empty at first, and kept from one run to the next when it is resumed.
        home: The home that it belongs to.
        arguments: From its spec; ``resume`` is True in it when the job goes on.
        resuming: Whether it goes on where an earlier run ended.
    """

    def __init__(
        self,
        job: Job,
        writer: EventWriter,
        switch: CancelSwitch,
        *,
        resuming: bool = False,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.id = job.id
        self.directory = job.directory
        self.out = job.out
        self.home = job.home
        self.arguments: dict[str, Any] = {**job.spec.arguments, "resume": True} if resuming else job.spec.arguments
        self.resuming = resuming
        self._writer = writer
        self._switch = switch
        self._clock = clock
        self._shown: tuple[str, str] | None = None
        self._shown_at = 0.0

    @property
    def cancelled(self) -> bool:
        """Whether somebody wants it to end; it has time to save what it has."""
        return self._switch.requested

    def check_cancelled(self) -> None:
        """Raise when somebody wants it to end.

        Raises:
            JobCancelledError: Let it pass: it ends the job as cancelled.
        """
        if self.cancelled:
            raise JobCancelledError

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Inside, a cancel interrupts whatever runs, as Ctrl-C does: for calls that wait and cannot be asked to end.

        Only in the main thread. It leaves as JobCancelledError.
        """
        try:
            with self._switch.interrupting():
                yield
        except KeyboardInterrupt:
            raise JobCancelledError from None

    def emit(self, event: Event) -> None:
        """Tell those who watch. Of :class:`Progress` of one item, at most ten a second and the last are kept.

        Raises:
            JobError: The event cannot be written as JSON.
        """
        now = self._clock()
        if isinstance(event, Progress):
            shown = (event.stage, event.item)
            if shown == self._shown and event.done != event.total and 0 <= now - self._shown_at < _PROGRESS_SECONDS:
                return
            self._shown, self._shown_at = shown, now
        self._writer.write(Record(now, event))
