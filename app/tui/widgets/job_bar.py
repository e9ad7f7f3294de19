"""What a screen's own job is doing, on two lines. The widget watches; what an end means, the screen decides."""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass

from textual import work
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from app.cli.output import human_bytes, human_seconds
from app.tui.job_rows import JobRow, newest_under_way, read_row
from app.tui.markdown import harmless
from app.tui.styles import MUTED
from localllm.jobs.job import Job
from localllm.jobs.store import JobStore
from localllm.sanitize import one_line

_LOOK_SECONDS = 0.25
_CELLS = 30


class JobBar(Static):
    """Follows one job at a time: the one that it is told of, else the newest of its kinds that runs.

    Args:
        jobs: Where they are.
        kinds: Those that belong to the screen.
        clock: Seconds since the epoch.
    """

    @dataclass
    class Ended(Message):
        """The job that was followed has ended, well or not."""

        row: JobRow

    def __init__(self, jobs: JobStore, kinds: Collection[str], clock: Callable[[], float] = time.time) -> None:
        super().__init__(markup=False)
        self._jobs = jobs
        self._kinds = frozenset(kinds)
        self._clock = clock
        self._job: Job | None = None

    @property
    def job(self) -> Job | None:
        """The one that is followed."""
        return self._job

    def on_mount(self) -> None:
        """Look now, and again and again."""
        self.display = False
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)

    def follow(self, job: Job) -> None:
        """Follow this one from now on."""
        self._job = job
        self._look()

    @work(thread=True, exclusive=True, group="job-bar")
    def _look(self) -> None:
        job = self._job or newest_under_way(self._jobs, self._kinds)
        self.app.call_from_thread(self._show, read_row(job, self._clock) if job is not None else None)

    def _show(self, row: JobRow | None) -> None:
        if not self.is_attached:
            return
        if self._job is not None and (row is None or row.job.id != self._job.id):
            return  # it was looked for before the job that is followed now
        if row is None or row.status.has_ended:
            self.display = False
            if row is not None and self._job is not None:
                self._job = None
                self.post_message(self.Ended(row))
            return
        self._job = row.job
        self.display = True
        self.update(_describe(row))


def _describe(row: JobRow) -> Content:
    spec, share, progress = row.job.spec, row.latest.share, row.latest.progress
    filled = int(_CELLS * (share or 0))
    facts = [f"{share:4.0%}" if share is not None else f"{row.status.state} {one_line(row.status.detail, 40)}".rstrip()]
    if progress is not None:
        facts.append(f"{one_line(progress.stage, 16)} {one_line(progress.item, 24)}".rstrip())
        if progress.unit == "B":
            facts.append(human_bytes(int(progress.done)))
    if row.seconds is not None:
        facts.append(human_seconds(row.seconds))
    return Content.assemble(
        ("▸ ", "$accent"),
        harmless(f"{one_line(spec.kind, 9)} {one_line(spec.title, 60)}\n"),
        ("█" * filled, "$accent"),
        ("░" * (_CELLS - filled), MUTED),
        (harmless("  " + " · ".join(facts)), MUTED),
    )
