"""The output items of an answer of the Responses API, and the events that tell how they come about."""

import uuid
from collections.abc import Iterable, Iterator, Sequence
from itertools import count
from typing import Any, Literal

from serve.engine.types import TokenLogprob
from serve.http.errors import ErrorReply
from serve.http.logprobs import chat_token
from serve.http.sse import sse_event
from serve.toolcalls.plan import new_call_id
from serve.toolcalls.types import CallArguments, CallStart, Part, TextPart, ToolFormat

Status = Literal["in_progress", "completed", "incomplete"]


class EventWriter:
    """Writes the events of one answer, numbered."""

    def __init__(self) -> None:
        self._numbers = count()

    def event(self, kind: str, **fields: object) -> bytes:
        """One event."""
        return sse_event({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def error(self, reply: ErrorReply) -> bytes:
        """The event that ends a stream before its time."""
        detail = reply.body["error"]
        return self.event("error", code=detail["code"], message=detail["message"], param=detail["param"])


class OutputItems:
    """Puts the items of one answer together, and writes their events.

    Args:
        writer: Writes the events.
        tool_format: How the model writes calls.

    Attributes:
        items: Those that are complete.
    """

    def __init__(self, writer: EventWriter, tool_format: ToolFormat) -> None:
        self.items: list[dict[str, Any]] = []
        self._writer = writer
        self._tool_format = tool_format
        self._open: dict[str, Any] | None = None
        self._text = ""  # or arguments
        self._logprobs: list[dict[str, Any]] = []

    def more(self, parts: Iterable[Part], tokens: Sequence[TokenLogprob] = ()) -> Iterator[bytes]:
        """The events of more parts; ``tokens`` are those of the text."""
        reported = [chat_token(token) for token in tokens]
        for part in parts:
            match part:
                case TextPart(text):
                    yield from self._more_text(text, reported)
                    reported = []
                case CallStart(name=name):
                    yield from self._close("completed")
                    call_id = new_call_id(self._tool_format)
                    fields = {"type": "function_call", "call_id": call_id, "name": name, "arguments": ""}
                    yield self._begin({"id": f"fc_{uuid.uuid4().hex}", **fields, "status": "in_progress"})
                case CallArguments(text=text):
                    self._text += text
                    yield self._writer.event("response.function_call_arguments.delta", **self._place(), delta=text)
        if reported:  # a last token without text
            yield from self._more_text("", reported)

    def end(self, status: Status) -> Iterator[bytes]:
        """The events after the last part; an answer has one item at least.

        Args:
            status: Of the item that was open.
        """
        if self._open is None and not self.items:
            yield from self._begin_message()
        yield from self._close(status)

    def _more_text(self, text: str, logprobs: list[dict[str, Any]]) -> Iterator[bytes]:
        if self._open is None or self._open["type"] != "message":
            yield from self._close("completed")
            yield from self._begin_message()
        self._text += text
        self._logprobs += logprobs
        place = {**self._place(), "content_index": 0}
        yield self._writer.event("response.output_text.delta", **place, delta=text, logprobs=logprobs)

    def _begin_message(self) -> Iterator[bytes]:
        item_id = f"msg_{uuid.uuid4().hex}"
        yield self._begin(
            {"id": item_id, "type": "message", "status": "in_progress", "role": "assistant", "content": []}
        )
        place = {**self._place(), "content_index": 0}
        yield self._writer.event("response.content_part.added", **place, part=self._text_part())

    def _begin(self, item: dict[str, Any]) -> bytes:
        self._open, self._text, self._logprobs = item, "", []
        return self._writer.event("response.output_item.added", output_index=len(self.items), item=item)

    def _close(self, status: Status) -> Iterator[bytes]:
        item = self._open
        if item is None:
            return
        place = self._place()
        if item["type"] == "message":
            part = self._text_part()
            item = {**item, "status": status, "content": [part]}
            place["content_index"] = 0
            logprobs = part["logprobs"]
            yield self._writer.event("response.output_text.done", **place, text=self._text, logprobs=logprobs)
            yield self._writer.event("response.content_part.done", **place, part=part)
        else:
            item = {**item, "status": status, "arguments": self._text}
            named = {"name": item["name"], "arguments": self._text}
            yield self._writer.event("response.function_call_arguments.done", **place, **named)
        yield self._writer.event("response.output_item.done", output_index=len(self.items), item=item)
        self.items.append(item)
        self._open = None

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self.items)}

    def _text_part(self) -> dict[str, Any]:
        return {"type": "output_text", "text": self._text, "annotations": [], "logprobs": self._logprobs}
