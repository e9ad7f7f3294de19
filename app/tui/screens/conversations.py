"""Which conversation is shown, and everything that is done to one as a whole."""

import time
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from functools import partial
from typing import TYPE_CHECKING, Literal

from textual import on
from textual.content import Content
from textual.screen import Screen
from textual.widgets import Input, Static

from app.tui.export import export_conversation
from app.tui.markdown import harmless
from app.tui.screens.dialogs import LineDialog
from app.tui.screens.reported import reported
from app.tui.session import Session
from app.tui.widgets.prompt import Prompt
from app.tui.widgets.sidebar import UNTITLED, ConversationList, Sidebar
from app.tui.widgets.status import Speed, StatusLine
from app.tui.widgets.transcript import Transcript
from localllm.errors import ConversationError, LocalLLMError
from localllm.sanitize import one_line
from localllm.snapshots import clear_snapshots

if TYPE_CHECKING:
    from localllm.conversations import Conversation, Message

_OPEN = "-list-open"  # the list lies over a narrow screen
_CLOSED = "-list-closed"  # the list is hidden on a wide one


class ConversationsScreen(Screen[None]):
    """The part of the chat screen that knows conversations, and nothing of models and answers.

    Args:
        session: What the app holds.
        clock: Seconds since the epoch, for the headings of the list.
    """

    def __init__(self, session: Session, clock: Callable[[], float] = time.time) -> None:
        super().__init__()
        self.session = session
        self.store = session.conversations
        self.conversation: Conversation | None = None  # None: a new one, which begins to exist with its first message
        self.editing: Message | None = None
        self._deleted: list[int] = []
        self._drafts: dict[int | None, str] = {}
        self._clock = clock

    @property
    def transcript(self) -> Transcript:
        """The messages."""
        return self.query_one(Transcript)

    @property
    def prompt(self) -> Prompt:
        """Where a person writes."""
        return self.query_one(Prompt)

    @property
    def status(self) -> StatusLine:
        """The line below."""
        return self.query_one(StatusLine)

    @property
    def has_widgets(self) -> bool:
        """False before the screen is filled and while the app closes: widgets go before their screen does."""
        return bool(self.query(StatusLine))

    @property
    def conversation_id(self) -> int | None:
        """The conversation that is shown."""
        return self.conversation.id if self.conversation else None

    # ── showing ──

    async def show_conversation(self, conversation_id: int | None) -> None:
        """Show a conversation (None: a new one); what was being written in the prompt waits with the old one."""
        if self.editing is not None:
            self.leave_edit()
        self._drafts[self.conversation_id] = self.prompt.text
        if self.conversation_id in self.session.live:
            self.status.doing = ""  # it told of the answer that is left
        self.conversation = None if conversation_id is None else self.store.get(conversation_id)
        self.prompt.put(self._drafts.pop(conversation_id, ""))
        await self.show_branch()
        self.show_list()

    async def show_branch(self, select: int | None = None) -> None:
        """Show the active branch as it is in the store, and what is being written as it is here."""
        path: tuple[Message, ...] = ()
        positions: dict[int, tuple[int, int]] = {}
        if self.conversation is not None:
            self.conversation = self.store.get(self.conversation.id)
            path = self.store.active_path(self.conversation.id)
            positions = self.store.branch_positions(self.conversation.id)
        live = self.session.live.get(self.conversation.id) if self.conversation else None
        writing = live.message_id if live else None
        if live is not None:
            path = tuple(replace(m, content=live.text) if m.id == writing else m for m in path)
        streaming = frozenset({writing}) if writing is not None else frozenset[int]()
        self.query_one("#welcome").display = not path
        self.transcript.display = bool(path)
        await self.transcript.show(path, positions, streaming=streaming, select=select)
        self.prompt.set_history([message.content for message in path if message.role == "user"])
        self.show_title()
        self.show_speed()
        self.refresh_bindings()

    def show_title(self) -> None:
        """Show the conversation's title above the messages."""
        title = one_line(self.conversation.title, 200) if self.conversation else ""
        self.query_one("#title", Static).update(Content(title or UNTITLED))
        self.app.sub_title = title

    def show_speed(self) -> None:
        """Show what the last answer of this branch took."""
        answer = self.transcript.last_answer
        usage = dict(answer.usage) if answer else {}
        self.status.speed = (
            Speed(usage["tokens_per_second"], usage["n_prompt"] + usage["n_completion"], usage["n_ctx"])
            if usage
            else None
        )

    def show_list(self) -> None:
        """Fill the list, with what is searched for or with everything."""
        sidebar = self.query_one(Sidebar)
        text = self.query_one("#search", Input).value.strip()
        live = frozenset(self.session.live)
        if text:
            sidebar.show_hits(self.store.search(text), self.conversation_id, live)
        else:
            sidebar.show(self.store.list(), self.conversation_id, live, date.fromtimestamp(self._clock()))

    def say(self, text: str, severity: Literal["information", "warning", "error"] = "information") -> None:
        """A notice in a corner, for some seconds."""
        self.notify(harmless(text), severity=severity, markup=False, timeout=10 if severity == "error" else 5)

    def leave_edit(self) -> None:
        """Stop editing a message; what was in the prompt before comes back."""
        self.editing = None
        self.prompt.border_title = None
        self.prompt.remove_class("-editing")
        self.prompt.put(self._drafts.pop(self.conversation_id, ""))

    # ── the list ──

    def action_toggle_list(self) -> None:
        """Show or hide the list."""
        self.toggle_class(_OPEN if self.has_class("-narrow") else _CLOSED)
        if self.query_one("#sidebar").display:
            self.query_one(ConversationList).focus()
        else:
            self.prompt.focus()

    def action_goto_list(self) -> None:
        """Go to the list, and show it where it is hidden."""
        self._open_list()
        self.query_one(ConversationList).focus()

    def action_search(self) -> None:
        """Go to the search line of the list."""
        self._open_list()
        self.query_one("#search", Input).focus()

    def close_list(self) -> None:
        """Go back from the list to the prompt; all conversations are listed again."""
        self.query_one("#search", Input).value = ""
        self.remove_class(_OPEN)
        self.prompt.focus()

    def _open_list(self) -> None:
        self.remove_class(_CLOSED)
        self.set_class(self.has_class("-narrow"), _OPEN)

    @on(Sidebar.SearchChanged)
    @reported
    async def _search_changed(self) -> None:
        self.show_list()

    @on(Sidebar.Picked)
    async def _picked(self, event: Sidebar.Picked) -> None:
        try:
            await self.show_conversation(event.conversation_id)
        except ConversationError as error:  # another window deleted it
            self.say(str(error), "error")
            self.show_list()
            return
        self.close_list()

    # ── the conversation ──

    @reported
    async def action_new(self) -> None:
        """Start a new conversation."""
        await self.show_conversation(None)
        self.close_list()

    async def action_rename(self) -> None:
        """Ask for another title of this conversation."""
        if self.conversation is not None:
            await self._rename(self.conversation.id)

    @on(Sidebar.RenameRequested)
    async def _rename_requested(self, event: Sidebar.RenameRequested) -> None:
        await self._rename(event.conversation_id)

    @reported
    async def _rename(self, conversation_id: int) -> None:
        old = one_line(self.store.get(conversation_id).title)
        self.app.push_screen(LineDialog("Title", old), partial(self._set_title, conversation_id))

    @reported
    async def _set_title(self, conversation_id: int, title: str | None) -> None:
        if title:
            self.store.rename(conversation_id, one_line(title, 200))
            if conversation_id == self.conversation_id:
                self.conversation = self.store.get(conversation_id)
                self.show_title()
            self.show_list()

    async def action_delete(self) -> None:
        """Delete this conversation."""
        if self.conversation is not None:
            await self._delete(self.conversation.id)

    @on(Sidebar.DeleteRequested)
    async def _delete_requested(self, event: Sidebar.DeleteRequested) -> None:
        await self._delete(event.conversation_id)

    @reported
    async def _delete(self, conversation_id: int) -> None:
        self.session.cancel(conversation_id)
        title = one_line(self.store.get(conversation_id).title, 40) or UNTITLED
        self.store.delete(conversation_id)
        clear_snapshots(self.session.home)  # a cache that may hold its text
        self._deleted.append(conversation_id)
        if conversation_id == self.conversation_id:
            self.conversation = None
            rest = self.store.list(limit=1)
            await self.show_conversation(rest[0].id if rest else None)
        else:
            self.show_list()
        self.refresh_bindings()
        self.say(f"Deleted “{title}”. F8 brings it back.")

    @reported
    async def action_undo_delete(self) -> None:
        """Bring back the conversation that was deleted last."""
        if self._deleted:
            conversation = self.store.restore(self._deleted.pop())
            await self.show_conversation(conversation.id)

    def action_export(self) -> None:
        """Write the branch that is shown to a markdown file."""
        if self.conversation is not None:
            try:
                file = export_conversation(self.session.home, self.conversation, self.transcript.path)
            except (LocalLLMError, OSError) as error:
                self.say(f"The conversation could not be exported: {error}", "error")
            else:
                self.say(f"Saved as {file}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done."""
        if action in {"rename", "delete", "export"}:
            return self.conversation is not None
        if action == "undo_delete":
            return bool(self._deleted)
        return super().check_action(action, parameters)
