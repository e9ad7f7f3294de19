"""What is in the rows, and what training on them takes: followed while jobs find it out."""

import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from textual import work
from textual.app import ComposeResult
from textual.containers import VerticalScroll
from textual.content import Content
from textual.message import Message
from textual.widgets import Static

from app.cli.output import human_seconds
from app.tui.job_rows import JobRow, read_row
from app.tui.markdown import harmless
from app.tui.styles import MUTED
from finetune.check_job import Findings, read_findings
from localllm.errors import JobError
from localllm.jobs.job import Job
from localllm.jobs.store import JobStore
from localllm.memory import gigabytes
from localllm.sanitize import one_line

_LOOK_SECONDS = 0.25
_BAR_CELLS = 30
_BAD_SHOWN = 3
_WAITS = "Choose a model and data; what is in the rows is shown here."
_MEASURE = "m measures memory and time."
_BAD_FIRST = "Memory and time are measured once the bad rows are left out."
_UNPACK = "The model is a GGUF file: training unpacks it first, once. m does that now, and measures memory and time."


class CheckView(VerticalScroll):
    """Follows a job that reads rows, then one that measures; shows what they found.

    Args:
        jobs: Where they are.
        clock: Seconds since the epoch.
    """

    @dataclass
    class RowsRead(Message):
        """The rows were read."""

        findings: Findings

    @dataclass
    class Measured(Message):
        """Memory and time are known."""

        needs: dict[str, Any]

    def __init__(self, jobs: JobStore, clock: Callable[[], float], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self._jobs = jobs
        self._clock = clock
        self._rows: Job | None = None
        self._plan: Job | None = None
        self._doing = _WAITS
        self._plan_says = ""
        self._plan_is_bad = False
        self._looking = threading.Lock()
        self._skip_bad = False
        self.findings: Findings | None = None
        self.needs: dict[str, Any] = {}

    @property
    def is_measured(self) -> bool:
        """Memory and time are known, or being found out."""
        return bool(self.needs) or self._plan is not None

    def compose(self) -> ComposeResult:
        """One text that scrolls."""
        yield Static(id="check-text", markup=False)

    def on_mount(self) -> None:
        """Look again and again, as long as there is a job."""
        self._draw()
        self.set_interval(_LOOK_SECONDS, self._look_if_needed)

    def clear(self, doing: str = _WAITS) -> list[Job]:
        """Forget everything; the jobs that were followed are nobody's any more."""
        left, self._rows = [job for job in (self._rows, *self.drop_plan()) if job is not None], None
        self.findings, self._doing = None, doing
        self._draw()
        return left

    def drop_plan(self, says: str = "") -> list[Job]:
        """Forget what was measured; the job that measures is nobody's any more."""
        left, self._plan = [job for job in (self._plan,) if job is not None], None
        self.needs, self._plan_says, self._plan_is_bad = {}, says, False
        self._draw()
        return left

    def leave_out(self, *, skip_bad: bool) -> None:
        """Take note of whether bad rows are left out, or stop the training."""
        if skip_bad != self._skip_bad:
            self._skip_bad = skip_bad
            self._draw()

    def follow_rows(self, job: Job) -> None:
        """Follow a job of :func:`finetune.check_job.check_spec`."""
        self._rows, self._doing = job, "Reading the rows…"
        self._draw()

    def follow_plan(self, job: Job) -> None:
        """Follow a job of :func:`finetune.plan_job.plan_spec`."""
        self._plan, self._plan_says = job, "Measuring memory and time…"
        self._draw()

    # ── reading, in a thread ──

    def _look_if_needed(self) -> None:
        if self._rows is not None or self._plan is not None:
            self._look()

    @work(thread=True, group="check")
    def _look(self) -> None:
        if not self._looking.acquire(blocking=False):
            return  # a slow disk: the look before is not over
        try:
            job = self._rows or self._plan
            if job is None:
                return
            if not job.directory.is_dir():
                self.app.call_from_thread(self._fail, job, "The check was cancelled.")
                return
            row = read_row(job, self._clock)
            findings = None
            if row.status.state == "done" and job is self._rows:
                try:
                    findings = read_findings(job)
                except JobError as error:
                    self.app.call_from_thread(self._fail, job, str(error))
                    return
            if row.status.state == "done":
                self._jobs.remove(job)  # nobody wants to read of it among the jobs
            self.app.call_from_thread(self._take, row, findings)
        except JobError:
            return  # it ends just now: at the next look it has
        finally:
            self._looking.release()

    def _take(self, row: JobRow, findings: Findings | None) -> None:
        status, job = row.status, row.job
        if not self.is_attached:
            return
        if job is self._rows:
            if findings is not None:
                self._rows, self.findings = None, findings
                self.post_message(self.RowsRead(findings))
            elif status.has_ended:
                self._fail(job, f"{status.message} {status.hint}".strip() or "The check was cancelled.")
            else:
                self._doing = _progress(row)
        elif job is self._plan:
            self._take_plan(row)
        self._draw()

    def _take_plan(self, row: JobRow) -> None:
        status = row.status
        if status.state == "done":
            self._plan, self.needs = None, status.result
            self._plan_says = _needs(status.result)
            self.post_message(self.Measured(status.result))
        elif status.has_ended:
            self._fail(row.job, f"{status.message} {status.hint}".strip() or "The check was cancelled.")
        elif status.state == "waiting":
            self._plan_says = f"Memory and time are measured when it is done: waiting {one_line(status.detail, 80)}."
        elif row.latest.progress is not None:
            self._plan_says = _progress(row)

    def _fail(self, job: Job, text: str) -> None:
        if job is self._rows:
            self._rows, self._doing = None, text
        elif job is self._plan:
            self._plan, self._plan_says, self._plan_is_bad = None, text, True
        self._draw()

    # ── drawing ──

    def _draw(self) -> None:
        if not self.is_attached:
            return
        found = self.findings
        if found is None:
            lines = [Content.styled(harmless(self._doing), MUTED)]
        else:
            stops = bool(found.n_bad) and not self._skip_bad
            offered = _UNPACK if not found.is_unpacked else _BAD_FIRST if stops else _MEASURE
            plan = self._plan_says or offered
            lines = [
                *_in_words(found, skip_bad=self._skip_bad),
                Content.styled(harmless(plan), "$error" if self._plan_is_bad else ""),
            ]
            lines += [Content(""), *_histogram(found), *_previews(found, marked=self.app.no_color)]
        self.query_one("#check-text", Static).update(Content("\n").join(lines))


def _progress(row: JobRow) -> str:
    progress = row.latest.progress
    if progress is None:
        return "Reading the rows…"
    came = f"{progress.done / progress.total:.0%}" if progress.total else f"{progress.done:,.0f}"
    return f"{one_line(progress.item or progress.stage, 40)}: {came}"


def _needs(needs: dict[str, Any]) -> str:
    try:
        text = (
            f"Training needs about {gigabytes(needs['peak'])} of the {gigabytes(needs['budget'])} that may be used, "
            f"and about {human_seconds(needs['seconds'])} for {needs['updates']} updates."
        )
    except (KeyError, TypeError):
        return "What was measured cannot be read."
    return f"{text} {one_line(str(needs.get('note', '')), 200)}".rstrip()


def _in_words(found: Findings, *, skip_bad: bool) -> list[Content]:
    share = f" ({found.n_learnt / found.n_tokens:.0%})" if found.n_tokens else ""
    lines = [
        *(Content(harmless(one_line(line, 300))) for line in found.lines if not line.startswith("Bad rows")),
        Content(f"{found.n_train:,} examples to learn from, {found.n_valid:,} held out."),
        Content(f"{found.n_tokens:,} tokens, {found.n_learnt:,} of them learnt{share}."),
    ]
    style = MUTED if skip_bad else "$error"
    for source, reason in found.bad[:_BAD_SHOWN]:
        lines.append(Content.styled(harmless(f"✗ {one_line(source, 60)}: {one_line(reason, 160)}"), style))
    if found.n_bad:
        rows = "1 bad row" if found.n_bad == 1 else f"{found.n_bad:,} bad rows"
        what = ", left out: b shows them." if skip_bad else ": b shows them, and can leave them out."
        lines.append(Content.styled(f"{rows}{what}", style))
    return lines


def _histogram(found: Findings) -> list[Content]:
    if not found.histogram:
        return []
    most = max(count for _, _, count in found.histogram)
    labels = [f"{low}-{high}" for low, high, _ in found.histogram]
    width = max(map(len, labels))
    lines = [Content.styled("Tokens of an example", MUTED)]
    for label, (_, _, count) in zip(labels, found.histogram, strict=True):
        bar = "█" * max(round(_BAR_CELLS * count / most), bool(count))
        lines.append(Content.assemble((f"{label:>{width}} ", MUTED), (bar, "$accent"), (f" {count:,}", MUTED)))
    return [*lines, Content("")]


def _previews(found: Findings, *, marked: bool) -> list[Content]:
    how = "between « and »" if marked else "in green"
    lines: list[Content] = []
    for source, pieces in found.previews:
        lines.append(Content.styled(harmless(f"{one_line(source, 60)}, what is learnt {how}:"), MUTED))
        before, after = ("«", "»") if marked else ("", "")
        texts = [
            (f"{before}{harmless(text)}{after}" if learnt else harmless(text), "bold $success" if learnt else MUTED)
            for text, learnt in pieces
        ]
        lines += [Content.assemble(*texts), Content("")]
    return lines
