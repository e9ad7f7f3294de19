"""A chat line by line: no full-screen drawing, no colour, every turn says who speaks. For screen readers too."""

import asyncio
import re
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol, cast

from app.cli.output import print_table
from app.turn import AnswerDelta, AnswerDone, AnswerFailed, ChatClient, ChatTurn, TurnEvent
from localllm.conversations import ConversationStore, Message
from localllm.errors import LocalLLMError
from localllm.sanitize import one_line, printable
from serve.events import StreamDone, StreamEvent

if TYPE_CHECKING:
    from serve.client import ChatOptions
    from serve.registry import Registry, Served

_HELP = '''\
/new           start a new conversation
/model [NAME]  go on with another model; without a name, list what is here
/regenerate    another answer to your last message
/edit [TEXT]   change your last message and send it again
/quit          end (Ctrl-D too)
Ctrl-C stops an answer and keeps what has come. A message of several lines: end a line with \\,
or put """ before and after. A message that begins with / needs a space before it.'''
_COMMAND = re.compile(r"/[a-z]+")
_TITLE_LENGTH = 60


class ClosableClient(ChatClient, Protocol):
    """What a chat needs of a ``ServeClient``."""

    async def aclose(self) -> None:
        """Close its connections."""


class LineReader(Protocol):
    """Where a person's lines come from."""

    def __call__(self, prompt: str, prefill: str = "") -> str:
        """One line; EOFError at the end, KeyboardInterrupt on Ctrl-C. ``prefill`` is there to be edited."""


def read_terminal_line(prompt: str, prefill: str = "") -> str:
    """A line from standard input, edited with readline where Python has it. No history reaches the disk."""
    try:
        # Importing it is what gives input() its line editing.
        import readline
    except ImportError:
        return input(prompt)
    readline.set_startup_hook(lambda: readline.insert_text(prefill))
    try:
        return input(prompt)
    finally:
        readline.set_startup_hook()


def stats_line(done: StreamDone) -> str:
    """``41.2 tok/s, 18 prompt tokens, first token 0.21 s``."""
    line = f"{done.tokens_per_second:.1f} tok/s, {done.n_prompt} prompt tokens, first token {done.prompt_seconds:.2f} s"
    return f"{line}, cut at the longest length allowed" if done.reason == "length" else line


class ConnectOnDemand:
    """A client that connects with its first request: by then the message is on the disk, and a failure is an answer's.

    Args:
        connect: Finds or starts the server.
    """

    def __init__(self, connect: Callable[[], Awaitable[ClosableClient]]) -> None:
        self._connect = connect
        self._client: ClosableClient | None = None

    async def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: "ChatOptions"
    ) -> AsyncGenerator[StreamEvent, None]:
        """As ``ServeClient.stream_chat``."""
        if self._client is None:
            self._client = await self._connect()
        # The protocol promises an iterator that can be closed; every such one in Python is a generator.
        stream = cast("AsyncGenerator[StreamEvent, None]", self._client.stream_chat(model, messages, options))
        async with aclosing(stream):
            async for event in stream:
                yield event

    async def aclose(self) -> None:
        """Close the connections, if there ever were any."""
        if self._client is not None:
            await self._client.aclose()


