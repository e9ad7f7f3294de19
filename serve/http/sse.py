"""Server-sent events: chunks from prebuilt byte templates, and the response that sends them.

A chunk is the bytes before the text, the text as a JSON string, and the bytes after it: one token costs one small
``json.dumps``, no model validation and no dictionary.
"""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from localllm.errors import LocalLLMError
from serve.engine.types import Usage
from serve.http.dialects import error_body
from serve.http.disconnect import ClientGoneError, unless_disconnected
from serve.http.errors import ErrorReply, HTTPError, describe
from serve.http.replies import timing_fields, usage_fields

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"  # a comment: every client of server-sent events skips it
IDLE_SECONDS = 12.0  # proxies and clients give up on a connection that says nothing, some after 30 s
_PLACE = "\0text\0"
_OBJECTS = {"chat": "chat.completion.chunk", "text": "text_completion"}


class ChunkWriter:
    """Writes the chunks of one streamed answer.

    Args:
        kind: ``chat`` or ``text``, for /v1/chat/completions or /v1/completions.
        answer_id: The answer's id.
        created: Unix seconds.
        model: The model that answers.
        n_choices: Number of choices.
        include_usage: The client asked for the usage; every chunk but the last then carries ``"usage": null``.
    """

    def __init__(
        self,
        kind: Literal["chat", "text"],
        answer_id: str,
        created: int,
        model: str,
        n_choices: int = 1,
        include_usage: bool = False,
    ) -> None:
        self._kind = kind
        self._head = {"id": answer_id, "object": _OBJECTS[kind], "created": created, "model": model}
        self._usage_null: dict[str, Any] = {"usage": None} if include_usage else {}
        self._templates = [self._template(index) for index in range(n_choices)]

    def first(self, index: int) -> bytes:
        """The chunk that says that the choice has begun."""
        delta = {"role": "assistant", "content": ""}
        return self._frame([self._choice(index, delta if self._kind == "chat" else "")], **self._usage_null)

    def text(self, index: int, text: str, logprobs: dict[str, Any] | None = None) -> bytes:
        """A chunk of text. Non-ASCII is escaped: some clients split lines at U+2028 and its kin."""
        if logprobs is not None:
            content = {"content": text} if self._kind == "chat" else text
            return self._frame([{**self._choice(index, content), "logprobs": logprobs}], **self._usage_null)
        before, after = self._templates[index]
        return before + json.dumps(text).encode("ascii") + after

    def call(self, index: int, call: dict[str, Any]) -> bytes:
        """A chunk that begins a tool call or goes on with its arguments."""
        return self._frame([self._choice(index, {"tool_calls": [call]})], **self._usage_null)

    def last(self, index: int, reason: str, usage: Usage, n_ctx: int) -> bytes:
        """The chunk that ends a choice, with our own ``timings``."""
        choice = self._choice(index, {} if self._kind == "chat" else "", reason)
        return self._frame([choice], timings=timing_fields([usage], n_ctx), **self._usage_null)

    def usage(self, usages: Sequence[Usage], n: int = 1) -> bytes:
        """The chunk after all choices, with the usage and no choice; as in :func:`usage_fields`."""
        return self._frame([], usage=usage_fields(usages, n))

    def _choice(self, index: int, content: object, reason: str | None = None) -> dict[str, Any]:
        name = "delta" if self._kind == "chat" else "text"
        return {"index": index, name: content, "logprobs": None, "finish_reason": reason}

    def _frame(self, choices: list[dict[str, Any]], **more: object) -> bytes:
        return sse_event({**self._head, "choices": choices, **more})

    def _template(self, index: int) -> tuple[bytes, bytes]:
        content: object = {"content": _PLACE} if self._kind == "chat" else _PLACE
        frame = self._frame([self._choice(index, content)], **self._usage_null)
        before, _, after = frame.partition(json.dumps(_PLACE).encode("ascii"))
        return before, after


