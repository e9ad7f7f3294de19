"""Tools and content blocks in requests of Anthropic's Messages API, and the same in OpenAI's shape."""

import json
from collections.abc import Iterator
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from serve.http.tool_types import (
    CallId,
    FunctionDefinition,
    FunctionName,
    NamedChoice,
    ToolChoice,
    ToolDefinition,
    ToolName,
)
from serve.http.wire_types import UNSUPPORTED, Inert, TextPart, Wire, anything, one_of, refuse, text_of


def _text(content: object) -> object:
    return text_of(content, also=frozenset({"cache_control"}))


Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[TextPart])]


class TextBlock(Wire):
    """Text."""

    INERT: ClassVar[Inert] = {"cache_control": anything, "citations": one_of([])}

    type: Literal["text"]
    text: str


class ToolUseBlock(Wire):
    """A call in the history."""

    INERT: ClassVar[Inert] = {"cache_control": anything, "caller": one_of({"type": "direct"})}

    type: Literal["tool_use"]
    id: CallId
    name: str = Field(min_length=1, max_length=256)
    input: dict[str, Any]

    def as_call(self) -> dict[str, Any]:
        """In OpenAI's shape."""
        arguments = json.dumps(self.input, ensure_ascii=False)
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": arguments}}


class ToolResultBlock(Wire):
    """What a call gave."""

    INERT: ClassVar[Inert] = {"cache_control": anything}

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: Text = ""
    is_error: bool = False

    def as_message(self) -> dict[str, Any]:
        """In OpenAI's shape, which has no place for ``is_error`` but the words."""
        content = f"Error: {self.content}" if self.is_error else self.content
        return {"role": "tool", "tool_call_id": self.tool_use_id, "content": content}


Block = Annotated[TextBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
_KINDS = ("text", "tool_use", "tool_result")


def _blocks(content: object) -> object:
    """A string is one text block. A block of a kind that is not here is refused by name."""
    if isinstance(content, str):
        return [{"type": "text", "text": content}]
    for block in content if isinstance(content, list) else ():
        kind = block.get("type") if isinstance(block, dict) else None
        if kind not in _KINDS:
            named = f"Blocks of type {kind[:40]!r}" if isinstance(kind, str) else "Blocks without a type"
            raise refuse("{named} are not supported, only text, tool_use and tool_result.", UNSUPPORTED, named=named)
    return content


class Turn(Wire):
    """One message."""

    role: Literal["user", "assistant"]
    content: Annotated[list[Block], BeforeValidator(_blocks, json_schema_input_type=str | list[Block])]

    @model_validator(mode="after")
    def _blocks_where_they_belong(self) -> Self:
        foreign = ToolResultBlock if self.role == "assistant" else ToolUseBlock
        if any(isinstance(block, foreign) for block in self.content):
            raise refuse("`tool_use` belongs to the assistant, `tool_result` to the user.")
        return self

    @property
    def has_tools(self) -> bool:
        """It tells of a call or a result."""
        return any(not isinstance(block, TextBlock) for block in self.content)

    def as_messages(self) -> Iterator[dict[str, Any]]:
        """In OpenAI's shape: results stand before what the user says besides."""
        text = "\n".join(block.text for block in self.content if isinstance(block, TextBlock))
        calls = [block.as_call() for block in self.content if isinstance(block, ToolUseBlock)]
        results = [block.as_message() for block in self.content if isinstance(block, ToolResultBlock)]
        yield from results
        if calls:
            yield {"role": self.role, "content": text, "tool_calls": calls}
        elif text or not results:
            yield {"role": self.role, "content": text}


class ToolParam(Wire):
    """A tool of the client's own; Anthropic's built-in ones are refused by their ``type``."""

    INERT: ClassVar[Inert] = {
        "type": one_of("custom"),
        "cache_control": anything,
        "eager_input_streaming": anything,  # arguments are always streamed as they are written
        "defer_loading": one_of(False),
        "allowed_callers": one_of(["direct"]),
        "input_examples": one_of([]),
    }

    name: ToolName
    description: str = ""
    input_schema: dict[str, Any]
    strict: bool = False

    def as_definition(self) -> ToolDefinition:
        """In OpenAI's shape."""
        function = FunctionDefinition(
            name=self.name, description=self.description, parameters=self.input_schema, strict=self.strict
        )
        return ToolDefinition(type="function", function=function)


class ToolChoiceParam(Wire):
    """``tool_choice``."""

    type: Literal["auto", "any", "tool", "none"] = "auto"
    name: ToolName | None = None
    disable_parallel_tool_use: bool = False

    @model_validator(mode="after")
    def _name_where_it_belongs(self) -> Self:
        if (self.type == "tool") != (self.name is not None):
            raise refuse("`name` belongs to the type `tool`.")
        return self

    def as_choice(self) -> ToolChoice:
        """In OpenAI's shape."""
        if self.name is not None:
            return NamedChoice(type="function", function=FunctionName(name=self.name))
        return "required" if self.type == "any" else "none" if self.type == "none" else "auto"
