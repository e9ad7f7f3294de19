"""The chat screen: hears what the widgets post, and decides."""

import asyncio
import time
from collections.abc import Iterable
from typing import ClassVar

from textual import on, work
from textual.app import ComposeResult, SystemCommand
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.widgets import Static

from app.tui.markdown import CodeBlock, code_blocks, harmless
from app.tui.screens.conversations import ConversationsScreen
from app.tui.screens.dialogs import CodeDialog
from app.tui.screens.help import HelpScreen
from app.tui.screens.reported import reported
from app.tui.session import Ask
from app.tui.widgets.key_bar import KeyBar
from app.tui.widgets.message import MessageView
from app.tui.widgets.prompt import Prompt
from app.tui.widgets.sidebar import ConversationList, Sidebar
from app.tui.widgets.status import StatusLine
from app.tui.widgets.transcript import Request, Transcript
from app.turn import AnswerStarted, TurnEvent, UserSaved
from localllm.conversations import Message
from localllm.errors import LocalLLMError
from localllm.sanitize import one_line

WELCOME = """\
localllm

A workshop for language models on this computer.
Nothing you write here leaves it.


Write below, and press Enter.

Ctrl+O  models        F1      all keys
Ctrl+P  everything    Ctrl+Q  quit"""
NO_MODEL = "No model is here yet. Ctrl+O fetches one to start with."
_TITLE = 40
_FRAME = 0.08  # seconds


