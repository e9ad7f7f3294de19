"""Long work: what runs, what ended and how. The screen only watches; quitting the app ends no job."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option

from app.cli.job_bars import describe_metrics
from app.cli.output import human_bytes, human_seconds
from app.tui.job_rows import TRAINING, JobDetail, JobRow, read_detail, read_rows
from app.tui.markdown import harmless
from app.tui.screens.help import HelpScreen
from app.tui.styles import MUTED, SIGNS
from app.tui.widgets.key_bar import KeyBar
from localllm.errors import LocalLLMError
from localllm.jobs.job import Job
from localllm.jobs.store import JobStore
from localllm.sanitize import one_line

_LOOK_SECONDS = 0.5
_BAR_CELLS = 40
_NONE = "No job has run yet. Fetching a model is one, as long work is."


class JobsScreen(Screen[Job | None]):
    """Lists jobs, shows the highlighted one; cancels, resumes, removes. Answers with a training to watch, or None.

    Args:
        jobs: Where they are.
        clock: Seconds since the epoch.
    """

    AUTO_FOCUS = "#jobs"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("c", "cancel", "Cancel", id="jobs.cancel", tooltip="Let it save and end; a second time kills it"),
        Binding("r", "resume", "Resume", id="jobs.resume", tooltip="Go on with a job that did not end well"),
        Binding("d,delete", "remove", "Remove", id="jobs.remove", tooltip="Delete an ended job and its log"),
        Binding("t", "training", "Training", id="jobs.training", tooltip="Watch the training; Enter does it too"),
        Binding("escape,f5", "leave", "Back", id="jobs.back", tooltip="Back; every job goes on"),
        Binding("j", "move(1)", show=False, id="jobs.down"),
        Binding("k", "move(-1)", show=False, id="jobs.up"),
    ]

    def __init__(self, jobs: JobStore, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._jobs = jobs
        self._clock = clock
        self._rows: dict[str, JobRow] = {}
        self._shown: str | None = None  # the id of the highlighted job

    def compose(self) -> ComposeResult:
        """The list, and below it the job that is highlighted."""
        with Vertical(id="jobs-main"):
            yield Label("Jobs", id="jobs-title", markup=False)
            yield OptionList(id="jobs", markup=False)
            yield Static(id="job-head", markup=False)
            yield Static(id="job-lines", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        """Look now, and again and again."""
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)

    def say(self, text: str) -> None:
        """Show an error."""
        self.notify(harmless(text), severity="error", markup=False)

    # ── reading, in threads ──

    @work(thread=True, exclusive=True, group="jobs")
    def _look(self) -> None:
        rows = read_rows(self._jobs, self._clock)
        chosen = next((row for row in rows if row.job.id == self._shown), rows[0] if rows else None)
        detail = read_detail(chosen) if chosen is not None else None
        self.app.call_from_thread(self._show, rows, detail)

    def _show(self, rows: Sequence[JobRow], detail: JobDetail | None) -> None:
        if not self.is_attached:
            return
        self._rows = {row.job.id: row for row in rows}
        options = self.query_one("#jobs", OptionList)
        ids = [option.id for option in options.options]
        if ids == list(self._rows):
            for row in rows:
                options.replace_option_prompt(row.job.id, self._describe(row))
        else:
            with self.prevent(OptionList.OptionHighlighted):
                options.clear_options()
                options.add_options([Option(self._describe(row), id=row.job.id) for row in rows])
                names = list(self._rows)
                options.highlighted = names.index(self._shown) if self._shown in names else 0 if names else None
        if detail is not None and (self._shown is None or self._shown not in self._rows):
            self._shown = detail.row.job.id
        if detail is None or detail.row.job.id == self._shown:
            self._show_detail(detail)
        self.refresh_bindings()

    def _show_detail(self, detail: JobDetail | None) -> None:
        self.query_one("#job-head", Static).update(_NONE if detail is None else _head(detail, self._room))
        lines = detail.lines if detail is not None else ()
        self.query_one("#job-lines", Static).update(Content("\n".join(lines)))

    @property
    def _room(self) -> int:
        """Cells of a title in the list."""
        return max(16, self.size.width - 46)

    def _describe(self, row: JobRow) -> Content:
        sign, style = SIGNS[row.status.state]
        done = _share(row)
        share = f"{done:4.0%}" if done is not None else "    "
        took = human_seconds(row.seconds) if row.seconds is not None else ""
        title = Content(one_line(row.job.spec.title)).truncate(self._room, ellipsis=True, pad=True)
        return Content.assemble(
            (sign, style),
            f" {one_line(row.job.spec.kind, 9):<9} ",
            title,
            " ",
            (f"{row.status.state:<9} {share} {took:>8}", MUTED),
        )

    @on(OptionList.OptionHighlighted, "#jobs")
    def _highlighted(self, event: OptionList.OptionHighlighted) -> None:
        if event.option.id != self._shown:
            self._shown = event.option.id
            self._look()

    # ── keys ──

    def action_move(self, step: int) -> None:
        """Move through the list."""
        options = self.query_one("#jobs", OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def action_help(self) -> None:
        """Show all keys."""
        self.app.push_screen(HelpScreen((("Everywhere", self.app.BINDINGS), ("On a job", self.BINDINGS))))

    def action_leave(self) -> None:
        """Back to where the person came from."""
        self.dismiss(None)

    @on(OptionList.OptionSelected, "#jobs")
    def action_training(self) -> None:
        """Watch the training on its own screen."""
        row = self._rows.get(self._shown or "")
        if row is not None and row.job.spec.kind == TRAINING:
            self.dismiss(row.job)

    def action_cancel(self) -> None:
        """Let the job save and end."""
        self._act(self._jobs.cancel)

    def action_resume(self) -> None:
        """Go on with it."""
        self._act(self._jobs.resume)

    def action_remove(self) -> None:
        """Delete it."""
        self._act(self._jobs.remove)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  Textual's shape
        """Offer only what can be done with the highlighted job."""
        row = self._rows.get(self._shown or "")
        match action:
            case "training":
                return row is not None and row.job.spec.kind == TRAINING
            case "cancel":
                return row is not None and not row.status.has_ended
            case "resume":
                ended_badly = row is not None and row.status.state in ("failed", "cancelled", "dead")
                return row is not None and ended_badly and row.job.spec.resumable
            case "remove":
                return row is not None and (row.status.has_ended or row.status.state == "new")
        return True

    def _act(self, deed: Callable[..., None]) -> None:
        row = self._rows.get(self._shown or "")
        if row is not None:
            self.run_worker(partial(self._do, partial(deed, row.job)), thread=True, group="job-deeds")

    def _do(self, deed: Callable[[], None]) -> None:
        try:
            deed()
        except LocalLLMError as error:
            self.app.call_from_thread(self.say, str(error))
        self.app.call_from_thread(self._look)


def _share(row: JobRow) -> float | None:
    """How much of a running job is done; None while unknown, as after a stage that has ended."""
    share = row.latest.share
    return share if row.status.state == "running" and share is not None and share < 1 else None


def _head(detail: JobDetail, room: int) -> Content:
    row = detail.row
    facts = [f"{row.job.id} · {row.status.state} {one_line(row.status.detail, 60)}".rstrip()]
    title = one_line(row.job.spec.title)
    if Content(title).cell_length > room:  # the list cuts it
        facts.append(one_line(title, 200))
    share, step, progress = _share(row), row.latest.step, row.latest.progress
    if share is not None:
        filled = int(_BAR_CELLS * share)
        left = f"  {human_seconds(detail.seconds_left)} left" if detail.seconds_left is not None else ""
        facts.append(f"{'█' * filled}{'░' * (_BAR_CELLS - filled)} {share:4.0%}{left}")
    if step is not None:
        facts.append(f"step {step.step} of {step.total}  {describe_metrics(step.metrics)}")
    elif progress is not None and row.status.state == "running":
        done = human_bytes(int(progress.done)) if progress.unit == "B" else f"{progress.done:g}"
        facts.append(f"{one_line(progress.stage, 20)} {one_line(progress.item, 40)}  {done}")
    if row.status.state == "done" and isinstance(row.status.result.get("summary"), str):
        facts.append(row.status.result["summary"])
    return Content(harmless("\n".join(facts)))
