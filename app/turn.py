"""One turn of a chat, without a screen: persist, stream, flush, finish. The terminal app and the plain chat use it."""

import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol, cast

from localllm.conversations import ConversationStore, Message
from localllm.errors import ConversationError, LocalLLMError, ServerError
from serve.events import StreamDone, StreamEvent, TextDelta

if TYPE_CHECKING:
    # The client's module brings the HTTP library (about 150 ms); only its type is wanted here.
    from serve.client import ChatOptions

FLUSH_SECONDS = 1.0


class ChatClient(Protocol):
    """The part of ``ServeClient`` that a turn needs."""

    def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: "ChatOptions"
    ) -> AsyncIterator[StreamEvent]:
        """Stream an answer; closing the iterator cancels it."""


@dataclass(frozen=True)
class UserSaved:
    """The person's message is on the disk."""

    message: Message


@dataclass(frozen=True)
class AnswerStarted:
    """The answer has its place in the tree; the request goes out now."""

    message: Message


@dataclass(frozen=True)
class AnswerDelta:
    """More text of the answer, as it came: not yet made printable."""

    text: str


@dataclass(frozen=True)
class AnswerDone:
    """The answer is complete and saved."""

    message: Message
    usage: StreamDone


@dataclass(frozen=True)
class AnswerFailed:
    """The answer broke off; the text so far and the error are saved."""

    message: Message
    error: LocalLLMError


TurnEvent = UserSaved | AnswerStarted | AnswerDelta | AnswerDone | AnswerFailed


def prompt_messages(path: Sequence[Message], system_prompt: str = "") -> list[dict[str, str]]:
    """What is sent for a branch that ends with a person's message.

    Answers without text (failed, cancelled at once) are left out. Two messages of the same role that come to stand
    side by side are joined, because many chat templates refuse roles that do not alternate.
    """
    messages = [{"role": "system", "content": system_prompt}] if system_prompt else []
    for message in path:
        if not message.content:
            continue
        if messages and messages[-1]["role"] == message.role:
            messages[-1]["content"] += "\n\n" + message.content
        else:
            messages.append({"role": message.role, "content": message.content})
    return messages


class ChatTurn:
    """Asks a model and keeps what happens in the conversation store.

    The three ways to ask (:meth:`send`, :meth:`regenerate`, :meth:`answer`) are one path. Each is an asynchronous
    generator; closing it, or cancelling the task that runs it, cancels the request and saves the text so far as
    ``cancelled``. Use ``contextlib.aclosing`` around it.

    Args:
        conversations: Where messages are kept.
        client: The server.
        model: The model to ask.
        options: Sampling options of the request.
        clock: Seconds, for the flushing.
    """

    def __init__(
        self,
        conversations: ConversationStore,
        client: ChatClient,
        model: str,
        options: "ChatOptions",
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conversations = conversations
        self._client = client
        self._model = model
        self._options = options
        self._clock = clock

    async def send(self, conversation_id: int, parent_id: int | None, text: str) -> AsyncGenerator[TurnEvent, None]:
        """Save a person's message after ``parent_id`` and stream the answer to it.

        To continue a conversation, the parent is its active leaf; to edit a message, it is that message's parent.

        Raises:
            ConversationError: There is no such conversation or parent.
        """
        user = self._conversations.append(conversation_id, parent_id, "user", text)
        yield UserSaved(user)
        async with aclosing(self.answer(user.id)) as events:
            async for event in events:
                yield event

    async def regenerate(self, assistant_message_id: int) -> AsyncGenerator[TurnEvent, None]:
        """Stream another answer beside the given one.

        Raises:
            ConversationError: There is no such message, or it is no answer.
        """
        message = self._conversations.message(assistant_message_id)
        if message.role != "assistant" or message.parent_id is None:
            raise ConversationError("Only an answer can be generated again.")
        async with aclosing(self.answer(message.parent_id)) as events:
            async for event in events:
                yield event

    async def answer(self, user_message_id: int) -> AsyncGenerator[TurnEvent, None]:
        """Stream an answer to a message that is saved already.

        Raises:
            ConversationError: There is no such message.
        """
        store = self._conversations
        path = store.path_to(user_message_id)
        conversation = store.get(path[-1].conversation_id)
        prompt = prompt_messages(path, conversation.system_prompt)
        message = store.append(conversation.id, user_message_id, "assistant", "", status="streaming", model=self._model)
        pieces: list[str] = []
        flushed = self._clock()
        try:
            yield AnswerStarted(message)
            done: StreamDone | None = None
            # The protocol promises an iterator that can be closed; every such one in Python is a generator.
            stream = cast(
                "AsyncGenerator[StreamEvent, None]", self._client.stream_chat(self._model, prompt, self._options)
            )
            async with aclosing(stream):
                async for event in stream:
                    match event:
                        case TextDelta(text):
                            pieces.append(text)
                            if self._clock() - flushed >= FLUSH_SECONDS:
                                store.update_text(message.id, "".join(pieces))
                                flushed = self._clock()
                            yield AnswerDelta(text)
                        case StreamDone():
                            done = event
            if done is None:
                raise ServerError("The answer broke off: the server closed the connection.")
            message = store.finish(message.id, "done", "".join(pieces), usage=usage_record(done))
            yield AnswerDone(message, done)
        except LocalLLMError as error:
            message = store.finish(message.id, "error", "".join(pieces), error=str(error))
            yield AnswerFailed(message, error)
        finally:
            # Closed, cancelled, or a bug: what has come so far is kept. After "done" and "error" this changes nothing.
            store.finish(message.id, "cancelled", "".join(pieces))


def usage_record(done: StreamDone) -> dict[str, Any]:
    """The counts and times of an answer as they are kept beside it."""
    return {**asdict(done), "tokens_per_second": round(done.tokens_per_second, 2)}
