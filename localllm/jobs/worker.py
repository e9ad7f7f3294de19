"""The process of one job.

    python -P -m localllm.jobs.worker DIRECTORY [--lock DESCRIPTOR] [--resume]

It is started by :class:`localllm.jobs.store.JobStore` with its standard output in ``log.txt`` and with the job's lock.
"""

import argparse
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

from localllm.errors import DiskFullError, JobCancelledError, JobError, LocalLLMError
from localllm.files import disk_full_as_error
from localllm.jobs.context import JobContext
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Cancelled, Done, Event, Failed, Record, State
from localllm.jobs.job import EVENTS, Job
from localllm.jobs.lease import take_lease
from localllm.jobs.locks import HeldLock, take
from localllm.jobs.record import JobStatus, write_status
from localllm.jobs.switch import GRACE_SECONDS, CancelSwitch
from localllm.paths import FILE_MODE
from localllm.private_process import keep_private

# A job names its function by a string; nothing but this program's own code may be named.
PACKAGES = ("app", "finetune", "localllm", "quant", "serve")
_RESERVE_BYTES = 16384
_CANCELLED_CODE = 130
_log = logging.getLogger(__name__)

Entry = Callable[[JobContext], dict[str, Any]]


class Worker:
    """Runs one job from its start to its end.

    Args:
        job: The job; this process holds its lock.
        packages: Where its function may be.
        resuming: Whether it goes on where an earlier run ended.
        grace: Seconds that it has to end when it is cancelled.
    """

    def __init__(self, job: Job, packages: Sequence[str], *, resuming: bool, grace: float = GRACE_SECONDS) -> None:
        self._job = job
        self._packages = packages
        self._status = JobStatus("queued", pid=os.getpid(), started=time.time())
        self._reserve = job.directory / ".reserve"
        self._writer = EventWriter(job.directory / EVENTS)
        self._switch = CancelSwitch(job.cancel_path, lambda: self._end(Cancelled()), grace)
        self._context = JobContext(job, self._writer, self._switch, resuming=resuming)

    def run(self) -> int:
        """Do the work; return the exit code."""
        self._switch.install()
        try:
            self._hold_room()
            write_status(self._job.directory, self._status)  # whoever cancels needs the process id
            if self._job.spec.heavy:
                self._wait_for_lease()
            self._enter(State("running"))
            entry = find_entry(self._job.spec.entry, self._packages)
            end: Event = Done(entry(self._context))
        except (JobCancelledError, KeyboardInterrupt):
            end = Cancelled()
        except LocalLLMError as error:
            end = Failed(error.message, error.hint, error.exit_code)
        except (Exception, SystemExit) as error:  # noqa: BLE001  a bug: told in a line, and whole in log.txt
            _log.exception("job %s: a bug", self._job.id)
            kind = type(error).__name__
            end = Failed(f"Job {self._job.id} ended with a bug in localllm ({kind}); sorry.", self._log_hint())
        self._switch.finished()
        return self._end(end)

    def _wait_for_lease(self) -> None:
        """Take the accelerator; the end of this process gives it back."""

        def waits(holder: str) -> None:
            self._enter(State("waiting", f"for {holder}" if holder else "for the accelerator"))

        take_lease(self._job, on_wait=waits, check_cancelled=self._context.check_cancelled).close_in_forks()

    def _enter(self, state: State) -> None:
        self._status = replace(self._status, state=state.state, detail=state.detail)
        write_status(self._job.directory, self._status)
        self._writer.write(Record(time.time(), state))

    def _end(self, end: Event) -> int:
        now = time.time()
        match end:
            case Done(result):
                status = replace(self._status, state="done", detail="", ended=now, result=result)
            case Failed(message, hint, code):
                status = replace(
                    self._status, state="failed", detail="", ended=now, message=message, hint=hint, exit_code=code
                )
            case _:
                status = replace(self._status, state="cancelled", detail="", ended=now, exit_code=_CANCELLED_CODE)
        try:
            self._reserve.unlink(missing_ok=True)  # on a full disk this is the room for the last words
            self._writer.write(Record(now, end))
            write_status(self._job.directory, status)
        except JobError as error:
            return self._end(Failed(error.message, self._log_hint()))
        except DiskFullError:
            _log.exception("job %s: how it ended (%s) cannot be written", self._job.id, status.state)
            return 1
        return status.exit_code

    def _hold_room(self) -> None:
        with disk_full_as_error(self._reserve):
            self._reserve.write_bytes(os.urandom(_RESERVE_BYTES))  # zeros would take no room on some disks
            self._reserve.chmod(FILE_MODE)

    def _log_hint(self) -> str:
        return f"`localllm jobs log {self._job.id}` shows what is known."


def find_entry(name: str, packages: Sequence[str]) -> Entry:
    """The function that ``package.module:function`` names.

    Raises:
        JobError: There is none, or it is in no package of ours.
    """
    module, _, function = name.partition(":")
    if module.partition(".")[0] not in packages or not function:
        raise JobError(f"{name!r} names no work of this program.")
    try:
        found = getattr(import_module(module), function, None)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # the module is there, and something that it needs is not
        found = None
    if not callable(found):
        raise JobError(f"This version of localllm has no {name!r}.", "The job was made by another version.")
    return found  # type: ignore[no-any-return]  # what a name leads to has no type


def main(argv: Sequence[str] | None = None, packages: Sequence[str] = PACKAGES, grace: float = GRACE_SECONDS) -> int:
    """Run the job of a directory; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m localllm.jobs.worker")
    parser.add_argument("directory", type=Path)
    parser.add_argument("--lock", type=int, default=-1)
    parser.add_argument("--resume", action="store_true")
    args = parser.parse_args(argv)
    keep_private()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    job = Job(args.directory)
    lock = HeldLock(args.lock) if args.lock >= 0 else take(job.lock_path)
    if lock is None:
        raise SystemExit(f"job {job.id} runs already")
    lock.close_in_forks()
    os.environ["LOCALLLM_HOME"] = str(job.home.root)  # whatever this job starts belongs to the same home
    code = Worker(job, packages, resuming=args.resume, grace=grace).run()
    _end_children()
    return code


def _end_children() -> None:
    """What a job has started ends with it, at the latest."""
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(os.getpgrp(), signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
