"""Small windows that ask for one thing."""

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Input, Label, OptionList, Static
from textual.widgets.option_list import Option

from app.tui.markdown import CodeBlock, harmless
from app.tui.styles import MUTED
from localllm.sanitize import one_line


class LineDialog(ModalScreen[str | None]):
    """Asks for one line of text; None when it was left with Escape, or left empty.

    Args:
        title: The question.
        value: The line as it is.
        verb: What Enter does, in the third person.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss", "Cancel", id="dialog.close")]

    def __init__(self, title: str, value: str, verb: str = "saves") -> None:
        super().__init__()
        self._title = title
        self._value = value
        self._verb = verb

    def compose(self) -> ComposeResult:
        """The question and the line."""
        with Vertical(classes="dialog"):
            yield Label(self._title, classes="dialog-title", markup=False)
            yield Input(self._value)
            yield Label(f"Enter {self._verb} · Esc cancels", classes="dialog-hint", markup=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Answer with the line."""
        self.dismiss(event.value.strip() or None)


class ConfirmDialog(ModalScreen[bool]):
    """Asks before something that cannot be undone; only ``y`` does it.

    Args:
        title: The question.
        lines: What follows from it.
        verb: What ``y`` does, in the third person.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes", id="confirm.yes"),
        Binding("escape,n,enter", "answer(False)", "No", id="confirm.no"),
    ]

    def __init__(self, title: str, lines: Sequence[str], verb: str) -> None:
        super().__init__()
        self._title = title
        self._lines = lines
        self._verb = verb

    def compose(self) -> ComposeResult:
        """The question and what to know."""
        with Vertical(classes="dialog"):
            yield Label(harmless(self._title), classes="dialog-title", markup=False)
            for line in self._lines:
                yield Static(harmless(line), markup=False)
            yield Label(f"y {self._verb} · Esc leaves it", classes="dialog-hint", markup=False)

    def action_answer(self, yes: bool) -> None:
        """Answer."""
        self.dismiss(yes)


class ChoiceDialog(ModalScreen[str | None]):
    """Lets a person pick one of several words; None when it was left.

    Args:
        title: What they are.
        choices: The words, each with a few more about it.
        current: The one in use, where one is; the list begins at it.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", id="choice.close"),
        Binding("j", "app.simulate_key('down')", show=False, id="choice.down"),
        Binding("k", "app.simulate_key('up')", show=False, id="choice.up"),
    ]

    def __init__(self, title: str, choices: Sequence[tuple[str, str]], current: str = "") -> None:
        super().__init__()
        self._title = title
        self._choices = choices
        self._current = current

    def compose(self) -> ComposeResult:
        """One option a word."""
        with Vertical(classes="dialog"):
            yield Label(harmless(self._title), classes="dialog-title", markup=False)
            yield OptionList(
                *[Option(Content.assemble(f"{word:<12} ", (about, MUTED)), id=word) for word, about in self._choices],
                markup=False,
            )
            yield Label("Enter takes it · Esc cancels", classes="dialog-hint", markup=False)

    def on_mount(self) -> None:
        """Begin at what is in use."""
        words = [word for word, _ in self._choices]
        if self._current in words:
            self.query_one(OptionList).highlighted = words.index(self._current)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the word."""
        self.dismiss(event.option.id)


class CodeDialog(ModalScreen[CodeBlock | None]):
    """Lets a person pick one of several blocks of code."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss", "Cancel", id="dialog.close"),
        Binding("j", "app.simulate_key('down')", show=False, id="dialog.down"),
        Binding("k", "app.simulate_key('up')", show=False, id="dialog.up"),
    ]

    def __init__(self, blocks: Sequence[CodeBlock]) -> None:
        super().__init__()
        self._blocks = blocks

    def compose(self) -> ComposeResult:
        """One option a block: its language, its length, its first line."""
        with Vertical(classes="dialog"):
            yield Label("Copy which block?", classes="dialog-title", markup=False)
            yield OptionList(*[Option(self._describe(block)) for block in self._blocks], markup=False)
            yield Label("Enter copies · Esc cancels", classes="dialog-hint", markup=False)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Answer with the block."""
        self.dismiss(self._blocks[event.option_index])

    @staticmethod
    def _describe(block: CodeBlock) -> Content:
        lines = block.text.splitlines()
        count = f"{len(lines)} line{'' if len(lines) == 1 else 's'}"
        first = one_line(next((line for line in lines if line.strip()), ""), 48)
        return Content.assemble((f"{one_line(block.language, 12) or 'text':<12} {count:>10}  ", MUTED), first)
