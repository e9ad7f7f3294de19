"""The content blocks of an answer of Anthropic's Messages API, whole or as events."""

import json
import uuid
from collections.abc import Iterable, Iterator
from typing import Any, Literal

from serve.http.sse import sse_event
from serve.toolcalls.types import CallArguments, CallStart, Part, TextPart

_TEXT_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,'
    b'"delta":{"type":"text_delta","text":%s}}\n\n'
)


def event(kind: str, **more: object) -> bytes:
    """One event, which is named twice."""
    return sse_event({"type": kind, **more}, kind)


def whole_blocks(parts: Iterable[Part]) -> list[dict[str, Any]]:
    """The blocks of an answer that is there; one of empty text where there is nothing.

    A call whose arguments were cut off, so that they are no JSON object, has an empty ``input``.
    """
    blocks: list[dict[str, Any]] = []
    for part in parts:
        match part:
            case TextPart(text) if blocks and blocks[-1]["type"] == "text":
                blocks[-1]["text"] += text
            case TextPart(text):
                blocks.append(_text_block(text))
            case CallStart(name=name):
                blocks.append({**_call_block(name), "input": ""})
            case CallArguments(text=text):
                blocks[-1]["input"] += text
    for block in blocks:
        if block["type"] == "tool_use":
            block["input"] = _object(block["input"])
    return blocks or [_text_block("")]


class BlockEvents:
    """Writes the events of one answer's blocks."""

    def __init__(self) -> None:
        self._index = -1
        self._open: Literal["text", "tool_use"] | None = None

    def events(self, parts: Iterable[Part]) -> Iterator[bytes]:
        """The events that tell of more parts."""
        for part in parts:
            match part:
                case TextPart(text):
                    if self._open != "text":
                        yield from self._begin("text", _text_block(""))
                    yield _TEXT_DELTA % (self._index, json.dumps(text).encode("ascii"))
                case CallStart(name=name):
                    yield from self._begin("tool_use", _call_block(name))
                case CallArguments(text=text):
                    delta = {"type": "input_json_delta", "partial_json": text}
                    yield event("content_block_delta", index=self._index, delta=delta)

    def end(self) -> Iterator[bytes]:
        """The events after the last part; an answer has one block at least."""
        if self._index < 0:
            yield from self._begin("text", _text_block(""))
        yield event("content_block_stop", index=self._index)

    def _begin(self, kind: Literal["text", "tool_use"], block: dict[str, Any]) -> Iterator[bytes]:
        if self._open is not None:
            yield event("content_block_stop", index=self._index)
        self._index += 1
        self._open = kind
        yield event("content_block_start", index=self._index, content_block=block)


def _text_block(text: str) -> dict[str, Any]:
    return {"type": "text", "text": text, "citations": None}


def _call_block(name: str) -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{uuid.uuid4().hex}", "name": name, "input": {}}


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
