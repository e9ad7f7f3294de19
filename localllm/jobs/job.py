"""One job as anyone sees it: what its directory says, and whether its process is alive."""

from dataclasses import dataclass, replace
from pathlib import Path

from localllm.jobs.event_log import read_events, read_last_events
from localllm.jobs.events import Evaluation, Event, Message, Progress, Record, State, Step
from localllm.jobs.locks import is_held
from localllm.jobs.record import JobSpec, JobStatus, read_spec, read_status
from localllm.paths import Home

EVENTS, LOG, LOCK, CANCEL, OUT = "events.jsonl", "log.txt", "lock", "cancel", "out"


@dataclass(frozen=True)
class Latest:
    """The last that a job told of each kind, since it was started last."""

    progress: Progress | None = None
    step: Step | None = None
    evaluation: Evaluation | None = None
    message: Message | None = None

    @property
    def share(self) -> float | None:
        """How much is done, from 0 to 1; None while that is unknown."""
        if self.step is not None and self.step.total:
            return min(1.0, self.step.step / self.step.total)
        if self.progress is not None and self.progress.total:
            return min(1.0, self.progress.done / self.progress.total)
        return None


class Job:
    """A job of a home. It holds nothing open: every call looks at the disk.

    Attributes:
        id: Its name, as ``261123-191636-kqz``: the UTC time of its creation, and letters.
        directory: Holds ``spec.json``, ``status.json``, ``events.jsonl``, ``log.txt``, ``lock`` and ``out/``.
        spec: What is to be done.
        created: Seconds since the epoch.

    Raises:
        JobError: ``spec.json`` is missing or damaged.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.id = directory.name
        self.spec: JobSpec
        self.spec, self.created = read_spec(directory)

    @property
    def home(self) -> Home:
        """The home that it belongs to."""
        return Home(self.directory.parent.parent)

    @property
    def log_path(self) -> Path:
        """What its process wrote to standard output and error."""
        return self.directory / LOG

    @property
    def out(self) -> Path:
        """Where it puts what it makes."""
        return self.directory / OUT

    @property
    def lock_path(self) -> Path:
        """Held by its process as long as that lives."""
        return self.directory / LOCK

    @property
    def cancel_path(self) -> Path:
        """There as soon as somebody wants it to end."""
        return self.directory / CANCEL

    @property
    def alive(self) -> bool:
        """Whether its process lives."""
        return is_held(self.lock_path)

    def status(self) -> JobStatus:
        """How it stands.

        Raises:
            JobError: ``status.json`` is damaged.
        """
        alive = self.alive  # before the status is read: whoever lets go of the lock has written it
        status = read_status(self.directory)
        if alive or status.has_ended or status.state == "new":
            return status
        if self.cancel_path.exists():
            return replace(status, state="cancelled", detail="", exit_code=130)
        hint = f"`localllm jobs log {self.id}` shows its last words."
        if self.spec.resumable:
            hint += f" `localllm jobs resume {self.id}` goes on."
        message = f"The process of job {self.id} ended without a word (killed, crashed, or the machine restarted)."
        return replace(status, state="dead", detail="", message=message, hint=hint, exit_code=1)

    def records(self, offset: int = 0) -> tuple[list[Record], int]:
        """As :meth:`events`, with the times."""
        return read_events(self.directory / EVENTS, offset)

    def events(self, offset: int = 0) -> tuple[list[Event], int]:
        """What it told after ``offset`` bytes of its events, and the offset to go on from."""
        records, offset = self.records(offset)
        return [record.event for record in records], offset

    def events_end(self) -> int:
        """The offset behind what it has told so far."""
        path = self.directory / EVENTS
        return path.stat().st_size if path.exists() else 0

    def latest(self) -> Latest:
        """The last of each kind, read from the end of its events."""
        latest = Latest()
        for record in read_last_events(self.directory / EVENTS):
            match record.event:
                case State("queued"):
                    latest = Latest()
                case Progress():
                    latest = replace(latest, progress=record.event)
                case Step():
                    latest = replace(latest, step=record.event)
                case Evaluation():
                    latest = replace(latest, evaluation=record.event)
                case Message():
                    latest = replace(latest, message=record.event)
        return latest
