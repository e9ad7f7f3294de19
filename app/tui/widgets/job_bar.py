"""What a screen's own job is doing, on two lines. The widget watches; what an end means, the screen decides."""

import time
from collections.abc import Callable, Collection, Sequence
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
    """Follows the jobs that it is told of, else the newest of its kinds that runs; shows one, tells of every end.

    Args:
        jobs: Where they are.
        kinds: Those that belong to the screen.
        clock: Seconds since the epoch.
    """

    @dataclass
    class Ended(Message):
        """A job that was followed has ended, well or not."""

        row: JobRow

    def __init__(self, jobs: JobStore, kinds: Collection[str], clock: Callable[[], float] = time.time) -> None:
        super().__init__(markup=False)
        self._jobs = jobs
        self._kinds = frozenset(kinds)
        self._clock = clock
        self._followed: dict[str, Job] = {}  # by their ids, the newest last

    def on_mount(self) -> None:
        """Look now, and again and again."""
        self.display = False
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)

    def follow(self, job: Job) -> None:
        """Follow this one from now on, beside those that have not ended."""
        self._followed.pop(job.id, None)
        self._followed[job.id] = job
        self._look()

    @work(thread=True, exclusive=True, group="job-bar")
    def _look(self) -> None:
        jobs = list(self._followed.values())
        if not jobs and (newest := newest_under_way(self._jobs, self._kinds)) is not None:
            jobs = [newest]
        self.app.call_from_thread(self._show, [read_row(job, self._clock) for job in jobs])

    def _show(self, rows: Sequence[JobRow]) -> None:
        if not self.is_attached:
            return
        if self._followed and list(self._followed) != [row.job.id for row in rows]:
            return  # they were looked for before the last one was followed
        going_on = [row for row in rows if not row.status.has_ended]
        ended = [row for row in rows if row.status.has_ended and row.job.id in self._followed]
        self._followed = {row.job.id: row.job for row in going_on}
        self.display = bool(going_on)
        if going_on:  # one that waits says less than the one that it waits for
            self.update(_describe(max(reversed(going_on), key=lambda row: row.status.state == "running")))
        for row in ended:
            self.post_message(self.Ended(row))


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
