"""Small windows of the Train screen: a setting, the paths of the data, the bad rows."""

from collections.abc import Callable, Sequence
from typing import ClassVar

from textual import events, on, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from app.tui.job_rows import JobRow
from app.tui.markdown import harmless
from app.tui.styles import MUTED
from app.tui.train_paths import complete, describe_paths, join_paths, split_paths
from app.tui.trainings import training_name
from localllm.errors import LocalLLMError
from localllm.jobs.job import Job
from localllm.sanitize import one_line


class SettingDialog(ModalScreen[str | None]):
    """Asks for a value in a line of text, empty for the default; None when it was left.

    Args:
        title: What it is.
        about: What can be written.
        value: As it is.
        check: Raises a LocalLLMError where the text can be no value.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel", id="setting.close")]

    def __init__(self, title: str, about: str, value: str, check: Callable[[str], object]) -> None:
        super().__init__()
        self._title = title
        self._about = about
        self._value = value
        self._check = check

    def compose(self) -> ComposeResult:
        """The question, the line, and what is wrong with it."""
        with Vertical(classes="dialog"):
            yield Label(harmless(self._title), classes="dialog-title", markup=False)
            yield Input(harmless(self._value))
            yield Static(harmless(self._about), id="dialog-about", markup=False)
            yield Label("Enter takes it · Esc cancels", classes="dialog-hint", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer with the line, unless it is wrong."""
        try:
            self._check(event.value)
        except LocalLLMError as error:
            self.query_one("#dialog-about", Static).update(Content.styled(harmless(str(error)), "$error"))
        else:
            self.dismiss(event.value.strip())


class PathInput(Input):
    """A line that takes several lines at once, as terminals paste several files that are dropped on them."""

    def _on_paste(self, event: events.Paste) -> None:
        if "\n" not in event.text.strip():
            super()._on_paste(event)
            return
        event.prevent_default()
        event.stop()
        self._insert(event.text)

    @work(thread=True, group="paste")
    def _insert(self, text: str) -> None:
        line = join_paths(split_paths(text))
        self.app.call_from_thread(self.insert_text_at_cursor, harmless(line))


