"""The messages of one branch, the newest below, with a cursor to act on one of them."""

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.content import Content
from textual.message import Message as TextualMessage
from textual.widgets import Static

from app.tui.widgets.message import MessageView
from localllm.conversations import Message

Request = Literal["edit", "regenerate", "copy", "copy_code"]

# Each message is a few widgets; a screen shows two or three messages. Older ones are made when one scrolls up to them.
PAGE = 24


class Transcript(VerticalScroll, can_focus=True):
    """Shows a branch; says what a person wants done with a message, and does none of it."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "cursor(-1)", "Earlier message", id="message.earlier", show=False),
        Binding("down,j", "cursor(1)", "Later message", id="message.later", show=False),
        Binding("home,g", "first", "First message", id="message.first", show=False),
        Binding("end,G", "last", "Last message", id="message.last", show=False),
        Binding("e", "request('edit')", "Edit", id="message.edit", tooltip="Edit the question, as a new branch"),
        Binding("r", "request('regenerate')", "Again", id="message.again", tooltip="Another answer, as a new branch"),
        Binding("c", "request('copy')", "Copy", id="message.copy", tooltip="Copy the message"),
        Binding("b", "request('copy_code')", "Code", id="message.code", tooltip="Copy a block of code"),
        Binding("left,h", "branch(-1)", "Prev", id="message.branch_left", tooltip="The branch before this one"),
        Binding("right,l", "branch(1)", "Next", id="message.branch_right", tooltip="The branch after this one"),
        Binding("pageup", "earlier_page", "Page up", id="message.page_up", show=False),
        Binding("pagedown,space", "page_down", "Page down", id="message.page_down", show=False),
    ]

    @dataclass
    class Requested(TextualMessage):
        """A person wants something done with a message."""

        what: Request
        message: Message

    @dataclass
    class BranchRequested(TextualMessage):
        """A person wants the sibling ``step`` away from this message."""

        message: Message
        step: int

    @dataclass
    class CursorMoved(TextualMessage):
        """The cursor is on another message, or on none."""

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  the name Textual gives it
        super().__init__(id=id)
        self._path: list[Message] = []
        self._positions: dict[int, tuple[int, int]] = {}
        self._streaming: frozenset[int] = frozenset()
        self._first = 0  # index in the path of the first message that has a view
        self._cursor: int | None = None  # index in the path
        self._views: dict[int, MessageView] = {}
        # Mounting takes a while: a branch asked for meanwhile must not remove views that are only half there.
        self._changing = asyncio.Lock()

    def compose(self) -> ComposeResult:
        """A line that says how many older messages there are, and below it the messages."""
        # At least as high as the window (see the style sheet): an anchored scroll of less would start below zero.
        with Vertical(id="column"):
            yield Static(id="earlier", markup=False)

    @property
    def selected(self) -> Message | None:
        """The message under the cursor."""
        return None if self._cursor is None else self._path[self._cursor]

    @property
    def last_answer(self) -> Message | None:
        """The newest answer of this branch."""
        return next((message for message in reversed(self._path) if message.role == "assistant"), None)

    @property
    def streaming(self) -> frozenset[int]:
        """Ids of the messages that are shown as being written."""
        return self._streaming

    @property
    def path(self) -> Sequence[Message]:
        """The messages of this branch."""
        return self._path

    def position(self, message_id: int) -> tuple[int, int]:
        """Which of its siblings a message is, and how many there are."""
        return self._positions.get(message_id, (1, 1))

    def view(self, message_id: int) -> MessageView | None:
        """The view of a message; None when it is on another branch, or too far up to have one."""
        return self._views.get(message_id)

    async def show(
        self,
        path: Sequence[Message],
        positions: Mapping[int, tuple[int, int]],
        *,
        streaming: frozenset[int] = frozenset(),
        select: int | None = None,
    ) -> None:
        """Show another branch, from its end; views of messages that stay are kept.

        Args:
            path: From the first message to the leaf.
            positions: Of every message, see :meth:`ConversationStore.branch_positions`.
            streaming: Messages that this app is writing.
            select: The message to place the cursor on.
        """
        async with self._changing:
            same = _common_prefix(self._path, path)
            same = min(same, _common_positions(path, self._positions, positions))
            gone = [self._views.pop(message.id) for message in self._path[same:] if message.id in self._views]
            with self.app.batch_update():
                await self.query_one("#column").remove_children(gone)
                self._path, self._positions, self._streaming = list(path), dict(positions), streaming
                if not self._views:
                    self._first = same = max(0, len(path) - PAGE)
                await self._mount_views(range(same, len(path)))
                self._show_earlier()
                indices = {message.id: index for index, message in enumerate(self._path)}
                self._set_cursor(None if select is None else indices.get(select))
            if select is None:
                self.anchor()
                if self.has_focus and self._path:
                    self._set_cursor(len(self._path) - 1, scroll=False)

    async def finish(self, message: Message) -> None:
        """Show a message as it was saved in the end; it is not written any more."""
        async with self._changing:
            self._streaming -= {message.id}
            self._path = [message if message.id == old.id else old for old in self._path]
            if view := self._views.get(message.id):
                await view.finish(message)

    def on_focus(self) -> None:
        """Show the cursor: there is one whenever the keys come here."""
        if self._cursor is None and self._path:
            self._set_cursor(len(self._path) - 1)

    def on_blur(self) -> None:
        """Hide the cursor, unless a window merely lies over the screen."""
        if self.screen.is_current:
            self._set_cursor(None)

    async def action_cursor(self, step: int) -> None:
        """Move the cursor."""
        if not self._path:
            return
        at = len(self._path) - 1 if self._cursor is None else self._cursor + step
        at = max(0, min(at, len(self._path) - 1))
        if at <= self._first:
            await self._load_earlier()
        self._set_cursor(at)

    async def action_first(self) -> None:
        """Move to the first message that is shown; from there, show a page of earlier ones.

        One page at a time: a thousand messages would take many seconds to lay out.
        """
        if self._cursor == self._first:
            await self._load_earlier()
        if self._path:
            self._set_cursor(self._first)

    def action_last(self) -> None:
        """Move to the last message, and follow what is being written."""
        if self._path:
            self._set_cursor(len(self._path) - 1)
        self.anchor()

    async def action_earlier_page(self) -> None:
        """Scroll a page up."""
        if self.scroll_y == 0:
            await self._load_earlier()
        self.scroll_page_up(animate=False)

    def action_request(self, what: Request) -> None:
        """Ask the screen to do something with the message under the cursor."""
        if self.selected is not None:
            self.post_message(self.Requested(what, self.selected))

    def action_branch(self, step: int) -> None:
        """Ask the screen for the branch beside."""
        if self.selected is not None:
            self.post_message(self.BranchRequested(self.selected, step))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Show in the footer what can be done with the message under the cursor."""
        if action == "branch":
            return self.selected is not None and self.position(self.selected.id)[1] > 1
        if action == "request" and parameters == ("copy_code",):
            return self.selected is not None and "```" in self.selected.content
        if action == "request":
            return self.selected is not None
        return True

    def _set_cursor(self, index: int | None, *, scroll: bool = True) -> None:
        for view in self._views.values():
            view.remove_class("-cursor")
        self._cursor = index
        selected = None if index is None else self._views.get(self._path[index].id)
        if selected is not None:
            selected.add_class("-cursor")
            if scroll:
                taller = selected.size.height >= self.size.height
                self.call_after_refresh(self.scroll_to_widget, selected, animate=False, top=taller)
        self.post_message(self.CursorMoved())

    async def _mount_views(self, indices: range, *, before: MessageView | None = None) -> None:
        views = []
        for index in indices:
            message = self._path[index]
            view = MessageView(message, self.position(message.id), streaming=message.id in self._streaming)
            self._views[message.id] = view
            views.append(view)
        if views:
            await self.query_one("#column").mount_all(views, before=before)
        for view in views:
            view.ready = True

    async def _load_earlier(self) -> None:
        async with self._changing:
            if not self._first:
                return
            start = max(0, self._first - PAGE)
            top = self._views.get(self._path[self._first].id)
            with self.app.batch_update():
                await self._mount_views(range(start, self._first), before=top)
                self._first = start
                self._show_earlier()
            if top is not None:
                self.call_after_refresh(self.scroll_to_widget, top, animate=False, top=True)

    def _show_earlier(self) -> None:
        line = self.query_one("#earlier", Static)
        line.display = self._first > 0
        line.update(Content(f"▲ {self._first} earlier messages · Home shows more"))


def _common_prefix(old: Sequence[Message], new: Sequence[Message]) -> int:
    for index, (before, after) in enumerate(zip(old, new, strict=False)):
        if before != after:
            return index
    return min(len(old), len(new))


def _common_positions(
    path: Sequence[Message], old: Mapping[int, tuple[int, int]], new: Mapping[int, tuple[int, int]]
) -> int:
    for index, message in enumerate(path):
        if old.get(message.id) != new.get(message.id):
            return index
    return len(path)
