"""The prompt: several lines, Enter sends, Up at the first line brings back what was sent before."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from app.tui.markdown import harmless


class Prompt(TextArea):
    """Where a person writes. Posts :class:`Submitted`; the screen clears it once the text is saved."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "submit", "Send", id="prompt.send", show=False, tooltip="Send the message"),
        Binding(
            "shift+enter,ctrl+j", "newline", "New line", id="prompt.newline", show=False, tooltip="Start a new line"
        ),
        Binding(
            "up", "older", "Older", id="prompt.older", show=False, tooltip="At the first line: what was sent before"
        ),
        Binding(
            "down", "newer", "Newer", id="prompt.newer", show=False, tooltip="At the last line: what was sent after"
        ),
    ]

    @dataclass
    class Submitted(Message):
        """The person pressed Enter."""

        text: str

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  the name Textual gives it
        super().__init__(
            id=id,
            soft_wrap=True,
            tab_behavior="focus",
            show_line_numbers=False,
            highlight_cursor_line=False,
            placeholder="Write a message.  Enter sends, Ctrl+J starts a new line.",
        )
        self._history: list[str] = []
        self._back = 0  # how far back in the history we are; 0 is the draft
        self._draft = ""

    def render_line(self, y: int) -> Strip:
        """As TextArea, which fails to wrap its placeholder where no column is left: beside the list, for a moment."""
        return super().render_line(y) if self.content_size.width > 0 else Strip.blank(0)

    def set_history(self, texts: Sequence[str]) -> None:
        """What Up brings back, oldest first."""
        self._history = list(texts)
        self._back = 0

    def put(self, text: str) -> None:
        """Replace the text and place the cursor behind it."""
        self.text = harmless(text)  # TextArea draws control characters as they are
        self.move_cursor(self.document.end)

    def action_submit(self) -> None:
        """Send what is written; nothing but white space is not sent."""
        if self.text.strip():
            self.post_message(self.Submitted(self.text))

    def action_newline(self) -> None:
        """Start a new line."""
        self.insert("\n")

    def action_older(self) -> None:
        """Move up; at the first line, go back in the history."""
        if self.cursor_location[0] > 0 or self._back == len(self._history):
            self.action_cursor_up()
            return
        if self._back == 0:
            self._draft = self.text
        self._recall(self._back + 1)
        self.move_cursor((0, 0))  # Up goes on to the one before

    def action_newer(self) -> None:
        """Move down; at the last line, go forward in the history, and at its end to the draft."""
        if self.cursor_location[0] < self.document.line_count - 1 or self._back == 0:
            self.action_cursor_down()
            return
        self._recall(self._back - 1)

    def _recall(self, back: int) -> None:
        self._back = back
        self.put(self._history[-back] if back else self._draft)

    async def _on_key(self, event: events.Key) -> None:
        # TextArea takes Enter for a newline before bindings are asked; here the bindings (and so keymaps) decide.
        if event.key == "enter":
            event.prevent_default()