class LineChat:
    """A conversation on lines; kept in the conversation store like every other.

    Attributes:
        models: Where names are looked up.
        conversations: Where messages are kept.
        client: The server.
        options: Sampling options.
        system_prompt: Put before each new conversation.
        read_line: Asks the person.
        show_stats: Print speed and counts after each answer, to standard error.
    """

    def __init__(
        self,
        models: "Registry",
        conversations: ConversationStore,
        client: ClosableClient,
        model: "Served",
        options: "ChatOptions",
        *,
        system_prompt: str = "",
        read_line: LineReader = read_terminal_line,
        show_stats: bool = True,
    ) -> None:
        self.models = models
        self.conversations = conversations
        self.client = client
        self.options = options
        self.system_prompt = system_prompt
        self.read_line = read_line
        self.show_stats = show_stats
        self._model = model
        self._conversation_id: int | None = None

    def run(self) -> None:
        """Talk until the person ends it."""
        print(f"Chat with {self._model.name}. /help lists the commands, /quit or Ctrl-D ends.")
        # The loop runs only during an answer. That leaves the waiting to input(), with its line editing, and lets
        # the runner turn Ctrl-C into the cancelling of the answer alone.
        with asyncio.Runner() as runner:
            try:
                while (text := self._read_message()) is not None:
                    if text.strip() and not self._act(runner, text):
                        break
            finally:
                runner.run(self.client.aclose())

    # ── reading ──

    def _read_message(self) -> str | None:
        """A message or command, several lines joined; None at the end of input."""
        while True:
            try:
                line = self.read_line("You: ")
                if line.strip().startswith('"""'):
                    return self._read_quoted(line.strip()[3:])
                lines = [line]
                while lines[-1].endswith("\\"):
                    lines[-1] = lines[-1][:-1]
                    lines.append(self.read_line("more: "))
                return "\n".join(lines)
            except KeyboardInterrupt:
                print("\n(Ctrl-D or /quit ends the chat.)")
            except EOFError:
                print()
                return None

    def _read_quoted(self, first: str) -> str:
        lines = [first]
        while not lines[-1].rstrip().endswith('"""'):
            lines.append(self.read_line("more: "))
        lines[-1] = lines[-1].rstrip()[:-3]
        return "\n".join(lines).strip("\n")

    # ── commands ──

    def _act(self, runner: asyncio.Runner, text: str) -> bool:
        """Do what was typed; False ends the chat."""
        word, _, rest = text.partition(" ")
        try:
            if not _COMMAND.fullmatch(word):
                self._send(runner, text.strip())
                return True
            match word:
                case "/quit" | "/exit":
                    return False
                case "/help":
                    print(_HELP)
                case "/new":
                    self._conversation_id = None
                    print("A new conversation.")
                case "/model":
                    self._choose_model(rest.strip())
                case "/regenerate":
                    self._regenerate(runner)
                case "/edit":
                    self._edit(runner, rest.strip())
                case _:
                    print(f"There is no command {one_line(word)}. /help lists them; a space before / sends it as text.")
        except LocalLLMError as error:
            _print_error(error)
        return True

    def _choose_model(self, name: str) -> None:
        if not name:
            rows = [("*" if m == self._model else "", m.name, m.manifest.quantization) for m in self.models.list()]
            print_table(("", "model", "type"), rows)
            return
        self._model = self.models.resolve(name)
        if self._conversation_id is not None:
            self.conversations.set_model(self._conversation_id, self._model.name)
        print(f"Now with {self._model.name}.")

    def _send(self, runner: asyncio.Runner, text: str) -> None:
        if self._conversation_id is None:
            created = self.conversations.create(one_line(text, _TITLE_LENGTH), self._model.name, self.system_prompt)
            self._conversation_id = created.id
        conversation = self.conversations.get(self._conversation_id)
        self._stream(runner, lambda turn: turn.send(conversation.id, conversation.active_leaf, text))

    def _regenerate(self, runner: asyncio.Runner) -> None:
        last = self._last("assistant")
        if last is None:
            print("There is no answer yet.")
        else:
            self._stream(runner, lambda turn: turn.regenerate(last.id))

    def _edit(self, runner: asyncio.Runner, text: str) -> None:
        last = self._last("user")
        if last is None:
            print("There is no message yet.")
            return
        if not text:
            several = "\n" in last.content
            if several:
                print(printable(last.content))
            try:
                # readline edits a single line; a longer message is shown, and typed anew.
                text = self.read_line("Edited: ", "" if several else printable(last.content)).strip()
            except (KeyboardInterrupt, EOFError):
                print()
        if text:
            self._stream(runner, lambda turn: turn.send(last.conversation_id, last.parent_id, text))
        else:
            print("Nothing changed.")

    def _last(self, role: str) -> Message | None:
        if self._conversation_id is None:
            return None
        path = self.conversations.active_path(self._conversation_id)
        return next((message for message in reversed(path) if message.role == role), None)

    # ── answering ──

    def _stream(self, runner: asyncio.Runner, start: Callable[[ChatTurn], AsyncGenerator[TurnEvent, None]]) -> None:
        try:
            runner.run(self._show(start))
        except KeyboardInterrupt:
            print("\n(Stopped; what has come is kept.)")

    async def _show(self, start: Callable[[ChatTurn], AsyncGenerator[TurnEvent, None]]) -> None:
        turn = ChatTurn(self.conversations, self.client, self._model.name, self.options)
        # Named with the first word of the answer, after whatever was said about a server that had to be started.
        prefix = f"{self._model.manifest.name}: "
        async with aclosing(start(turn)) as events:
            async for event in events:
                match event:
                    case AnswerDelta(text):
                        print(prefix + printable(text), end="", flush=True)
                        prefix = ""
                    case AnswerDone(_, usage):
                        print(prefix, flush=True)
                        if self.show_stats:
                            print(stats_line(usage), file=sys.stderr)
                    case AnswerFailed(_, error):
                        if not prefix:
                            print(flush=True)
                        _print_error(error)
                        print("Your message is kept; /regenerate asks again.")


def _print_error(error: LocalLLMError) -> None:
    sys.stdout.flush()
    print(printable(f"Error: {error.message} {error.hint}".rstrip()), file=sys.stderr)