class ChatScreen(ConversationsScreen):
    """One conversation at a time; answers in others go on being written meanwhile."""

    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (100, "-wide")]  # noqa: RUF012  Textual declares it as no ClassVar
    AUTO_FOCUS = "#prompt"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "stop", "Stop", id="chat.stop", tooltip="Stop the answer; its text so far is kept"),
        Binding("escape", "back", "Back", id="chat.back", tooltip="Back to the prompt; leave an edit"),
        Binding("ctrl+n", "new", "New", id="chat.new", tooltip="Start a new conversation"),
        Binding("ctrl+o", "models", "Model", id="chat.models", tooltip="Pick a model"),
        Binding("ctrl+r", "regenerate", "Again", id="chat.again", tooltip="Ask again: another answer, as a new branch"),
        Binding("alt+up", "browse", "Messages", id="chat.browse", tooltip="Go to the messages; Esc comes back"),
        Binding("ctrl+b,f2", "toggle_list", "List", id="chat.list", tooltip="Show or hide the conversations"),
        Binding("f3", "search", "Search", id="chat.search", show=False, tooltip="Search all conversations"),
        Binding("f4", "rename", "Rename", id="chat.rename", show=False, tooltip="Rename this conversation"),
        Binding(
            "ctrl+g", "goto_list", "Go to list", id="chat.goto_list", show=False, tooltip="Go to the conversations"
        ),
        Binding("f8", "undo_delete", "Undo", id="chat.undo", show=False, tooltip="Bring back what was deleted last"),
        Binding("shift+pageup", "page(-1)", "Page up", id="chat.page_up", show=False, tooltip="Scroll the messages up"),
        Binding("shift+pagedown", "page(1)", "Page down", id="chat.page_down", show=False, tooltip="Scroll them down"),
    ]

    def compose(self) -> ComposeResult:
        """The list, and beside it title, messages, prompt, status."""
        with Horizontal():
            yield Sidebar(id="sidebar")
            with Vertical(id="main"):
                yield Static(id="title", markup=False)
                yield Static(WELCOME, id="welcome", markup=False)
                yield Transcript(id="transcript")
                yield Prompt(id="prompt")
                yield StatusLine(id="status")
        yield KeyBar()

    async def on_mount(self) -> None:
        """Show the last conversation, and get its model ready meanwhile."""
        self.session.on_status = self._show_doing
        latest = self.store.list(limit=1)
        await self.show_conversation(latest[0].id if latest else None)
        self._start_model(self.conversation.model if self.conversation else "")

    # ── the model ──

    @work(exclusive=True, group="model")
    async def _start_model(self, name: str) -> None:
        self.session.model = await asyncio.to_thread(self.session.find_model, name)
        self.status.model = self.session.model
        if not self.session.model:
            self.say(NO_MODEL, "warning")
            return
        try:
            await self.session.warm(self.session.model)
        except LocalLLMError as error:
            self.say(str(error), "error")

    def action_models(self) -> None:
        """Pick a model."""
        # Deferred: reading GGUF headers and fetching models is wanted by nobody before this.
        from app.tui.screens.model_picker import ModelPicker

        settings, store = self.session.settings, self.session.store
        picker = ModelPicker(
            store, self.session.jobs, self.session.model, n_ctx=settings.ctx, memory_gb=settings.memory_gb
        )
        self.app.push_screen(picker, self.use_model)

    @reported
    async def use_model(self, name: str | None) -> None:
        """Go on with another model."""
        if name and name != self.session.model:
            if self.conversation is not None:
                self.store.set_model(self.conversation.id, name)
            self._start_model(name)

    @work(exclusive=True, group="model-check")
    async def recheck_model(self) -> None:
        """See whether the model in use is still here; take another when it is not."""
        found = await asyncio.to_thread(self.session.find_model, self.session.model)
        if found != self.session.model:
            self._start_model(found)

    def _show_doing(self, doing: str) -> None:
        self.status.doing = doing
        view = self._live_view()
        if view is not None and not view.message.content:
            view.set_waiting(doing or "reading the prompt…")

    # ── asking ──

    @on(Prompt.Submitted)
    @reported
    async def _submitted(self, event: Prompt.Submitted) -> None:
        if not self.session.model:
            self.action_models()
        else:
            self._send(event.text)

    def _send(self, text: str) -> None:
        if self.conversation is None:
            settings = self.session.settings
            self.conversation = self.store.create(one_line(text, _TITLE), self.session.model, settings.system_prompt)
        conversation_id, leaf = self.conversation.id, self.conversation.active_leaf
        parent = self.editing.parent_id if self.editing is not None else leaf
        self._ask(conversation_id, lambda turn: turn.send(conversation_id, parent, text))

    def action_regenerate(self) -> None:
        """Another answer in the place of the selected message, else of the last one of this branch."""
        if self.transcript.path:
            self._regenerate(self.transcript.selected or self.transcript.path[-1])

    def _regenerate(self, message: Message) -> None:
        question = message.id if message.role == "user" else message.parent_id
        if question is not None:
            self._ask(message.conversation_id, lambda turn: turn.answer(question))

    def _ask(self, conversation_id: int, ask: Ask) -> None:
        if self.session.reserve(conversation_id):
            self.run_worker(self._run_turn(conversation_id, ask), group="answers")
        else:
            self.say("An answer is being written. Esc stops it.")

    async def _run_turn(self, conversation_id: int, ask: Ask) -> None:
        drawing = asyncio.create_task(self._draw_live(conversation_id))
        try:
            await self.session.ask(conversation_id, ask, self._on_turn_event)
        except LocalLLMError as error:
            self.say(str(error), "error")
        finally:
            drawing.cancel()
            await asyncio.wait([drawing])
            if self.has_widgets:
                await self._turn_ended(conversation_id)
            if not drawing.cancelled():
                drawing.result()  # it ended by itself: raise the bug that ended it

    async def _on_turn_event(self, conversation_id: int, event: TurnEvent) -> None:
        if conversation_id != self.conversation_id or not self.has_widgets:
            return  # it is on the disk, and will be shown when its conversation is
        match event:
            case UserSaved():
                if self.editing is not None:
                    self.leave_edit()
                else:
                    self.prompt.put("")
                await self.show_branch()
                self.show_list()
            case AnswerStarted():
                await self.show_branch()
                ready = self.session.model in self.session.ready
                self._show_doing("" if ready else self.status.doing or f"loading {self.session.model}…")

    async def _draw_live(self, conversation_id: int) -> None:
        """Show what has come, some ten times a second, and less often when drawing takes long.

        A long answer is laid out afresh each time; neither the keys nor the stream must wait for that.
        """
        pause = _FRAME
        while True:
            began = time.monotonic()
            live = self.session.live.get(conversation_id)
            if live is not None and live.text and conversation_id == self.conversation_id and self.has_widgets:
                if (view := self._live_view()) is not None:
                    await view.show_text(live.text)
                self.status.doing = f"{live.n_tokens} tokens · {live.rate:.0f} tok/s · Esc stops"
            await asyncio.sleep(pause)
            busy = time.monotonic() - began - pause  # drawing here, and the layout that came during the sleep
            pause = max(_FRAME, 2 * busy)

    async def _turn_ended(self, conversation_id: int) -> None:
        self.show_list()
        if conversation_id == self.conversation_id:
            self.status.doing = ""
            for message_id in self.transcript.streaming:
                await self.transcript.finish(self.store.message(message_id))
            self.show_speed()
            self.refresh_bindings()

    def _live_view(self) -> MessageView | None:
        live = self.session.live.get(self.conversation_id) if self.conversation_id is not None else None
        return None if live is None or live.message_id is None else self.transcript.view(live.message_id)

    # ── keys ──

    def action_stop(self) -> None:
        """Stop the answer; what has been written of it stays."""
        if self.conversation_id is not None:
            self.session.cancel(self.conversation_id)

    def action_back(self) -> None:
        """Leave an edit; go back to the prompt."""
        if self.editing is not None:
            self.leave_edit()
        self.close_list()

    async def action_browse(self) -> None:
        """Go to the messages, and there to the one before."""
        if self.transcript.has_focus:
            await self.transcript.action_cursor(-1)
        elif self.transcript.path:
            self.transcript.focus()

    def action_page(self, direction: int) -> None:
        """Scroll the messages without leaving the prompt."""
        self.transcript.scroll_relative(y=direction * max(1, self.transcript.size.height - 2), animate=False)

    def action_help(self) -> None:
        """Show all keys."""
        groups = (
            ("Everywhere", [*self.app.BINDINGS, *self.BINDINGS]),
            ("Writing", Prompt.BINDINGS),
            ("On a message  (Alt+Up goes there)", Transcript.BINDINGS),
            ("In the list of conversations", ConversationList.BINDINGS),
        )
        self.app.push_screen(HelpScreen(groups))

    # ── messages ──

    @on(Transcript.Requested)
    def _requested(self, event: Transcript.Requested) -> None:
        self.act_on(event.what, event.message)

    def act_on(self, what: Request, message: Message) -> None:
        """Do what a person wants done with a message."""
        match what:
            case "edit":
                self._edit(message)
            case "regenerate":
                self._regenerate(message)
            case "copy":
                self.app.copy_to_clipboard(harmless(message.content))
                self.say("Message copied.")
            case "copy_code":
                self._copy_code(message)

    def _edit(self, message: Message) -> None:
        if message.role == "assistant" and message.parent_id is not None:
            message = self.store.message(message.parent_id)
        if self.editing is None:
            self._drafts[self.conversation_id] = self.prompt.text
        self.editing = message
        self.prompt.border_title = "Editing: Enter sends it as a new branch, Esc leaves"
        self.prompt.add_class("-editing")
        self.prompt.put(message.content)
        self.prompt.focus()

    def _copy_code(self, message: Message) -> None:
        def copy(block: CodeBlock | None) -> None:
            if block is not None:
                self.app.copy_to_clipboard(block.text)
                self.say("Code copied.")

        blocks = code_blocks(message.content)
        if len(blocks) > 1:
            self.app.push_screen(CodeDialog(blocks), copy)
        elif blocks:
            copy(blocks[0])
        else:
            self.say("There is no code in this message.")

    @on(Transcript.BranchRequested)
    @reported
    async def _branch_requested(self, event: Transcript.BranchRequested) -> None:
        siblings = self.store.siblings(event.message.id)
        at = [message.id for message in siblings].index(event.message.id) + event.step
        if 0 <= at < len(siblings):
            self.store.set_active(siblings[at].id)
            await self.show_branch(select=siblings[at].id)

    @on(Transcript.CursorMoved)
    def _cursor_moved(self) -> None:
        self.refresh_bindings()

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        """Offer only what can be done."""
        if action == "stop":
            return self.conversation_id in self.session.live
        if action == "back":
            return self.editing is not None or self.focused is not self.prompt
        if action in {"regenerate", "browse"}:
            return bool(self.transcript.path)
        return super().check_action(action, parameters)

    def commands(self) -> Iterable[SystemCommand]:
        """Everything for the command palette."""
        yield SystemCommand("New conversation", "Start a new conversation", self.action_new)
        yield SystemCommand("Pick a model", "See the models that are here and whether they fit", self.action_models)
        yield SystemCommand("Search conversations", "In all titles and messages", self.action_search)
        yield SystemCommand("Show or hide the list", "The list of conversations", self.action_toggle_list)
        if self.conversation is not None:
            yield SystemCommand("Rename conversation", "Give it another title", self.action_rename)
            yield SystemCommand("Delete conversation", "It can be undone", self.action_delete)
            yield SystemCommand("Export conversation", "Save this branch as markdown", self.action_export)
        if self._deleted:
            yield SystemCommand("Undo delete", "Bring back what was deleted last", self.action_undo_delete)
        message = self.transcript.selected or self.transcript.last_answer
        if message is not None:
            yield SystemCommand("Regenerate answer", "As a new branch", lambda: self.act_on("regenerate", message))
            yield SystemCommand("Edit question", "As a new branch", lambda: self.act_on("edit", message))
            yield SystemCommand("Copy message", "To the clipboard", lambda: self.act_on("copy", message))
            yield SystemCommand(
                "Copy code", "A block of code of the message", lambda: self.act_on("copy_code", message)
            )
            if self.transcript.position(message.id)[1] > 1:
                yield SystemCommand("Branch before", "Of this message", lambda: self._other_branch(message, -1))
                yield SystemCommand("Branch after", "Of this message", lambda: self._other_branch(message, 1))
        if self.conversation_id in self.session.live:
            yield SystemCommand("Stop the answer", "Its text so far is kept", self.action_stop)

    def _other_branch(self, message: Message, step: int) -> None:
        self.transcript.post_message(Transcript.BranchRequested(message, step))
