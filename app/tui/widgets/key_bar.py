"""The line of keys at the bottom: those of the focused widget first, and only as many as fit."""

from collections.abc import Iterable

from textual.content import Content
from textual.screen import Screen
from textual.widgets import Static

from app.tui.styles import MUTED

_LAST = "app.help"  # always there, at the right end: it leads to all others


class KeyBar(Static):
    """Like Textual's footer, but it never cuts a key in half and stays the same line for a screen reader."""

    def __init__(self) -> None:
        super().__init__(markup=False)

    def on_mount(self) -> None:
        """Follow the bindings of the screen."""
        self.screen.bindings_updated_signal.subscribe(self, self._updated)

    def render(self) -> Content:
        """``^N New   ^O Model   …   F1 Keys``."""
        last = Content("")
        items: list[Content] = []
        for binding_id, item in self._items():
            if binding_id == _LAST:
                last = item
            else:
                items.append(item)
        room = self.content_size.width - last.cell_length - 3
        line = Content("")
        for item in items:
            longer = Content("   ").join([line, item]) if line.plain else item
            if longer.cell_length > room:
                break
            line = longer
        gap = max(3, self.content_size.width - line.cell_length - last.cell_length)
        return Content.assemble(line, " " * gap, last)

    def _items(self) -> Iterable[tuple[str | None, Content]]:
        screen = self.screen
        shown = [active for active in screen.active_bindings.values() if active.binding.show and active.enabled]
        shown.sort(key=lambda active: active.node is not screen.focused)  # a stable sort: the rest keep their order
        words: set[str] = set()  # a key of the focused widget stands for the screen's key that does the same
        for active in shown:
            if active.binding.description not in words:
                words.add(active.binding.description)
                key = self.app.get_key_display(active.binding).replace("Ctrl+", "^")
                yield active.binding.id, Content.assemble((key, "$accent"), (f" {active.binding.description}", MUTED))

    def _updated(self, _: Screen[object]) -> None:
        self.refresh()
