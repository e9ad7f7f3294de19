"""The list of conversations, grouped by day, with a line to search them."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.content import Content
from textual.message import Message
from textual.widgets import Input, Label, OptionList
from textual.widgets.option_list import Option

from app.tui.styles import MUTED
from localllm.conversations import Conversation, SearchHit
from localllm.sanitize import one_line

UNTITLED = "New conversation"
_WIDTH = 27  # cells that the style sheet leaves for a title


class ConversationList(OptionList):
    """The options; keys act on the one that is highlighted."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("r", "rename", "Rename", id="list.rename", tooltip="Give the conversation another title"),
        Binding("d,delete", "delete", "Delete", id="list.delete", tooltip="Delete the conversation (it can be undone)"),
        Binding("slash", "search", "Search", id="list.search", tooltip="Search all conversations"),
        Binding("j", "cursor_down", "Down", show=False, id="list.down"),
        Binding("k", "cursor_up", "Up", show=False, id="list.up"),
    ]

    @property
    def highlighted_id(self) -> int | None:
        """The conversation that is highlighted."""
        if self.highlighted is None:
            return None
        option = self.get_option_at_index(self.highlighted)
        return int(option.id) if option.id else None

    def action_rename(self) -> None:
        """Ask for another title."""
        if self.highlighted_id is not None:
            self.post_message(Sidebar.RenameRequested(self.highlighted_id))

    def action_delete(self) -> None:
        """Ask for the conversation to go."""
        if self.highlighted_id is not None:
            self.post_message(Sidebar.DeleteRequested(self.highlighted_id))

    def action_search(self) -> None:
        """Go to the search line."""
        self.screen.query_one("#search", Input).focus()


class Sidebar(Vertical):
    """Shows what the screen gives it; posts what a person picks."""

    @dataclass
    class Picked(Message):
        """A person wants to see a conversation."""

        conversation_id: int

    @dataclass
    class RenameRequested(Message):
        """A person wants to rename a conversation."""

        conversation_id: int

    @dataclass
    class DeleteRequested(Message):
        """A person wants a conversation to go."""

        conversation_id: int

    @dataclass
    class SearchChanged(Message):
        """A person searches; empty text shows all conversations again."""

        text: str

    def compose(self) -> ComposeResult:
        """A heading, the search line, the list."""
        yield Label("Conversations", id="sidebar-title")
        yield Input(placeholder="Search", id="search", compact=True)
        yield ConversationList(id="list", markup=False, compact=True)

    def show(
        self, conversations: Sequence[Conversation], current: int | None, live: frozenset[int], today: date
    ) -> None:
        """List conversations under the days they were last written to.

        Args:
            conversations: The one last written to first.
            current: The one that is shown; it is highlighted.
            live: Those with an answer under way; they are marked.
            today: For the headings.
        """
        options: list[Option] = []
        heading = ""
        for conversation in conversations:
            day = day_name(date.fromtimestamp(conversation.updated), today)
            if day != heading:
                if options:
                    options.append(Option("", disabled=True))
                options.append(Option(Content.styled(day, MUTED), disabled=True))
                heading = day
            options.append(self._option(conversation, current, live))
        self._set(options, current)

    def show_hits(self, hits: Sequence[SearchHit], current: int | None, live: frozenset[int]) -> None:
        """List what was found, each with the place."""
        options = []
        for hit in hits:
            place = Content.styled(f"  {one_line(hit.snippet)}", MUTED).truncate(_WIDTH, ellipsis=True)
            options.append(self._option(hit.conversation, current, live, Content.assemble("\n", place)))
        if not options:
            options.append(Option(Content.styled("Nothing found", MUTED), disabled=True))
        self._set(options, current)

    def on_input_changed(self, event: Input.Changed) -> None:
        """Search while a person types."""
        event.stop()
        self.post_message(self.SearchChanged(event.value.strip()))

    def on_input_submitted(self, event: Input.Submitted) -> None:
        """Go from the search line to what was found."""
        event.stop()
        self.query_one(ConversationList).focus()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        """Enter on a conversation."""
        event.stop()
        if event.option.id:
            self.post_message(self.Picked(int(event.option.id)))

    def _set(self, options: list[Option], current: int | None) -> None:
        options_list = self.query_one(ConversationList)
        options_list.clear_options()
        options_list.add_options(options)
        ids = [option.id for option in options]
        first = next((index for index, found in enumerate(ids) if found), None)
        options_list.highlighted = ids.index(str(current)) if str(current) in ids else first

    def _option(
        self, conversation: Conversation, current: int | None, live: frozenset[int], below: Content | str = ""
    ) -> Option:
        mark = "◦ " if conversation.id in live else "▸ " if conversation.id == current else "  "
        title = Content(mark + (one_line(conversation.title, 60) or UNTITLED)).truncate(_WIDTH, ellipsis=True)
        return Option(Content.assemble(title, below), id=str(conversation.id))


def day_name(day: date, today: date) -> str:
    """The heading that a day stands under."""
    ago = (today - day).days
    if ago <= 0:
        return "Today"
    if ago == 1:
        return "Yesterday"
    return "This week" if ago < 7 else "This month" if ago < 31 else "Earlier"