class PathsDialog(ModalScreen[tuple[str, ...] | None]):
    """Asks for files and directories; Tab completes. None when it was left.

    Args:
        paths: As they are.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", id="paths.close"),
        Binding("tab", "complete", "Complete", id="paths.complete", priority=True),
    ]

    def __init__(self, paths: Sequence[str]) -> None:
        super().__init__()
        self._line = harmless(join_paths(paths))

    def compose(self) -> ComposeResult:
        """The line, and what is there."""
        with Vertical(classes="dialog"):
            yield Label("Files or directories to learn from", classes="dialog-title", markup=False)
            yield PathInput(self._line, placeholder="my_chats.jsonl")
            yield Static(id="dialog-about", markup=False)
            yield Static(id="dialog-names", markup=False)
            yield Label("Tab completes · Enter takes them · Esc cancels", classes="dialog-hint", markup=False)

    @on(Input.Changed)
    def _changed(self, event: Input.Changed) -> None:
        self._look(event.value)

    @on(Input.Submitted)
    def _submitted(self, event: Input.Submitted) -> None:
        self._look(event.value, take=True)

    def action_complete(self) -> None:
        """Complete the last path."""
        self._complete(self.query_one(Input).value)

    # ── looking at the disk, in threads ──

    @work(thread=True, exclusive=True, group="paths")
    def _look(self, line: str, *, take: bool = False) -> None:
        paths = split_paths(line)
        try:
            about = describe_paths(paths) if paths else ""
        except (LocalLLMError, OSError) as error:
            self.app.call_from_thread(self._say, line, str(error), wrong=take)
        else:
            self.app.call_from_thread(self._say, line, about)
            if take:
                self.app.call_from_thread(self._take, paths)

    @work(thread=True, exclusive=True, group="complete")
    def _complete(self, line: str) -> None:
        self.app.call_from_thread(self._completed, line, *complete(line))

    def _completed(self, line: str, longer: str, names: Sequence[str]) -> None:
        field = self.query_one(Input) if self.is_active else None
        if field is None or field.value != line:
            return  # more was written meanwhile
        if longer != line:
            field.value = longer
            field.cursor_position = len(longer)
        listed = Content.styled(harmless("  ".join(one_line(name, 60) for name in names)), MUTED)
        self.query_one("#dialog-names", Static).update(listed)

    def _say(self, line: str, text: str, *, wrong: bool = False) -> None:
        if self.is_active and self.query_one(Input).value == line:
            about = Content.styled(harmless(one_line(text, 300)), "$error" if wrong else MUTED)
            self.query_one("#dialog-about", Static).update(about)

    def _take(self, paths: tuple[str, ...]) -> None:
        if self.is_active:
            self.dismiss(paths)


class TrainingsDialog(ModalScreen[Job | None]):
    """Lets a person pick one of several trainings; None when it was left.

    Args:
        rows: They.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,t", "dismiss", "Cancel", id="trainings.close"),
        Binding("j", "app.simulate_key('down')", show=False, id="trainings.down"),
        Binding("k", "app.simulate_key('up')", show=False, id="trainings.up"),
    ]

    def __init__(self, rows: Sequence[JobRow]) -> None:
        super().__init__()
        self._rows = rows

    def compose(self) -> ComposeResult:
        """One option a training: how it stands, what it trains, how far it came."""
        with Vertical(classes="dialog"):
            yield Label("Trainings", classes="dialog-title", markup=False)
            yield OptionList(*[Option(self._describe(row)) for row in self._rows], markup=False)
            yield Label("Enter shows it · Esc cancels", classes="dialog-hint", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the training."""
        self.dismiss(self._rows[event.option_index].job)

    @staticmethod
    def _describe(row: JobRow) -> Content:
        step = row.latest.step
        came = f"{step.step} of {step.total}" if step is not None else ""
        name = harmless(one_line(training_name(row.job), 40))
        return Content.assemble((f"{row.status.state:<10}", MUTED), f"{name:<40} ", (f"{came:>14}", MUTED))


class BadRowsDialog(ModalScreen[bool | None]):
    """Lists bad rows; answers True to leave them out, False to stop at them, None when it was left.

    Args:
        bad: Where each is, and why it is bad.
        n_bad: How many there are, also those that are not listed.
        skip: They are left out now.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("o", "answer", "Leave out", id="bad.out"),
        Binding("escape,b", "dismiss", "Close", id="bad.close"),
        Binding("j", "app.simulate_key('down')", show=False, id="bad.down"),
        Binding("k", "app.simulate_key('up')", show=False, id="bad.up"),
    ]

    def __init__(self, bad: Sequence[tuple[str, str]], n_bad: int, *, skip: bool) -> None:
        super().__init__()
        self._bad = bad
        self._n_bad = n_bad
        self._skip = skip

    def compose(self) -> ComposeResult:
        """The rows, and what can be done about them."""
        more = f", the first {len(self._bad):,} of them" if self._n_bad > len(self._bad) else ""
        verb = "lets them stop the training again" if self._skip else "leaves them out"
        rows = "1 row" if self._n_bad == 1 else f"{self._n_bad:,} rows"
        with Vertical(classes="dialog", id="bad-rows"):
            yield Label(f"{rows} cannot be learnt from{more}", classes="dialog-title", markup=False)
            yield OptionList(*[Option(self._describe(*row)) for row in self._bad], markup=False)
            yield Label(f"o {verb} · Esc closes", classes="dialog-hint", markup=False)

    def action_answer(self) -> None:
        """Leave them out, or do not any more."""
        self.dismiss(not self._skip)

    @staticmethod
    def _describe(source: str, reason: str) -> Content:
        return Content.assemble((harmless(f"{one_line(source, 60)}  "), MUTED), harmless(one_line(reason, 300)))
