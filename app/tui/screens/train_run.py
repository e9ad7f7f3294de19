"""Watch a training: its curves, how fast it is, what it takes, what the model says; cancel it, go on with it, chat."""

import threading
import time
from collections.abc import Callable
from functools import partial
from typing import ClassVar

from textual import work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.widgets import Label, Static

from app.tui.markdown import harmless
from app.tui.run_lines import head_lines, said_lines
from app.tui.screens.deeds import DeedsScreen
from app.tui.screens.dialogs import ConfirmDialog
from app.tui.screens.help import HelpScreen
from app.tui.screens.train_dialogs import TrainingsDialog
from app.tui.session import Session
from app.tui.train_setup import chat_name, recipe_of
from app.tui.trainings import Run, RunReader, read_trainings, training_name
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.loss_plot import LossPlot
from localllm.jobs.job import Job
from localllm.sanitize import one_line

_LOOK_SECONDS = 0.5
_RESUMABLE = ("failed", "cancelled", "dead")


class TrainRunScreen(DeedsScreen):
    """Shows one training at a time; answers with what to chat with, or None. Leaving it ends nothing.

    Args:
        session: What the app holds.
        job: The training.
        clock: Seconds since the epoch.
    """

    AUTO_FOCUS = "#run-said"
    VERTICAL_BREAKPOINTS = [(0, "-low"), (32, "-high")]  # noqa: RUF012  Textual declares it as no ClassVar
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("g,enter", "chat", "Chat", id="run.chat", tooltip="Chat with what was trained"),
        Binding("c", "cancel", "Cancel", id="run.cancel", tooltip="Let it save and end; a second time kills it"),
        Binding("r", "resume", "Resume", id="run.resume", tooltip="Go on from what was saved last"),
        Binding("t", "trainings", "Trainings", id="run.list", tooltip="Show another training, running or ended"),
        Binding("l", "log", "Log", id="run.log", tooltip="The loss on a logarithmic axis, or a linear one"),
        Binding("escape", "leave", "Back", id="run.back", tooltip="Back; the training goes on"),
        Binding("j", "scroll(1)", show=False, id="run.down"),
        Binding("k", "scroll(-1)", show=False, id="run.up"),
    ]

    def __init__(self, session: Session, job: Job, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._session = session
        self._clock = clock
        self._reader = RunReader(job, clock)
        self._run: Run | None = None
        self._reading = threading.Lock()

    def compose(self) -> ComposeResult:
        """What it is, how it stands, its curves, and what it tells."""
        with Vertical(id="run-main"):
            yield Label(id="run-title", markup=False)
            yield Static(id="run-head", markup=False)
            yield LossPlot(id="run-plot")
            with VerticalScroll(id="run-said"):
                yield Static(id="run-text", markup=False)
        yield KeyBar()

    def on_mount(self) -> None:
        """Look now, and again and again."""
        self._title()
        self._look()
        self.set_interval(_LOOK_SECONDS, self._look)

    def on_resize(self) -> None:
        """Lines are as long as there is room for."""
        self._draw()

    # ── reading, in a thread ──

    @work(thread=True, group="run")
    def _look(self) -> None:
        if not self._reading.acquire(blocking=False):
            return  # the look before is not over: a long history, or a slow disk
        try:
            reader = self._reader
            self.app.call_from_thread(self._show, reader, reader.read())
        finally:
            self._reading.release()

    def _show(self, reader: RunReader, run: Run) -> None:
        if not self.is_attached or reader is not self._reader:
            return
        before, self._run = self._run, run
        self._draw()
        if before is None or before.row.status.state != run.row.status.state:
            self.refresh_bindings()

    def _draw(self) -> None:
        run = self._run
        if run is None or not self.is_mounted:
            return
        self.query_one(LossPlot).show(run.train, run.held_out, run.step.total if run.step is not None else 0)
        width = max(20, self.size.width - 6)
        _update(self.query_one("#run-head", Static), Content("\n").join(head_lines(run, width)))
        _update(self.query_one("#run-text", Static), Content("\n").join(said_lines(run)))

    def _title(self) -> None:
        name = one_line(training_name(self._reader.job), 70)
        self.query_one("#run-title", Label).update(Content(harmless(f"Train {name}")))

    def show_training(self, job: Job) -> None:
        """Show another training."""
        self._reader, self._run = RunReader(job, self._clock), None
        self.query_one(LossPlot).show((), (), 0)
        self._title()
        self._look()
        self.refresh_bindings()

    # ── keys ──

    def action_help(self) -> None:
        """Show all keys."""
        self.app.push_screen(HelpScreen((("Everywhere", self.app.BINDINGS), ("On a training", self.BINDINGS))))

    def action_leave(self) -> None:
        """Back to where the person came from."""
        self.dismiss(None)

    def action_scroll(self, lines: int) -> None:
        """Scroll what it tells."""
        self.query_one("#run-said", VerticalScroll).scroll_relative(y=lines, animate=False)

    def action_log(self) -> None:
        """Change the axis of the loss."""
        self.query_one(LossPlot).toggle_log()

    def action_cancel(self) -> None:
        """Let it save and end; ask before it is killed."""
        job = self._reader.job
        if job.cancel_path.exists():
            lines = ["What it did since it saved last is lost; r goes on from there."]
            self.app.push_screen(ConfirmDialog("It still saves. Kill it?", lines, "kills it"), partial(self._kill, job))
        else:
            self.say("It saves what it has, and ends.")
            self.in_thread(partial(self._session.jobs.cancel, job))

    def _kill(self, job: Job, yes: bool | None) -> None:
        if yes:
            self.in_thread(partial(self._session.jobs.cancel, job, now=True))

    def action_resume(self) -> None:
        """Go on with it."""
        self.in_thread(partial(self._session.jobs.resume, self._reader.job))

    def action_trainings(self) -> None:
        """Let the person pick another one."""
        self.in_thread(self._offer_trainings)

    def action_chat(self) -> None:
        """Chat with what came of it."""
        self.in_thread(partial(self._chat, self._reader.job))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  Textual's shape
        """Offer only what can be done."""
        status = self._run.row.status if self._run is not None and not self._run.is_gone else None
        match action:
            case "cancel":
                return status is not None and not status.has_ended
            case "resume":
                return status is not None and status.state in _RESUMABLE and self._reader.job.spec.resumable
            case "chat":
                return status is not None and status.state == "done"
        return True

    # ── deeds, in threads ──

    def _offer_trainings(self) -> None:
        rows = read_trainings(self._session.jobs, self._clock)
        self.app.call_from_thread(self.ask, TrainingsDialog(rows), self._take_training)

    def _take_training(self, job: Job | None) -> None:
        if job is not None:
            self.show_training(job)

    def _chat(self, job: Job) -> None:
        name = str(job.status().result.get("name", ""))
        model = str(recipe_of(job).get("model", ""))
        self.app.call_from_thread(self.answer, chat_name(self._session.store, name, model))


def _update(widget: Static, content: Content) -> None:
    """Draw, where there is something new: what does not change does not flicker."""
    if widget.content != content:
        widget.update(content)
