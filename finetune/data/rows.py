"""Telling the shapes of rows apart: chats, prompt and completion, instructions, ShareGPT conversations, plain text."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

Shape = Literal["messages", "prompt/completion", "text", "alpaca", "ShareGPT", "preference"]
Message = dict[str, Any]

_PAIRS = (("prompt", "completion"), ("question", "answer"), ("input", "output"), ("prompt", "response"))
_SPEAKERS = {
    "human": "user", "user": "user", "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant",
    "bing": "assistant", "bard": "assistant", "system": "system", "tool": "tool", "observation": "tool",
    "function_call": "assistant", "function_response": "tool",
}  # fmt: skip
_ROLES = ("system", "developer", "user", "assistant", "tool")


class RowError(Exception):
    """Why a row cannot be learnt from."""


@dataclass(frozen=True)
class Chat:
    """Turns, of which the assistant's are learnt."""

    messages: tuple[Message, ...]
    tools: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Completion:
    """A prompt and what follows it, without a chat template."""

    prompt: str
    completion: str


@dataclass(frozen=True)
class Text:
    """Text of which every token is learnt."""

    text: str


@dataclass(frozen=True)
class Row:
    """A row that was understood.

    Attributes:
        shape: What it looked like.
        content: What it says.
        key: The content as text, the same for rows that say the same.
    """

    shape: Shape
    content: Chat | Completion | Text
    key: str = field(compare=False, default="")


def read_row(fields: Mapping[str, Any]) -> Row:
    """Understand one row.

    Raises:
        RowError: It has no known shape, or something in it is wrong.
    """
    shape, content = _understand({name: value for name, value in fields.items() if value is not None})
    # A turn of a Parquet file may hold a date, say, which no template asks for.
    key = json.dumps(_plain(content), sort_keys=True, ensure_ascii=False, default=str)
    try:
        key.encode()
    except UnicodeEncodeError as error:
        half = f"\\u{ord(key[error.start]):04x}"
        raise RowError(f"it holds half of a character ({half}), which no text can have") from None
    return Row(shape, content, key)


def _understand(fields: Mapping[str, Any]) -> tuple[Shape, Chat | Completion | Text]:
    if "chosen" in fields and "rejected" in fields:
        raise RowError("it is a preference (chosen and rejected), which this training does not take")
    if "messages" in fields:
        return "messages", Chat(_messages(fields["messages"]), _tools(fields.get("tools")))
    if "conversations" in fields:
        return "ShareGPT", _sharegpt(fields)
    if "instruction" in fields and "output" in fields:
        return "alpaca", _alpaca(fields)
    for prompt, completion in _PAIRS:
        if prompt in fields and completion in fields:
            return "prompt/completion", _pair(fields[prompt], fields[completion], prompt, completion)
    if "text" in fields:
        return "text", Text(_string(fields["text"], "text"))
    names = ", ".join(list(fields)[:6]) or "nothing"
    raise RowError(f"its fields ({names}) are of no known shape")


def _messages(value: Any) -> tuple[Message, ...]:
    if not isinstance(value, list) or not value:
        raise RowError("messages is no list of turns")
    messages = []
    for number, message in enumerate(value, 1):
        if not isinstance(message, dict):
            raise RowError(f"turn {number} is no object")
        role, content = message.get("role"), message.get("content")
        if role not in _ROLES:
            raise RowError(f"turn {number} has the role {role!r}")
        calls = _calls(message.get("tool_calls"), number)
        if isinstance(content, list):
            content = _parts(content, number)
        if not isinstance(content, str) and not (content is None and calls):
            raise RowError(f"turn {number} has no content")
        if role == "assistant" and not (content or "").strip() and not calls:
            raise RowError(f"turn {number}, the assistant's, is empty")
        said = {name: value for name, value in message.items() if value is not None and name != "tool_calls"}
        messages.append({**said, "content": content or "", **({"tool_calls": calls} if calls else {})})
    _check_order(messages)
    return tuple(messages)


def _calls(value: Any, number: int) -> list[dict[str, Any]]:
    """Tool calls in one form: under ``function``, the arguments as an object, which every template writes rightly."""
    if value in (None, "", []):
        return []
    calls = [_tool_call(call) for call in value] if isinstance(value, list) else [None]
    if None in calls:
        raise RowError(f"turn {number} has a tool call that cannot be read")
    return [call for call in calls if call is not None]


