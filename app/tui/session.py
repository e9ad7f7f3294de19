"""What the app holds besides its screens: the model it talks to, and the server, found again when it has gone."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

from app.turn import AnswerDelta, AnswerStarted, ChatTurn, TurnEvent
from localllm.adapters import AdapterStore
from localllm.conversations import ConversationStore
from localllm.errors import ModelNotFoundError, RequestError, ServerError
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.settings import Settings
from serve.events import StreamEvent
from serve.registry import Registry

if TYPE_CHECKING:
    from serve.client import ChatOptions, ServeClient

_WORDS = re.compile(r"\w+|[^\w\s]+")

Connect = Callable[..., Awaitable["ServeClient"]]
Ask = Callable[[ChatTurn], AsyncGenerator[TurnEvent, None]]
Listener = Callable[[int, TurnEvent], Awaitable[None]]


@dataclass
class LiveAnswer:
    """An answer that is being written.

    Attributes:
        task: Who writes it; None until it runs.
        message_id: Its place in the tree; None until it has one.
        text: What has come so far.
        n_tokens: About as many tokens it has; a piece that came at once may be several.
        began: When the first piece came, in seconds of a clock that never goes back.
    """

    task: "asyncio.Task[None] | None" = None
    message_id: int | None = None
    text: str = ""
    n_tokens: int = 0
    began: float = 0.0

    def add(self, text: str) -> None:
        """Take note of one more piece."""
        self.began = self.began or time.monotonic()
        self.text += text
        self.n_tokens += max(1, len(_WORDS.findall(text)))

    @property
    def rate(self) -> float:
        """Tokens a second so far."""
        seconds = time.monotonic() - self.began
        return (self.n_tokens - 1) / seconds if seconds > 0 else 0.0


class Session:
    """Models, conversations and the connection, without any drawing.

    It is a ``ChatClient`` itself: a turn that asks it is connected first, so that the person's message is on the disk
    before the server is even looked for.

    Args:
        home, settings, store, conversations: As everywhere.
        connect: Finds or starts the server; called as ``connect(home, settings, on_status=…)``.
        on_status: Hears what the connection is doing, in a few words; empty when it is done.
        jobs: Long work; the home's own by default.
    """

    def __init__(
        self,
        home: Home,
        settings: Settings,
        store: ModelStore,
        conversations: ConversationStore,
        connect: Connect,
        on_status: Callable[[str], None] = lambda _: None,
        *,
        jobs: JobStore | None = None,
    ) -> None:
        self.home = home
        self.jobs = jobs or JobStore(home)
        self.settings = settings
        self.store = store
        self.conversations = conversations
        self.model = ""
        self.ready: set[str] = set()
        self.live: dict[int, LiveAnswer] = {}
        self.on_status = on_status
        self._connect = connect
        self._client: ServeClient | None = None
        self._connecting = asyncio.Lock()

    # ── model and server ──

    def find_model(self, name: str = "") -> str:
        """The full name of a model that is here: the one asked for, else the settings' one, else any; "" for none.

        Reads the disk: call it in a thread.
        """
        for wanted in (name, self.settings.model):
            if wanted:
                try:
                    return Registry(self.store, AdapterStore(self.home)).resolve(wanted).name
                except (ModelNotFoundError, RequestError):
                    continue  # removed since, or no name at all
        return next((str(manifest.model_name) for manifest in self.store.list()), "")

    async def warm(self, model: str) -> None:
        """Connect and load a model, so that the first answer does not wait for it.

        Raises:
            LocalLLMError: As ``connect`` and ``ServeClient.load`` do.
        """
        client = await self._connected()
        self.on_status(f"loading {model}…")
        try:
            await client.load(model)
        except ServerError:
            await self._drop(client)
            raise
        finally:
            self.on_status("")
        self.ready.add(model)

    async def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: "ChatOptions"
    ) -> AsyncGenerator[StreamEvent, None]:
        """Stream an answer, after connecting where that is needed; a server that has gone is looked for next time.

        Raises:
            LocalLLMError: As ``connect`` and ``ServeClient.stream_chat`` do.
        """
        client = await self._connected()
        stream = cast("AsyncGenerator[StreamEvent, None]", client.stream_chat(model, messages, options))
        try:
            async with aclosing(stream):
                async for event in stream:
                    self.ready.add(model)
                    yield event
        except ServerError:
            await self._drop(client)
            raise

    async def close(self) -> None:
        """Stop every answer (their texts are saved) and leave the server."""
        tasks = [live.task for live in self.live.values() if live.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)  # their errors were reported by the tasks themselves
        if self._client is not None:
            await self._drop(self._client)

    async def _connected(self) -> "ServeClient":
        async with self._connecting:  # the warm-up and the first message must not start two servers
            if self._client is None:
                self.on_status("connecting…")
                try:
                    self._client = await self._connect(self.home, self.settings, on_status=self.on_status)
                finally:
                    self.on_status("")
            return self._client

    async def _drop(self, client: "ServeClient") -> None:
        self.ready.clear()
        if self._client is client:
            self._client = None
            await client.aclose()

    # ── answers ──

    def turn(self, model: str) -> ChatTurn:
        """A turn with this session's options."""
        # Deferred: the client's module is wanted by no other part of the app's start.
        from serve.client import ChatOptions

        options = ChatOptions(temperature=self.settings.temperature, max_tokens=self.settings.max_tokens or None)
        return ChatTurn(self.conversations, self, model, options)

    def reserve(self, conversation_id: int) -> bool:
        """Take the one place that a conversation has for an answer under way; False when it is taken.

        At once, before any task runs: a second Enter may be in the queue already.
        """
        if conversation_id in self.live:
            return False
        self.live[conversation_id] = LiveAnswer()
        return True

    async def ask(self, conversation_id: int, ask: Ask, listener: Listener) -> None:
        """Run one turn in the reserved place, tell the listener every event. Cancelling it saves the text so far.

        Raises:
            ConversationError: The conversation is not there any more.
        """
        live = self.live[conversation_id]
        live.task = asyncio.current_task()
        try:
            async with aclosing(ask(self.turn(self.model))) as events:
                async for event in events:
                    match event:
                        case AnswerStarted(message):
                            live.message_id = message.id
                        case AnswerDelta(text):
                            live.add(text)
                    await listener(conversation_id, event)
        finally:
            del self.live[conversation_id]

    def cancel(self, conversation_id: int) -> bool:
        """Stop the answer of a conversation; False when there is none."""
        live = self.live.get(conversation_id)
        if live is None or live.task is None:
            return False
        live.task.cancel()
        return True
