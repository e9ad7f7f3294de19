"""Make a smaller model: the types that it could have, what each takes and loses, whether it fits; start jobs."""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, ClassVar, TypeVar

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Label, OptionList, Static
from textual.widgets.option_list import Option
from textual.worker import Worker, get_current_worker

from app.cli.output import human_bytes
from app.tui.budget import making_spec, plan_lines, plan_spec
from app.tui.job_rows import JobRow, start_or_join
from app.tui.markdown import harmless
from app.tui.screens.deeds import DeedsScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog, LineDialog
from app.tui.screens.help import HelpScreen
from app.tui.session import Session
from app.tui.styles import MUTED
from app.tui.widgets.job_bar import JobBar
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.scatter import Scatter, Spot
from localllm.errors import JobCancelledError, LocalLLMError
from localllm.jobs.job import Job
from localllm.jobs.record import JobSpec
from localllm.sanitize import one_line

if TYPE_CHECKING:
    from app.tui.candidates import Candidate

Read = TypeVar("Read")

_KINDS = ("quantize", "report")
_WIDE = 120  # columns from which the list and the plot are side by side
_NONE = "No model is here yet. F6 leads to the models, and there p fetches one."


class CompressScreen(DeedsScreen):
    """Lists what a model could become, and makes the highlighted one.

    Args:
        session: What the app holds.
        model: The model's name in the store; empty for none.
        clock: Seconds since the epoch.
    """

    AUTO_FOCUS = "#candidates"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "start", "Start", id="compress.start", tooltip="Make it, as a job; Enter does it too"),
        Binding("p", "plot", "Plot", id="compress.plot", tooltip="What was measured as a plot, or the list again"),
        Binding("r", "report", "Measure", id="compress.report", tooltip="Measure what each type loses, as a job"),
        Binding("b", "budget", "Budget", id="compress.budget", tooltip="Plan the best mix of types for some memory"),
        Binding("m", "models", "Model", id="compress.models", tooltip="Pick another model"),
        Binding("escape", "leave", "Back", id="compress.back", tooltip="Back; what was started goes on"),
        Binding("j", "move(1)", show=False, id="compress.down"),
        Binding("k", "move(-1)", show=False, id="compress.up"),
    ]

    def __init__(self, session: Session, model: str, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self._session = session
        self._model = model
        self._clock = clock
        self._candidates: dict[str, Candidate] = {}
        self._spots: Sequence[Spot] = ()
        self._wants_plot = False  # where there is room for one of both

    def compose(self) -> ComposeResult:
        """The types and the plot, below them what is to know of the highlighted one, and what is being done."""
        with Vertical(id="compress-main"):
            yield Label(id="compress-title", markup=False)
            with Horizontal(id="compress-body"):
                yield OptionList(id="candidates", markup=False)
                yield Scatter(id="quality")
            yield Static(id="compress-notes", markup=False)
            yield JobBar(self._session.jobs, _KINDS, self._clock)
        yield KeyBar()

    def on_mount(self) -> None:
        """Look what the model could become."""
        self._read()

    def on_resize(self) -> None:
        """Side by side where there is room."""
        self._arrange()

    # ── reading, in a thread ──

    @work(thread=True, exclusive=True, group="candidates")
    def _read(self) -> None:
        # Deferred: the formats bring numpy (100 ms), which no other screen needs.
        from app.tui.candidates import Compression, spots_of

        worker, settings, model = get_current_worker(), self._session.settings, self._model
        show = partial(self.app.call_from_thread, self._if_wanted, worker)
        show(self._show, {})
        show(self._show_plot, ())
        if not model:
            return
        try:
            compression = Compression.of(self._session.store, model, settings.ctx, settings.memory_gb)
            if compression.report is not None:
                show(self._show_plot, spots_of(compression.report))
            found = {candidate.name: candidate for candidate in compression.estimates()}
            show(self._show, dict(found))
            for candidate in compression.plans(list(found.values()), partial(_check, worker)):
                found[candidate.name] = candidate
                show(self._show, dict(found))
        except JobCancelledError:
            return  # another model was picked, or the screen was left
        except LocalLLMError as error:
            show(self.failed, str(error))

    @staticmethod
    def _if_wanted(worker: Worker[None], deed: Callable[[Read], None], what: Read) -> None:
        """Show what a thread has read, unless another one reads by now: of another model, or after a job."""
        if not worker.is_cancelled:
            deed(what)

    @property
    def _stands(self) -> bool:
        """Whether all of it is there: a screen that is being left loses its widgets one after the other."""
        return self.is_attached and all(self.query(name) for name in ("#compress-title", "#candidates", "#quality"))

    def _show(self, candidates: "dict[str, Candidate]") -> None:
        if not self._stands:
            return
        options = self.query_one("#candidates", OptionList)
        same = list(candidates) == list(self._candidates)
        self._candidates = candidates
        if same:
            for candidate in candidates.values():
                options.replace_option_prompt(candidate.name, self._describe(candidate))
        else:
            options.clear_options()
            options.add_options([Option(self._describe(found), id=name) for name, found in candidates.items()])
            options.highlighted = next((i for i, name in enumerate(candidates) if name == "q4_k_m"), None)
        title = f"Compress {one_line(self._model, 60)}" if self._model else "Compress"
        self.query_one("#compress-title", Label).update(Content(harmless(title)))
        self._show_notes()
        self.refresh_bindings()

    def _show_plot(self, spots: Sequence[Spot]) -> None:
        if self._stands:
            self._spots = spots
            self.query_one("#quality", Scatter).show(spots)
            self._arrange()
            self.refresh_bindings()

    def _arrange(self) -> None:
        """List, plot, or both."""
        both = self.size.width >= _WIDE and bool(self._spots)
        plot = bool(self._spots) and (both or self._wants_plot)
        main, options = self.query_one("#compress-main"), self.query_one("#candidates", OptionList)
        main.set_class(both, "both")
        main.set_class(plot and not both, "plot")
        if (both or not plot) and self.focused is None:
            options.focus()
        for candidate in self._candidates.values():
            options.replace_option_prompt(candidate.name, self._describe(candidate))

    def _show_notes(self) -> None:
        candidate = self._highlighted
        lines: Sequence[str] = [] if self._model else [_NONE]
        if candidate is not None:
            verdict = "fits this machine" if candidate.fits else "too big for this machine"
            lines = [f"{candidate.name} {verdict}: {candidate.needs}.", *candidate.notes]
        self.query_one("#compress-notes", Static).update(Content(harmless("\n".join(lines))))

    @property
    def _highlighted(self) -> "Candidate | None":
        option = self.query_one("#candidates", OptionList).highlighted_option
        return self._candidates.get(option.id or "") if option is not None else None

    def _describe(self, candidate: "Candidate") -> Content:
        about = "" if candidate.exact else "~"
        sign = ("✓", "$success") if candidate.fits else ("✗", "$error")
        n_notes = len(candidate.notes)
        measured = "" if candidate.kl is None else f" KL {candidate.kl:.4f} ppl {candidate.perplexity:.2f}"
        # Beside the plot the list has five ninths of the screen, as the style sheet says.
        room = (
            (self.size.width - 9) * 5 // 9
            if self.query_one("#compress-main").has_class("both")
            else self.size.width - 8
        )
        return Content.assemble(
            f"{candidate.name:<10} {about:>2}{human_bytes(candidate.n_bytes):>9} ",
            (f"{about:>2}{candidate.bits:5.2f} bits  ", MUTED),
            sign,
            measured,
            (f"  {candidate.notes[-1] if n_notes else ''}", MUTED),
        ).truncate(max(20, room - 2), ellipsis=True)

    @on(OptionList.OptionHighlighted, "#candidates")
    def _moved(self) -> None:
        self._show_notes()

    @on(JobBar.Ended)
    def _job_ended(self, event: JobBar.Ended) -> None:
        status, title = event.row.status, one_line(event.row.job.spec.title, 60)
        if status.state == "cancelled":
            self.say(f"Cancelled: {title}", "warning")
        elif status.state != "done":
            self.say(f"{title}: {status.message} {status.hint}".rstrip(), "error")
        elif event.row.job.spec.kind == "report":
            self.say(f"Measured. {one_line(str(status.result.get('summary', '')), 200)}")
        elif "manifest" not in status.result and "plan" in status.result:
            self._offer_plan(event.row)
            return  # nothing has changed
        else:
            self.say(f"{status.result.get('name', title)} is here. F6 shows it.")
        self._read()

    def _offer_plan(self, row: JobRow) -> None:
        title = f"Make {one_line(str(row.job.spec.arguments.get('name', '')), 50)} by this plan?"
        if not self.is_active:
            self.say(f"The plan for {one_line(row.job.spec.title, 60)} is made: b shows it.")
            return

        def answered(yes: bool | None) -> None:
            if yes:
                self.in_thread(partial(self._run, making_spec(row.job.spec)))

        self.app.push_screen(ConfirmDialog(title, plan_lines(row.status.result["plan"]), "makes it"), answered)

    # ── keys ──

    def action_move(self, step: int) -> None:
        """Move through the list."""
        options = self.query_one("#candidates", OptionList)
        options.action_cursor_down() if step > 0 else options.action_cursor_up()

    def action_help(self) -> None:
        """Show all keys."""
        self.app.push_screen(HelpScreen((("Everywhere", self.app.BINDINGS), ("On a type", self.BINDINGS))))

    def action_leave(self) -> None:
        """Back to where the person came from."""
        self.dismiss()

    def action_models(self) -> None:
        """Pick another model."""
        self.in_thread(self._offer_models)

    @on(OptionList.OptionSelected, "#candidates")
    def action_start(self) -> None:
        """Make the highlighted one."""
        candidate = self._highlighted
        if candidate is not None:
            self.in_thread(partial(self._start, self._model, candidate.name))

    def action_plot(self) -> None:
        """The plot in the place of the list, or the list again."""
        self._wants_plot = not self._wants_plot
        self._arrange()

    def action_report(self) -> None:
        """Measure what each type loses."""
        self.in_thread(partial(self._measure, self._model))

    def action_budget(self) -> None:
        """Ask for a budget, and plan for it."""
        title = "Memory that it may take, context included: 3GB, 800MB"
        self.app.push_screen(LineDialog(title, "", "plans for it"), self._plan_for)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:  # noqa: ARG002  Textual's shape
        """Offer only what can be done."""
        match action:
            case "start":
                return bool(self._candidates)
            case "report" | "budget":
                return bool(self._model)
            case "plot":
                return bool(self._spots) and self.size.width < _WIDE
        return True

    # ── deeds, in threads ──

    def _start(self, model: str, to: str) -> None:
        from quant.quantize_job import QuantizeWish, quantize_spec  # deferred, as above

        spec, found = quantize_spec(self._session.store, QuantizeWish(model, to))
        if found is not None:
            self._say_here(str(found.model_name))
        else:
            self._run(spec)

    def _measure(self, model: str) -> None:
        from quant.report.job import ReportWish, report_spec  # deferred, as above

        self._run(report_spec(self._session.store, ReportWish(model)))

    def _plan_for(self, size: str | None) -> None:
        if size:
            self.in_thread(partial(self._plan, self._model, size))

    def _plan(self, model: str, size: str) -> None:
        spec = plan_spec(self._session.store, model, size, self._session.settings.ctx)
        self._say_here(spec) if isinstance(spec, str) else self._run(spec)

    def _say_here(self, name: str) -> None:
        self.app.call_from_thread(self.say, f"{name} is here already. F6 shows it.")

    def _run(self, spec: JobSpec) -> None:
        self.app.call_from_thread(self._follow, start_or_join(self._session.jobs, spec))

    def _follow(self, job: Job) -> None:
        if self.is_attached:
            self.query_one(JobBar).follow(job)

    def _offer_models(self) -> None:
        models = self._session.store.list()
        if models:
            choices = [(str(model.model_name), f"{human_bytes(model.size)} {model.quantization}") for model in models]
            self.app.call_from_thread(self.ask, ChoiceDialog("Compress which model?", choices), self._take)

    def _take(self, model: str | None) -> None:
        if model:
            self._model = model
            self._read()


def _check(worker: Worker[None]) -> None:
    if worker.is_cancelled:
        raise JobCancelledError("The list is not wanted any more.")
