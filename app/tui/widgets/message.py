"""One message of the transcript."""

from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical
from textual.content import Content
from textual.widgets import Label, Static

from app.tui.markdown import harmless
from app.tui.widgets.safe_markdown import SafeMarkdown
from localllm.conversations import Message
from localllm.sanitize import one_line


class MessageView(Vertical):
    """Who says it, which branch it is on, its text, and how it ended.

    Args:
        message: What is shown. Its text is made harmless here.
        position: Which of its siblings it is, counted from 1, and how many there are.
        streaming: More of its text comes through :meth:`show_text`.
    """

    can_focus = False

    def __init__(self, message: Message, position: tuple[int, int] = (1, 1), *, streaming: bool = False) -> None:
        super().__init__(classes=f"message -{message.role}")
        self.message = message
        self._position = position
        self._streaming = streaming
        self._shown = len(message.content)  # characters of an answer that the markdown has been given
        self.ready = False  # whoever mounts it says when that is done
        self._text = Static(classes="text", markup=False)
        self._markdown = SafeMarkdown(message.content, classes="text")

    def compose(self) -> ComposeResult:
        """A line with the name and the branch, the text, and a note."""
        with Horizontal(classes="head"):
            yield Label(self._who(), classes="who", markup=False)
            yield Label(self._branch(), classes="branch", markup=False)
        if self.message.role == "assistant":
            yield self._markdown
        else:
            self._text.update(Content(harmless(self.message.content)))
            yield self._text
        yield Static(self._note(), classes="note", markup=False)

    def on_mount(self) -> None:
        """Show the state that the message is in."""
        self._show_state()

    def set_waiting(self, what: str) -> None:
        """Say what the answer waits for, until its first text comes; empty to say nothing."""
        self.query_one(".note", Static).update(Content(one_line(what, 80)))
        self.set_class(bool(what), "-waiting")

    async def show_text(self, text: str) -> None:
        """Show an answer that is being written.

        Args:
            text: All of it so far: only what is new is drawn, and nothing is lost that came while this was mounted.
        """
        if not self.ready:
            return
        if self.has_class("-waiting"):
            self.set_waiting("")
        new, self._shown = text[self._shown :], len(text)
        await self._markdown.write(new)

    async def finish(self, message: Message) -> None:
        """Show the message as it was saved in the end."""
        self.message = message
        self._streaming = False
        await self._markdown.finish(message.content)
        self.set_waiting("")
        self._show_state()

    def _show_state(self) -> None:
        note = self._note()
        self.query_one(".note", Static).update(Content(note))
        self.set_class(bool(note), "-noted")
        self.set_class(self.message.status == "error", "-error")

    def _who(self) -> str:
        if self.message.role == "user":
            return "You"
        return one_line(self.message.model, 60) or "Assistant"

    def _branch(self) -> str:
        position, count = self._position
        return f"‹ {position}/{count} ›" if count > 1 else ""  # noqa: RUF001  marks, not "less than"

    def _note(self) -> str:
        if self._streaming:
            return ""
        match self.message.status:
            case "cancelled":
                return "■ Stopped. Ctrl+R asks again."
            case "error":
                return f"▲ {harmless(self.message.error)} Ctrl+R asks again."
            case "streaming":
                return "… Another window is writing this answer."
        if self.message.usage.get("reason") == "length":
            return "■ Cut at the length limit."
        return ""
