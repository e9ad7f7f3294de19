"""How a model is told of tools, of its own calls and of what they gave.

Templates that know tools take OpenAI's shape with the arguments as an object. For the others our own words stand in
the conversation, so that any model that follows instructions can call.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from serve.toolcalls.types import Tool, ToolFormat

_MISTRAL_ID = re.compile(r"[A-Za-z0-9]{9}")
_INSTRUCTIONS = """You can call functions. They are listed here as JSON, with the schema of their parameters:
{functions}
To call one, answer with nothing but a JSON object of this form: {{"name": "the function", "parameters": {{…}}}}
Its result is then given to you. When no function helps, answer in words."""


def chat_for(
    tool_format: ToolFormat, messages: Sequence[dict[str, Any]], tools: Sequence[Tool]
) -> list[dict[str, Any]]:
    """``messages`` as the model's template takes them.

    Args:
        tool_format: Of the model.
        messages: In OpenAI's shape: ``tool_calls`` of the assistant, messages of the role ``tool``.
        tools: That may be called; their list itself is for the template, except in the plain format.
    """
    match tool_format:
        case "plain":
            return _with_instructions(_in_words(messages), tools)
        case "llama3":
            return _one_call_each(_with_objects(messages))
        case "mistral" | "mistral_args":
            return [_with_short_ids(message) for message in _with_objects(messages)]
        case "hermes":
            return _with_objects(messages)


def _with_objects(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**message, "tool_calls": [_with_object(call) for call in message["tool_calls"]]}
        if message.get("tool_calls")
        else dict(message)
        for message in messages
    ]


def _with_object(call: dict[str, Any]) -> dict[str, Any]:
    return {**call, "function": {**call["function"], "arguments": _arguments(call)}}


def _arguments(call: dict[str, Any]) -> Any:
    """The arguments as an object; text that is no JSON, which a model may have written, stays text."""
    try:
        return json.loads(call["function"]["arguments"])
    except ValueError:
        return call["function"]["arguments"]


def _one_call_each(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Llama's template takes one call in a message: each gets its own, with its result after it."""
    results = {message.get("tool_call_id"): message for message in messages if message["role"] == "tool"}
    placed: set[Any] = set()
    separate: list[dict[str, Any]] = []
    for message in messages:
        calls = message.get("tool_calls") or []
        if message["role"] == "tool" and message.get("tool_call_id") in placed:
            continue
        if len(calls) < 2:
            separate.append(message)
            continue
        for call in calls:
            separate.append({**message, "tool_calls": [call]})
            if (result := results.get(call.get("id"))) is not None:
                separate.append(result)
                placed.add(call.get("id"))
    return separate


def _with_short_ids(message: dict[str, Any]) -> dict[str, Any]:
    """Mistral's template refuses ids that are not nine letters and digits."""
    if message.get("tool_calls"):
        return {**message, "tool_calls": [{**call, "id": _short(call["id"])} for call in message["tool_calls"]]}
    if message["role"] == "tool":
        return {**message, "tool_call_id": _short(message["tool_call_id"])}
    return message


def _short(call_id: str) -> str:
    return call_id if _MISTRAL_ID.fullmatch(call_id) else hashlib.sha256(call_id.encode()).hexdigest()[:9]


def _in_words(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Calls as the text they were, results as what the user says; templates want the two to take turns."""
    names: dict[str, str] = {}
    chat: list[dict[str, Any]] = []
    after_result = False
    for message in messages:
        role, text = message["role"], message["content"]
        if role == "tool":
            role, text = "user", f"Result of {names.get(message['tool_call_id'], 'the function')}:\n{text}"
        if after_result and role == "user":
            chat[-1]["content"] += f"\n\n{text}"
            continue
        after_result = message["role"] == "tool"
        calls = message.get("tool_calls") or []
        names.update({call["id"]: call["function"]["name"] for call in calls})
        plain = {name: value for name, value in message.items() if name not in ("tool_calls", "tool_call_id")}
        chat.append({**plain, "role": role, "content": "\n".join(filter(None, [text, *_calls_as_text(calls)]))})
    return chat


def _calls_as_text(calls: Sequence[dict[str, Any]]) -> Iterator[str]:
    for call in calls:
        yield json.dumps({"name": call["function"]["name"], "parameters": _arguments(call)}, ensure_ascii=False)


def _with_instructions(chat: list[dict[str, Any]], tools: Sequence[Tool]) -> list[dict[str, Any]]:
    """The tools in the system message, or before what the user says first: not every template has a system role."""
    if not tools:
        return chat
    functions = "\n".join(json.dumps(tool.as_dict()["function"], ensure_ascii=False) for tool in tools)
    told = _INSTRUCTIONS.format(functions=functions)
    place = next((place for place, message in enumerate(chat) if message["role"] in ("system", "user")), None)
    if place is None:
        return [{"role": "user", "content": told}, *chat]
    first = chat[place]
    both = (first["content"], told) if first["role"] == "system" else (told, first["content"])
    return [*chat[:place], {**first, "content": "\n\n".join(both)}, *chat[place + 1 :]]