def sse_event(record: dict[str, Any], name: str = "") -> bytes:
    """One server-sent event, with a name where the API names its events."""
    head = f"event: {name}\n".encode("ascii") if name else b""
    return head + b"data: " + json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n\n"


@dataclass(frozen=True)
class StreamStyle:
    """How an API streams.

    Attributes:
        media_type: Of the whole answer.
        error: The event that tells about an error in the middle.
        idle: What is sent while there is nothing to send; empty where the API has nothing that its clients skip.
    """

    media_type: str
    error: Callable[[ErrorReply], bytes]
    idle: bytes = KEEP_ALIVE


OPENAI_STREAM = StreamStyle("text/event-stream", lambda reply: sse_event(error_body("openai", reply)))


class EventStream(Response):
    """A streamed answer. Its status is 200: its first event is known, or has taken too long to be waited for.

    What goes wrong from here on is sent as an event in the API's error shape, and nothing after it. A client that goes
    away closes ``frames``, which cancels the request in the engine.

    Args:
        first: Gives the first event.
        frames: The others.
        style: How the API streams.
    """

    def __init__(self, first: asyncio.Task[bytes], frames: AsyncGenerator[bytes, None], style: StreamStyle) -> None:
        super().__init__(media_type=style.media_type, headers={"cache-control": "no-store"})
        self._style = style
        # The length is not known before the end.
        del self.headers["content-length"]
        self._first = first
        self._last = float("-inf")  # when something was sent
        self._frames = frames

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002  ASGI's signature
        """Send everything, or stop when the client goes away."""
        try:
            await unless_disconnected(receive, self._write(send))
        except ClientGoneError:
            return
        finally:
            await _give_up(self._first, self._frames)

    async def _write(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        try:
            # Beside the frames: a time limit on each of them would cost more than the frame.
            async with _beside(self._keep_alive(send)):
                await self._send(send, await self._first)
                async for frame in self._frames:
                    await self._send(send, frame)
        except LocalLLMError as error:
            await self._end(send, self._style.error(describe(error)))
        except Exception:
            # A bug: the client learns that the answer is not whole, the log gets the traceback.
            await self._end(send, self._style.error(describe(HTTPError(500, "server_failed", "The server failed."))))
            raise
        else:
            await self._end(send, b"")

    async def _send(self, send: Send, frame: bytes) -> None:
        self._last = time.monotonic()
        await send({"type": "http.response.body", "body": frame, "more_body": True})

    async def _keep_alive(self, send: Send) -> None:
        """Say that the answer is still coming, whenever nothing was sent for a while."""
        while self._style.idle:
            left = self._last + IDLE_SECONDS - time.monotonic()
            if left > 0:
                await asyncio.sleep(left)
            else:
                await self._send(send, self._style.idle)

    @staticmethod
    async def _end(send: Send, body: bytes) -> None:
        await send({"type": "http.response.body", "body": body, "more_body": False})


@asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Run ``work`` inside, and end it."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def _give_up(first: asyncio.Task[bytes], frames: AsyncGenerator[bytes, None]) -> None:
    """Close ``frames``, whoever waits for them."""
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    await frames.aclose()


async def _first(frames: AsyncGenerator[bytes, None]) -> bytes:
    return await anext(frames)


async def open_stream(
    receive: Receive, frames: AsyncGenerator[bytes, None], style: StreamStyle = OPENAI_STREAM
) -> EventStream:
    """Wait for the first event of ``frames``, so that an error before it still gets its own status.

    It is not waited for longer than a client waits: then the answer begins without it, and an error becomes an event.

    Raises:
        LocalLLMError: As ``frames`` raises before its first event.
        ClientGoneError: The client did not wait.
    """
    first = asyncio.create_task(_first(frames))
    try:
        await unless_disconnected(receive, asyncio.wait({first}, timeout=IDLE_SECONDS if style.idle else None))
        if first.done():
            first.result()
    except BaseException:
        await _give_up(first, frames)
        raise
    return EventStream(first, frames, style)
