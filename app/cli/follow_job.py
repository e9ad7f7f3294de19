"""Running a job from a command, and following it in the terminal."""

import json
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn

from app.cli.job_bars import JobBars, JobView
from localllm.errors import JobError, JobFailedError
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec, JobStatus
from localllm.jobs.store import JobStore
from localllm.paths import Home

_POLL_SECONDS = 0.05
_HISTORY = 100  # events that one who comes later is shown
_INTERRUPTED = 130

Show = Callable[[dict[str, Any]], None]


def run_job(
    home: Home, spec: JobSpec, *, detach: bool = False, show: Show | None = None, view: JobView | None = None
) -> int:
    """Start a job and follow it; with ``detach`` only say where it is. Returns the exit code.

    Args:
        home: Whose job.
        spec: What is to be done.
        detach: Do not wait; the job's id goes to standard output.
        show: Prints the result to standard output; by default its ``summary``, else all of it as JSON.
        view: Shows the events; bars on standard error by default.

    Raises:
        JobFailedError: It failed; with the message, hint and exit code of the job's own error.
        JobError: It was removed meanwhile.
    """
    store = JobStore(home)
    job = store.create(spec)
    store.start(job)
    if detach:
        print(job.id)
        print(f"Job {job.id} runs. {_how_to_return(job)}", file=sys.stderr)
        return 0
    return follow(job, show=show, view=view)


def follow(
    job: Job,
    *,
    detach_hint: bool = True,
    show: Show | None = None,
    view: JobView | None = None,
    offset: int = 0,
    may_cancel: bool = True,
) -> int:
    """Show what a job tells until it ends.

    Ctrl-C leaves it alone (it goes on), or cancels it where ``job.spec.interrupt`` says so; a second Ctrl-C then kills
    it. SIGTERM cancels the latter too.

    Args:
        job: It was started.
        detach_hint: Say on Ctrl-C that it goes on, and how to come back.
        show: As for :func:`run_job`.
        view: As for :func:`run_job`.
        offset: Where in its events to begin.
        may_cancel: False where Ctrl-C only ever leaves it alone.

    Returns:
        0 done, 130 cancelled, or left alone by Ctrl-C.

    Raises:
        JobFailedError: As for :func:`run_job`.
        JobError: As there.
    """
    shown = view or JobBars()
    if may_cancel and job.spec.interrupt == "cancel":
        with _sigterm_as_exit(), _cancelled_at_exit(job, shown):
            status = _watch(job, shown, offset)
    else:
        try:
            status = _watch(job, shown, offset)
        except KeyboardInterrupt:
            shown.close()
            if detach_hint:
                print(f"Job {job.id} goes on. {_how_to_return(job)}", file=sys.stderr)
            return _INTERRUPTED
    shown.close("" if status.state == "done" else "stopped")
    match status.state:
        case "done":
            (show or show_result)(status.result)
            return 0
        case "cancelled":
            print(f"Job {job.id} was cancelled.{_how_to_resume(job)}", file=sys.stderr)
            return _INTERRUPTED
        case _:
            raise JobFailedError(status.message, status.hint, status.exit_code or 1)


def show_result(result: dict[str, Any]) -> None:
    """Print a result's ``summary``, else all of it as JSON."""
    print(result["summary"] if "summary" in result else json.dumps(result, ensure_ascii=False))


def _watch(job: Job, view: JobView, offset: int) -> JobStatus:
    """Show events until the job has ended; return how it ended."""
    first = True
    while True:
        status = job.status()  # before the events: those of a job that has ended are all there
        if status.state == "new" and not job.directory.exists():
            view.close("stopped")
            raise JobError(f"Job {job.id} was removed.", "`localllm jobs` lists those that are here.")
        records, offset = job.records(offset)
        for record in records[-_HISTORY:] if first else records:
            view.show(record)
        if status.has_ended:
            return status
        first = False
        time.sleep(_POLL_SECONDS)


@contextmanager
def _cancelled_at_exit(job: Job, view: JobView) -> Iterator[None]:
    """Cancel the job when an interruption passes through, and wait until it has put away what it has."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        view.close("stopped")
        store = JobStore(job.home)
        try:
            with suppress(JobError):  # it has ended meanwhile
                store.cancel(job)
            while job.alive:
                time.sleep(_POLL_SECONDS)
        except KeyboardInterrupt:
            with suppress(JobError):
                store.cancel(job, now=True)
        raise


@contextmanager
def _sigterm_as_exit() -> Iterator[None]:
    """Let SIGTERM end the command through its ``finally`` blocks."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _how_to_return(job: Job) -> str:
    return f"`localllm jobs watch {job.id}` comes back to it, `localllm jobs cancel {job.id}` ends it."


def _how_to_resume(job: Job) -> str:
    return f" `localllm jobs resume {job.id}` goes on." if job.spec.resumable else ""
