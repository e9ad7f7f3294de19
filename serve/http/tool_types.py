"""Tools in requests of the OpenAI API: their definitions, the choice among them, calls and results in the messages."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serve.http.wire_types import Wire, refuse
from serve.toolcalls.plan import ToolPlan
from serve.toolcalls.types import Tool

MAX_TOOLS = 128
_MAX_ARGUMENTS = 1 << 20  # characters

ToolName = Annotated[str, Field(pattern="^[A-Za-z0-9_-]{1,64}$")]
CallId = Annotated[str, Field(min_length=1, max_length=256)]


class FunctionDefinition(Wire):
    """``function`` of a tool. ``strict`` refuses schemas that cannot be enforced when the call is forced."""

    name: ToolName
    description: str = ""
    parameters: dict[str, Any] = Field(default_factory=lambda: {"type": "object", "properties": {}})
    strict: bool = False


class ToolDefinition(Wire):
    """A tool: functions only."""

    type: Literal["function"]
    function: FunctionDefinition

    def tool(self) -> Tool:
        """As the tool plan takes it."""
        return Tool(self.function.name, self.function.description, self.function.parameters, self.function.strict)


class FunctionName(Wire):
    """Names a function."""

    name: ToolName


class NamedChoice(Wire):
    """A ``tool_choice`` that names the function to call."""

    type: Literal["function"]
    function: FunctionName


def _known_choice(choice: object) -> object:
    """Refuse what is neither kind here: of a union, pydantic would tell about the wrong one."""
    match choice:
        case "none" | "auto" | "required" | {"type": "function", "function": {"name": str()}}:
            return choice
    raise refuse("It is `none`, `auto`, `required`, or names a function.")


ToolChoice = Annotated[Literal["none", "auto", "required"] | NamedChoice, BeforeValidator(_known_choice)]


class CalledFunction(Wire):
    """What the assistant called; ``arguments`` is JSON as text, as the model wrote it."""

    name: str = Field(min_length=1, max_length=256)
    arguments: str = Field(max_length=_MAX_ARGUMENTS)


class CallInMessage(Wire):
    """A call in the history."""

    id: CallId
    type: Literal["function"] = "function"
    function: CalledFunction


def tool_plan(
    tools: list[ToolDefinition], choice: ToolChoice, *, parallel: bool, called_before: bool
) -> ToolPlan | None:
    """The plan for a request; None where it has nothing to do with tools.

    Args:
        tools: The definitions.
        choice: ``tool_choice``.
        parallel: ``parallel_tool_calls``.
        called_before: The messages tell of calls.

    Raises:
        PydanticCustomError: A name twice, or a choice that no tool fits.
    """
    names = [definition.function.name for definition in tools]
    if len(set(names)) != len(names):
        raise refuse("Two tools have the same name.")
    wanted = tuple(definition.tool() for definition in tools)
    match choice:
        case "none":
            wanted = ()
        case "required" if not tools:
            raise refuse("`tool_choice` asks for a call, but there are no `tools`.")
        case NamedChoice(function=FunctionName(name=name)):
            if name not in names:
                raise refuse("`tool_choice` names a function that is not among the `tools`.")
            wanted = tuple(tool for tool in wanted if tool.name == name)
    if not wanted and not called_before:
        return None
    return ToolPlan(wanted, force=choice not in ("none", "auto"), parallel=parallel)
