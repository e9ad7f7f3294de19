"""The jobs of a home: made, started, found, cancelled, resumed, removed."""

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

from localllm.errors import JobError
from localllm.files import disk_full_as_error, subdirectories
from localllm.jobs.event_log import EventWriter
from localllm.jobs.events import Record, State
from localllm.jobs.job import EVENTS, LOCK, Job
from localllm.jobs.locks import HeldLock, is_held, take
from localllm.jobs.record import JobSpec, JobStatus, read_status, write_spec, write_status
from localllm.paths import DIR_MODE, FILE_MODE, Home

WORKER = "localllm.jobs.worker"
_LETTERS = "abcdefghjkmnpqrstvwxyz"  # none that look like others
_LOOK_SECONDS = 2.0  # somebody who looks whether a job lives holds its lock for microseconds
_LEAVE_SECONDS = 10.0  # a process that has said how it ended is gone in a moment


class JobStore:
    """The jobs of one home. Nothing is cached: any process may start, cancel or remove a job at any time.

    Args:
        home: Where they are, under ``jobs/``.
        worker: The module that is run for a job.
    """

    def __init__(self, home: Home, worker: str = WORKER) -> None:
        self._home = home
        self._worker = worker

    def create(self, spec: JobSpec) -> Job:
        """Write a job down; :meth:`start` runs it.

        Raises:
            JobError: Its arguments are no JSON.
            DiskFullError: There is no room.
        """
        self._home.ensure()
        created = time.time()
        with disk_full_as_error(self._home.jobs):
            directory = Path(tempfile.mkdtemp(dir=self._home.jobs, prefix="."))
        try:
            write_spec(directory, spec, created)
            with disk_full_as_error(directory):
                (directory / "out").mkdir(mode=DIR_MODE)
                target = self._home.jobs / _new_id(created)
                while target.exists():
                    target = self._home.jobs / _new_id(created)
                directory.rename(target)
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        return Job(target)

    def start(self, job: Job) -> None:
        """Run a job in a process of its own, which outlives this one.

        Raises:
            JobError: It runs already, or it has ended.
        """
        with_lock = self._take(job.directory)
        try:
            if read_status(job.directory).state != "new":
                raise JobError(f"Job {job.id} was started before.", f"`localllm jobs resume {job.id}` starts it again.")
            self._launch(job, with_lock, resuming=False)
        finally:
            with_lock.close()

    def resume(self, job: Job) -> None:
        """Run a job again that was cancelled, failed or died: same directory, ``resume=True`` in its arguments.

        Raises:
            JobError: It runs, it is done, or its kind cannot go on where it ended.
        """
        if not job.spec.resumable:
            raise JobError(f"A job of kind {job.spec.kind!r} cannot be resumed.", "Run the command again.")
        status = job.status()
        if status.state in ("done", "new") or not status.has_ended:
            raise JobError(f"Job {job.id} cannot be resumed: it is {status.state}.")
        with_lock = self._take(job.directory)
        try:
            self._launch(job, with_lock, resuming=True)
        finally:
            with_lock.close()

    def list(self) -> list[Job]:
        """Every job that can be read, the oldest first."""
        found = []
        for directory in self._directories():
            try:
                found.append(Job(directory))
            except JobError:
                continue  # damaged, or removed just now
        return sorted(found, key=lambda job: job.created)

    def get(self, text: str) -> Job:
        """A job by its id, by the beginning of one, or by the letters at its end.

        Raises:
            JobError: There is none, there are several, or it is damaged.
        """
        return Job(self.find(text))

    def find(self, text: str) -> Path:
        """As :meth:`get`, but the directory, of a damaged job too.

        Raises:
            JobError: There is none, or there are several.
        """
        wanted = text.strip().lower()
        names = [directory.name for directory in self._directories()]
        matching = [name for name in names if name == wanted] or [
            name for name in names if wanted and (name.startswith(wanted) or name.endswith(f"-{wanted}"))
        ]
        if not matching:
            raise JobError(f"There is no job {text.strip()!r}.", "`localllm jobs` lists them.")
        if len(matching) > 1:
            raise JobError(f"{text.strip()!r} means {len(matching)} jobs: {', '.join(matching[-3:])}.", "Name one.")
        return self._home.jobs / matching[0]

    def cancel(self, job: Job, *, now: bool = False) -> None:
        """Ask a job to save what it has and end; asked a second time, or ``now``, its processes are killed.

        Raises:
            JobError: It does not run.
        """
        status = job.status()
        if status.has_ended:
            raise JobError(f"Job {job.id} does not run any more: it is {status.state}.")
        again = job.cancel_path.exists()
        job.cancel_path.touch(mode=FILE_MODE)
        if not (now or again):
            return
        # As long as its lock is held, the process is the job's and no other program's.
        pid = read_status(job.directory).pid
        if pid and job.alive:
            try:
                os.killpg(pid, signal.SIGKILL)
            except ProcessLookupError:
                return  # it ended by itself

    def remove(self, job: Job) -> None:
        """Delete a job that does not run, with all that it left in its directory.

        Raises:
            JobError: It runs.
        """
        self.remove_directory(job.directory)

    def remove_directory(self, directory: Path) -> None:
        """As :meth:`remove`, for a job whose directory :meth:`find` has found; it may be damaged."""
        with_lock = self._take(directory)
        try:
            bin_directory = directory.with_name(f".removed-{directory.name}")
            directory.rename(bin_directory)
            shutil.rmtree(bin_directory)
        finally:
            with_lock.close()

    def _take(self, directory: Path) -> HeldLock:
        lock, name = directory / LOCK, directory.name
        held = None
        if directory.is_dir() and not is_held(lock):
            held = take(lock, _LOOK_SECONDS)
        elif _says_that_it_ended(directory):
            held = take(lock, _LEAVE_SECONDS)
        if held is None:
            raise JobError(f"Job {name} runs, or is gone.", f"Cancel it with `localllm jobs cancel {name}`.")
        return held

    def _launch(self, job: Job, lock: HeldLock, *, resuming: bool) -> None:
        job.cancel_path.unlink(missing_ok=True)
        write_status(job.directory, JobStatus("queued"))
        with disk_full_as_error(job.directory):
            writer = EventWriter(job.directory / EVENTS)
            writer.write(Record(time.time(), State("queued")))
            writer.close()
            log = os.open(job.log_path, os.O_CREAT | os.O_APPEND | os.O_WRONLY, FILE_MODE)
        words = [sys.executable, "-P", "-m", self._worker, str(job.directory), "--lock", str(lock.descriptor)]
        try:
            process = subprocess.Popen(
                [*words, "--resume"] if resuming else words,
                cwd=job.directory,  # whatever directory the person stands in may go
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=(lock.descriptor,),
                start_new_session=True,
            )
        finally:
            os.close(log)
        # Somebody must wait for it, or it stays as a zombie while this process lives.
        threading.Thread(target=process.wait, daemon=True, name=f"job-{job.id}").start()

    def _directories(self) -> "Paths":
        return subdirectories(self._home.jobs)


# JobStore.list hides the type's name inside the class.
Paths = list[Path]


def _says_that_it_ended(directory: Path) -> bool:
    try:
        return read_status(directory).has_ended
    except JobError:
        return False


def _new_id(created: float) -> str:
    moment = datetime.fromtimestamp(created, UTC).strftime("%y%m%d-%H%M%S")
    return f"{moment}-{''.join(secrets.choice(_LETTERS) for _ in range(3))}"
