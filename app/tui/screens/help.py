"""The keys, read from the bindings themselves so that this list cannot drift from them."""

from collections.abc import Iterable, Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.screen import ModalScreen
from textual.widgets import Label, Static

KeyGroup = tuple[str, Sequence[BindingType]]


class HelpScreen(ModalScreen[None]):
    """Lists keys in groups.

    Args:
        groups: A heading and the bindings under it, each.
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q,f1,question_mark", "dismiss", "Close", id="help.close"),
        Binding("down,j", "scroll(1)", show=False, id="help.down"),
        Binding("up,k", "scroll(-1)", show=False, id="help.up"),
        Binding("pagedown,space", "scroll(10)", show=False, id="help.page_down"),
        Binding("pageup", "scroll(-10)", show=False, id="help.page_up"),
    ]

    def __init__(self, groups: Sequence[KeyGroup]) -> None:
        super().__init__()
        self._groups = groups

    def compose(self) -> ComposeResult:
        """A table for each group."""
        with Vertical(classes="dialog", id="help"):
            yield Label("Keys", classes="dialog-title", markup=False)
            with VerticalScroll(can_focus=False):
                for heading, bindings in self._groups:
                    yield Label(heading, classes="help-group", markup=False)
                    yield Static(self._table(bindings), classes="help-keys", markup=False)
            yield Label("↑ ↓ scroll · Esc closes", classes="dialog-hint", markup=False)

    def action_scroll(self, lines: int) -> None:
        """Move through the list."""
        self.query_one(VerticalScroll).scroll_relative(y=lines, animate=False)

    def _table(self, bindings: Iterable[BindingType]) -> Content:
        rows: list[Content] = []
        for binding in bindings:
            if not isinstance(binding, Binding) or not binding.description:
                continue
            single = list(Binding.make_bindings([binding]))
            keys = "  ".join(dict.fromkeys(self.app.get_key_display(key) for key in single))
            rows.append(Content.assemble((f"{keys:<16} ", "$accent"), binding.tooltip or binding.description))
        return Content("\n").join(rows)
