"""Set a training up: model, data and settings; what is in the rows, what it will take; start it."""

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar

from textual import on
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.widgets import Label, Static

from app.tui.job_rows import TRAINING, newest_under_way, start_or_join
from app.tui.screens.help import HelpScreen
from app.tui.screens.train_choices import ChoicesScreen
from app.tui.screens.train_dialogs import BadRowsDialog, TrainingsDialog
from app.tui.screens.train_run import TrainRunScreen
from app.tui.session import Session
from app.tui.train_setup import Setup, discard, settled
from app.tui.trainings import read_trainings
from app.tui.widgets.check_view import CheckView
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.setup_form import SetupForm
from finetune.check_job import Findings, check_spec
from finetune.plan_job import plan_spec
from localllm.errors import LocalLLMError
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec


class TrainScreen(ChoicesScreen):
    """Sets a training up and starts it; answers with what to chat with, or None.

    Args:
        session: What the app holds.
        clock: Seconds since the epoch.
    """

    AUTO_FOCUS = "#setup"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "start", "Start", id="train.start", tooltip="Start the training, as a job"),
        Binding("b", "bad_rows", "Bad rows", id="train.bad", tooltip="Show the bad rows; leave them out"),
        Binding("m", "measure", "Measure", id="train.measure", tooltip="Unpack the GGUF model now, and measure"),
        Binding("t", "trainings", "Trainings", id="train.list", tooltip="Show a training, running or ended"),
        Binding("w", "write", "Recipe", id="train.write", tooltip="Write what is set into a recipe"),
        Binding("c", "check", "Check", id="train.check", tooltip="Read the rows again"),
        Binding("escape", "leave", "Back", id="train.back", tooltip="Back; what was started goes on"),
        Binding(
            "tab", "app.focus_next", "Findings", id="train.next", show=False, tooltip="To the findings, which scroll"
        ),
        Binding("j", "move(1)", show=False, id="train.down"),
        Binding("k", "move(-1)", show=False, id="train.up"),
    ]

    def __init__(self, session: Session, clock: Callable[[], float] = time.time) -> None:
        super().__init__(session)
        self._clock = clock

    def compose(self) -> ComposeResult:
        """The choices, what is wrong with them, and what was found in the data."""
        with Vertical(id="train-main"):
            yield Label("Train", id="train-title", markup=False)
            yield SetupForm(id="setup")
            yield Static(id="train-problem", markup=False)
            yield CheckView(self.session.jobs, self._clock, id="check")
        yield KeyBar()

    @property
    def _check(self) -> CheckView:
        return self.query_one(CheckView)

    def choose(self, setup: Setup) -> None:
        """Go on with other choices; what was found out stays where they do not matter for it."""
        before = self.setup
        super().choose(setup)
        self._check.leave_out(skip_bad=setup.skip_bad)
        if not setup.same_rows(before):
            self.known = replace(self.known, updates="", epochs="")
            self._read_rows()
        elif not setup.same_plan(before):
            self._measure_if_possible()
        self.fill()

    # ── what is in the rows, and what it takes ──

    def _read_rows(self) -> None:
        self._discard(self._check.clear())
        if self.setup.is_complete:
            self._check.clear("Reading the rows…")
            self.in_thread(partial(self._begin_reading, self.setup))

    def _begin_reading(self, setup: Setup) -> None:
        self._begin(setup, check_spec(setup.recipe()), self._follow_rows, self._check.clear)

    def _begin(
        self,
        setup: Setup,
        spec: JobSpec,
        follow: Callable[[Setup, Job], None],
        fail: Callable[[str], object],
    ) -> None:
        try:
            job = self.session.jobs.create(spec)
            self.session.jobs.start(job)
        except LocalLLMError as error:  # the disk is full
            self.app.call_from_thread(fail, str(error))
            raise
        self.app.call_from_thread(follow, setup, job)

    def _follow_rows(self, setup: Setup, job: Job) -> None:
        if self.setup.same_rows(setup):
            self._discard(self._check.clear())
            self._check.follow_rows(job)
        else:
            self._discard([job])

    def _follow_plan(self, setup: Setup, job: Job) -> None:
        if self.setup.same_plan(setup) and self._check.findings is not None:
            self._discard(self._check.drop_plan())
            self._check.follow_plan(job)
            self.refresh_bindings()
        else:
            self._discard([job])

    @on(CheckView.RowsRead)
    def _rows_read(self, event: CheckView.RowsRead) -> None:
        found = event.findings
        if found.updates:
            about = f"about {found.epochs:.1f} passes"
            self.known = replace(self.known, updates=f"about {found.updates:,}", epochs=about)
        self._measure_if_possible()
        self.fill()

    @on(CheckView.Measured)
    def _measured(self, event: CheckView.Measured) -> None:
        updates = event.needs.get("updates")
        self.known = replace(self.known, updates=f"{updates:,}" if isinstance(updates, int) else "")
        self.fill()

    def _measure_if_possible(self) -> None:
        """As soon as the rows are fine, where the model is in MLX's form already."""
        self._discard(self._check.drop_plan())
        found = self._check.findings
        # Over a training that was just started it would only wait for that.
        trains = any(isinstance(screen, TrainRunScreen) for screen in self.app.screen_stack)
        if self._can_measure and found is not None and found.is_unpacked and not trains:
            self.action_measure()

    @property
    def _can_measure(self) -> bool:
        found = self._check.findings
        return found is not None and bool(found.n_train) and (not found.n_bad or self.setup.skip_bad)

    def _discard(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            self.in_thread(partial(discard, self.session.jobs, job))

    # ── keys ──

    def action_move(self, step: int) -> None:
        """Move through the choices."""
        form = self.query_one(SetupForm)
        form.action_cursor_down() if step > 0 else form.action_cursor_up()

    def action_help(self) -> None:
        """Show all keys."""
        self.app.push_screen(HelpScreen((("Everywhere", self.app.BINDINGS), ("On a training", self.BINDINGS))))

    def action_leave(self) -> None:
        """Back to where the person came from."""
        self.dismiss(None)

    def action_check(self) -> None:
        """Read the rows again: a file may have changed."""
        self._read_rows()
        self.settle(self.setup)

    def action_measure(self) -> None:
        """Measure what training takes."""
        self.in_thread(partial(self._begin_measuring, self.setup, self._check.findings))

    def _begin_measuring(self, setup: Setup, found: Findings | None) -> None:
        recipe = setup.recipe()
        if found is not None and found.files:  # measuring fetches nothing
            recipe = recipe.model_copy(update={"data": found.files})
        self._begin(setup, plan_spec(recipe), self._follow_plan, self._check.drop_plan)

    def action_bad_rows(self) -> None:
        """Show the bad rows, and leave them out or not."""
        found = self._check.findings
        if found is not None and found.n_bad:
            dialog = BadRowsDialog(found.bad, found.n_bad, skip=self.setup.skip_bad)
            self.app.push_screen(dialog, self._take_skip_bad)

    def _take_skip_bad(self, skip: bool | None) -> None:
        if skip is not None:
            self.choose(self.setup.with_skip_bad(skip=skip))

    def action_start(self) -> None:
        """Start the training, unless a bad row would stop it."""
        found = self._check.findings
        if found is not None and found.n_bad and not self.setup.skip_bad:
            self.say("Bad rows stop the training: mend them, or leave them out.", "warning")
            self.action_bad_rows()
        else:
            self._discard(self._check.drop_plan())  # what measures would stand before it in the line
            self.in_thread(partial(self._start, self.setup))

    def action_trainings(self) -> None:
        """Let the person pick a training to look at."""
        self.in_thread(self._offer_trainings)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  Textual's shape
        """Offer only what can be done."""
        match action:
            case "start" | "write" | "check":
                return self.setup.is_complete
            case "bad_rows":
                return self.is_mounted and self._check.findings is not None and bool(self._check.findings.n_bad)
            case "measure":
                return self.is_mounted and self._can_measure and not self._check.is_measured
        return True

    # ── deeds, in threads ──

    def _start(self, setup: Setup) -> None:
        spec = settled(self.session.store, self.session.jobs, setup)
        self.app.call_from_thread(self.show_training, start_or_join(self.session.jobs, spec))

    def _offer_trainings(self) -> None:
        rows = read_trainings(self.session.jobs, self._clock)
        if rows:
            self.app.call_from_thread(self.ask, TrainingsDialog(rows), self._take_training)
        else:
            self.app.call_from_thread(self.say, "No training has run yet.")

    def _take_training(self, job: Job | None) -> None:
        if job is not None:
            self.show_training(job)

    def show_running(self) -> None:
        """Show the training that runs, if there is one."""
        self.in_thread(self._find_running)

    def _find_running(self) -> None:
        job = newest_under_way(self.session.jobs, (TRAINING,))
        if job is not None:
            self.app.call_from_thread(self.show_training, job)

    def show_training(self, job: Job) -> None:
        """Show a training, unless the person has left meanwhile."""
        if self.is_active:
            self.app.push_screen(TrainRunScreen(self.session, job, self._clock), self._watched)

    def _watched(self, name: str | None) -> None:
        if name is not None:
            self.dismiss(name)
