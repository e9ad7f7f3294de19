"""Tools in the Responses API: the same as in chats, but flat, and calls and results are items of their own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field

from serve.http.tool_types import CallId, FunctionDefinition, FunctionName, NamedChoice, ToolDefinition, ToolName
from serve.http.wire_types import UNSUPPORTED, Inert, Wire, anything, refuse, text_of


class FunctionTool(FunctionDefinition):
    """A tool: functions only."""

    type: Literal["function"]

    def as_definition(self) -> ToolDefinition:
        """As in a chat."""
        fields = {name: getattr(self, name) for name in FunctionDefinition.model_fields}
        return ToolDefinition(type="function", function=FunctionDefinition(**fields))

    def as_dict(self) -> dict[str, Any]:
        """As it goes back to the client."""
        return self.model_dump()


def known_tool(tool: object) -> object:
    """Refuse the tools that OpenAI runs itself."""
    if isinstance(tool, dict) and isinstance(kind := tool.get("type"), str) and kind != "function":
        raise refuse("Tools of type {kind} are not supported, only functions.", UNSUPPORTED, kind=repr(kind[:40]))
    return tool


class FlatChoice(Wire):
    """A ``tool_choice`` that names the function to call."""

    type: Literal["function"]
    name: ToolName

    def as_choice(self) -> NamedChoice:
        """As in a chat."""
        return NamedChoice(type="function", function=FunctionName(name=self.name))


def _known_choice(choice: object) -> object:
    match choice:
        case "none" | "auto" | "required" | {"type": "function", "name": str()}:
            return choice
    raise refuse("It is `none`, `auto`, `required`, or names a function.")


Choice = Annotated[Literal["none", "auto", "required"] | FlatChoice, BeforeValidator(_known_choice)]


class FunctionCall(Wire):
    """A call of the history, as it came in an answer."""

    INERT: ClassVar[Inert] = {"id": anything, "status": anything}

    type: Literal["function_call"]
    call_id: CallId
    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(max_length=1 << 20)

    def as_call(self) -> dict[str, Any]:
        """As a chat's message holds it."""
        return {
            "id": self.call_id,
            "type": "function",
            "function": {"name": self.name, "arguments": self.arguments},
        }


def _output_text(content: object) -> object:
    return text_of(content, kinds=frozenset({"input_text"}))


class OutputText(Wire):
    """A part of a call's result."""

    type: Literal["input_text"]
    text: str


class FunctionCallOutput(Wire):
    """The result of a call."""

    INERT: ClassVar[Inert] = {"id": anything, "status": anything}

    type: Literal["function_call_output"]
    call_id: CallId
    output: Annotated[str, BeforeValidator(_output_text, json_schema_input_type=str | list[OutputText])]

    def as_message(self) -> dict[str, Any]:
        """As a chat's message."""
        return {"role": "tool", "content": self.output, "tool_call_id": self.call_id}
