"""Tools in Ollama's API: calls have no ids there, their arguments are objects, and they come in one piece."""

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar

from pydantic import Field

from serve.http.tool_types import CallId
from serve.http.wire_types import Inert, Wire, anything
from serve.toolcalls.types import CallArguments, CallStart, Part, TextPart


class CalledFunction(Wire):
    """What was called."""

    INERT: ClassVar[Inert] = {"index": anything}

    name: str = Field(min_length=1, max_length=256)
    arguments: dict[str, Any] = Field(default_factory=dict)


class OllamaCall(Wire):
    """A call in the history."""

    INERT: ClassVar[Inert] = {"type": anything}

    id: CallId | None = None
    function: CalledFunction


def with_ids(messages: Sequence[dict[str, Any]]) -> tuple[dict[str, Any], ...]:
    """Messages in OpenAI's shape, in which calls and results find each other by ids.

    Args:
        messages: ``tool_calls`` of the assistant as :class:`OllamaCall`; messages of the role ``tool`` with
            ``tool_name`` where the client says it. A result belongs to the first call of that name that has none yet,
            else to the first call that has none.
    """
    shaped: list[dict[str, Any]] = []
    waiting: list[tuple[str, str]] = []  # id and name
    for number, message in enumerate(messages):
        shape = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_name")}
        if calls := message.get("tool_calls"):
            ids = [call.id or f"call_{number}_{index}" for index, call in enumerate(calls)]
            waiting = [(call_id, call.function.name) for call_id, call in zip(ids, calls, strict=True)]
            shape["tool_calls"] = [_shaped(call, call_id) for call, call_id in zip(calls, ids, strict=True)]
        elif message["role"] == "tool":
            name = message.get("tool_name")
            found = next((call for call in waiting if call[1] == name), waiting[0] if waiting else None)
            if found is not None:
                waiting.remove(found)
            shape["tool_call_id"] = found[0] if found is not None else f"call_{number}"
        shaped.append(shape)
    return tuple(shaped)


def _shaped(call: OllamaCall, call_id: str) -> dict[str, Any]:
    arguments = json.dumps(call.function.arguments, ensure_ascii=False)
    return {"id": call_id, "type": "function", "function": {"name": call.function.name, "arguments": arguments}}


class MessageFields:
    """The fields of an answer's message, as its parts come."""

    def __init__(self) -> None:
        self._name = ""
        self._arguments = ""

    def more(self, parts: Iterable[Part]) -> Iterator[dict[str, Any]]:
        """What more parts add: text at once, a call when it is complete."""
        for part in parts:
            match part:
                case TextPart(text):
                    yield from self.end()
                    yield {"content": text}
                case CallStart(name=name):
                    yield from self.end()
                    self._name, self._arguments = name, ""
                case CallArguments(text=text):
                    self._arguments += text

    def end(self) -> Iterator[dict[str, Any]]:
        """The last call, if there is one. Arguments that were cut off are none."""
        if self._name:
            try:
                arguments = json.loads(self._arguments)
            except ValueError:
                arguments = {}
            function = {"name": self._name, "arguments": arguments if isinstance(arguments, dict) else {}}
            self._name = ""
            yield {"content": "", "tool_calls": [{"function": function}]}


def joined(fields: Iterable[dict[str, Any]]) -> dict[str, Any]:
    """All of them as one."""
    all_fields = list(fields)
    calls = [call for one in all_fields for call in one.get("tool_calls", ())]
    content = {"content": "".join(one["content"] for one in all_fields)}
    return {**content, "tool_calls": calls} if calls else content