def _tool_call(call: Any) -> dict[str, Any] | None:
    try:
        function = call.get("function", call)
        name, given = function["name"], function.get("arguments") or {}
        arguments = json.loads(given) if isinstance(given, str) else given
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return None
    known = {"id": call["id"]} if isinstance(call.get("id"), str) else {}
    return {**known, "type": "function", "function": {"name": name, "arguments": arguments}}


def _check_order(messages: list[Message]) -> None:
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise RowError("no turn is the assistant's, so there is nothing to learn")
    if any(role in ("system", "developer") for role in roles[1:]):
        raise RowError("a system turn stands after the first turn")
    spoken = [role for role in roles if role in ("user", "assistant")]
    if spoken[0] != "user":
        raise RowError("the assistant speaks before the user")
    for number, (before, after) in enumerate(pairwise(roles), 2):
        if before == after == "user":
            raise RowError(f"turns {number - 1} and {number} are both the user's")


def _parts(content: list[Any], number: int) -> str:
    texts = [part.get("text") if isinstance(part, dict) and part.get("type") == "text" else None for part in content]
    if any(not isinstance(text, str) for text in texts):
        raise RowError(f"turn {number} holds something that is no text")
    return "".join(str(text) for text in texts)


def _tools(value: Any) -> tuple[dict[str, Any], ...]:
    if value in (None, "", []):
        return ()
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise RowError("tools is no JSON") from None
    if not isinstance(value, list) or any(not isinstance(tool, dict) for tool in value):
        raise RowError("tools is no list of objects")
    return tuple(tool if "function" in tool else {"type": "function", "function": tool} for tool in value)


def _sharegpt(fields: Mapping[str, Any]) -> Chat:
    turns = fields["conversations"]
    if not isinstance(turns, list) or not turns:
        raise RowError("conversations is no list of turns")
    messages: list[Message] = []
    if _says(fields.get("system")):
        messages.append({"role": "system", "content": _string(fields["system"], "system")})
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise RowError(f"turn {number} is no object")
        if "role" in turn:
            messages.append(turn)
            continue
        speaker, said = turn.get("from"), turn.get("value")
        role = _SPEAKERS.get(str(speaker))
        if role is None:
            raise RowError(f"turn {number} is from {speaker!r}")
        if not isinstance(said, str):
            raise RowError(f"turn {number} has no value")
        messages.append(_call(said, number) if speaker == "function_call" else {"role": role, "content": said})
    return Chat(_messages(messages), _tools(fields.get("tools")))


def _call(said: str, number: int) -> Message:
    try:
        call = json.loads(said)
    except ValueError:
        raise RowError(f"turn {number} is a function call that cannot be read") from None
    calls = call if isinstance(call, list) else [call]
    return {"role": "assistant", "content": "", "tool_calls": _calls(calls, number)}


def _alpaca(fields: Mapping[str, Any]) -> Chat:
    messages: list[Message] = []
    if _says(fields.get("system")):
        messages.append({"role": "system", "content": _string(fields["system"], "system")})
    history = fields.get("history") or []
    if not isinstance(history, list):
        raise RowError("history is no list")
    for pair in history:
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            raise RowError("history holds something that is no pair")
        messages += [{"role": "user", "content": pair[0]}, {"role": "assistant", "content": pair[1]}]
    question = _string(fields["instruction"], "instruction")
    if _says(more := fields.get("input")):
        question = f"{question}\n\n{_string(more, 'input')}"
    messages += [{"role": "user", "content": question}, {"role": "assistant", "content": fields["output"]}]
    return Chat(_messages(messages))


def _pair(prompt: Any, completion: Any, prompt_name: str, completion_name: str) -> Chat | Completion:
    if isinstance(prompt, list):
        answer = completion if isinstance(completion, list) else [{"role": "assistant", "content": completion}]
        return Chat(_messages([*prompt, *answer]))
    asked, answered = _string(prompt, prompt_name), _string(completion, completion_name)
    return Completion(asked, answered)


def _says(value: Any) -> bool:
    """Whether a field that may be left out is there: CSV files have it empty, or with a space."""
    return bool(value.strip() if isinstance(value, str) else value)


def _string(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"{name} is no text")
    if not value.strip():
        raise RowError(f"{name} is empty")
    return value


def _plain(content: Chat | Completion | Text) -> Any:
    match content:
        case Chat(messages, tools):
            return [list(messages), list(tools)]
        case Completion(prompt, completion):
            return [prompt, completion]
        case Text(text):
            return text
