"""What the screens show of jobs. Everything here reads the disk: call it in a thread."""

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from app.tui.markdown import harmless
from localllm.errors import JobError
from localllm.jobs.events import Evaluation, Message, Progress, Record, Sample, State, Step
from localllm.jobs.job import Job, Latest
from localllm.jobs.record import JobSpec, JobStatus
from localllm.jobs.store import JobStore

TRAINING = "finetune"  # the kind of a job that trains
_LINES = 8
_LOG_BYTES = 16384


@dataclass(frozen=True)
class JobRow:
    """A job as the list shows it.

    Attributes:
        job: The job.
        status: How it stands.
        latest: The last that it told.
        seconds: How long it has run, or ran; None when that is not known.
    """

    job: Job
    status: JobStatus
    latest: Latest
    seconds: float | None


@dataclass(frozen=True)
class JobDetail:
    """What is shown of the one that is highlighted: its row, seconds left, and the last lines that it told."""

    row: JobRow
    seconds_left: float | None
    lines: tuple[str, ...]


def read_rows(jobs: JobStore, clock: Callable[[], float] = time.time) -> list[JobRow]:
    """Every job, those that run first, then the newest first."""
    rows = [read_row(job, clock) for job in jobs.list()]
    return sorted(rows, key=lambda row: (row.status.has_ended, -row.job.created))


def read_row(job: Job, clock: Callable[[], float] = time.time) -> JobRow:
    """How one job stands."""
    try:
        status = job.status()
    except JobError as error:
        status = JobStatus("dead", message=error.message, hint=error.hint)
    seconds = (status.ended or clock()) - status.started if status.started and status.state != "dead" else None
    return JobRow(job, status, job.latest(), seconds)


def newest_under_way(jobs: JobStore, kinds: Collection[str]) -> Job | None:
    """The job of these kinds that was begun last, of those that have not ended."""
    mine = [job for job in jobs.list() if job.spec.kind in kinds]
    return next((job for job in reversed(mine) if not _has_ended(job)), None)


def under_way(jobs: JobStore, spec: JobSpec) -> Job | None:
    """The same work, begun before: by this window, by another, or by an app that was left meanwhile."""
    return next((job for job in jobs.list() if job.spec == spec and not _has_ended(job)), None)


def start_or_join(jobs: JobStore, spec: JobSpec) -> Job:
    """The same work under way, or a new job, started.

    Raises:
        LocalLLMError: As :meth:`JobStore.create` and :meth:`JobStore.start` do.
    """
    job = under_way(jobs, spec)
    if job is None:
        job = jobs.create(spec)
        jobs.start(job)
    return job


def running_titles(jobs: JobStore) -> list[str]:
    """Titles of the jobs that run or wait."""
    return [f"{row.job.spec.kind} {row.job.spec.title}" for row in read_rows(jobs) if not row.status.has_ended]


def read_detail(row: JobRow) -> JobDetail:
    """More about one job."""
    records = row.job.records(max(0, row.job.events_end() - _LOG_BYTES))[0]
    lines: deque[str] = deque(maxlen=_LINES)
    for record in records:
        lines.extend(_line(record))
    if row.status.state in ("failed", "dead"):
        lines.extend(_log_tail(row.job))
        lines.extend(text for text in (row.status.message, row.status.hint) if text)
    return JobDetail(row, _seconds_left(row, records), tuple(harmless(line) for line in lines))


def _has_ended(job: Job) -> bool:
    try:
        status = job.status()
    except JobError:
        return True  # damaged: nothing will come of it
    return status.has_ended or status.state == "new"


def _line(record: Record) -> list[str]:
    match record.event:
        case Message(_, text):
            return [text]
        case Evaluation(step, metrics):
            return [f"step {step}: held out: " + "  ".join(f"{name} {value:.4g}" for name, value in metrics.items())]
        case Sample(step, _, text):
            return [f"step {step} says: {text}"]
    return []


def _log_tail(job: Job) -> list[str]:
    try:
        with job.log_path.open("rb") as handle:
            handle.seek(max(0, job.log_path.stat().st_size - _LOG_BYTES))
            return handle.read().decode("utf-8", "replace").splitlines()[-_LINES:]
    except FileNotFoundError:
        return []


def _seconds_left(row: JobRow, records: list[Record]) -> float | None:
    """By the speed of what it told lately, within the stage that it is in."""
    if row.status.state != "running":
        return None
    points: list[tuple[float, float, float]] = []
    key: tuple[str, str] | None = None
    for record in records:
        found = _point(record)
        if record.event == State("queued"):  # begun again: the pause before it says nothing of the speed
            key, points = None, []
        if found is not None:
            if found[0] != key:
                key, points = found[0], []
            points.append((record.time, found[1], found[2]))
    if len(points) < 2:
        return None
    (began, done, _), (now, so_far, total) = points[0], points[-1]
    return (total - so_far) * (now - began) / (so_far - done) if so_far > done and now > began else None


def _point(record: Record) -> tuple[tuple[str, str], float, float] | None:
    match record.event:
        case Step(step, total, _) if total:
            return ("", "step"), float(step), float(total)
        case Progress(stage, done, total, item, _) if total:
            return (stage, item), float(done), float(total)
    return None
