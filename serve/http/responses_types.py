"""Requests of OpenAI's Responses API: text and functions. Everything else is refused by name.

Nothing is ever stored, so ``store`` may be false or left out, and there is no ``previous_response_id`` to go on from:
send the whole conversation as ``input``.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest, SamplingParams
from serve.http.openai_types import MAX_LOGPROBS
from serve.http.responses_tools import Choice, FlatChoice, FunctionCall, FunctionCallOutput, FunctionTool, known_tool
from serve.http.tool_types import MAX_TOOLS, tool_plan
from serve.http.wire_types import MAX_MODEL_NAME, UNSUPPORTED, Inert, Scheduled, Wire, anything, one_of, refuse, text_of
from serve.toolcalls.plan import ToolPlan

LOGPROBS = "message.output_text.logprobs"

INERT: Inert = {
    "user": anything,
    "safety_identifier": anything,
    "prompt_cache_key": anything,
    "prompt_cache_retention": anything,
    "store": one_of(False),
    "background": one_of(False),
    "service_tier": one_of("auto", "default"),
    "truncation": one_of("disabled"),
    "reasoning": one_of({}),
    "previous_response_id": one_of(),
    "conversation": one_of(),
    "prompt": one_of(),
    "max_tool_calls": one_of(),
}


def _item_text(content: object) -> object:
    return text_of(content, also=frozenset({"annotations", "logprobs"}), kinds=frozenset({"input_text", "output_text"}))


class ItemText(Wire):
    """A part of an item's content."""

    type: Literal["input_text", "output_text"]
    text: str


class Item(Wire):
    """One message of the input; the assistant's may be an output item as it came."""

    INERT: ClassVar[Inert] = {
        "type": one_of("message"),
        "id": anything,
        "status": anything,
        "phase": anything,
    }

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_item_text, json_schema_input_type=str | list[ItemText])]

    def as_dict(self) -> dict[str, Any]:
        """As the chat template takes it."""
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class TextFormat(Wire):
    """``text.format``: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str | None = Field(None, min_length=1, max_length=64)
    description: str | None = Field(None, max_length=4096)
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.schema_ is not None):
            raise refuse("`schema` belongs to the type `json_schema`.")
        return self

    def constraint(self) -> Constraint | None:
        """As the engine takes it."""
        match self.type:
            case "text":
                return None
            case "json_object":
                return Constraint("json_object")
            case "json_schema":
                text = json.dumps(self.schema_, ensure_ascii=False)
                return Constraint("json_schema", text, lenient=not self.strict)

    def as_dict(self) -> dict[str, Any]:
        """As it goes back to the client."""
        return self.model_dump(by_alias=True, exclude_none=True)


class TextConfig(Wire):
    """``text``; there is no ``verbosity`` to set."""

    format: TextFormat = TextFormat()


class ResponsesStreamOptions(Wire):
    """``stream_options``; padding against listeners has no use on loopback."""

    include_obfuscation: bool = False


def _one_item(given: object) -> object:
    """Refuse an unknown kind by its name: of a union, pydantic would tell about all of them."""
    kind = given.get("type") if isinstance(given, dict) else None
    if isinstance(kind, str) and kind not in ("message", "function_call", "function_call_output"):
        raise refuse("Items of type {kind} are not supported.", UNSUPPORTED, kind=repr(kind[:40]))
    return given


def _kind_of(given: object) -> str:
    kind = given.get("type") if isinstance(given, dict) else getattr(given, "type", None)
    return f"<{kind}>" if isinstance(kind, str) else "<message>"


AnyItem = Annotated[
    Annotated[Item, Tag("<message>")]
    | Annotated[FunctionCall, Tag("<function_call>")]
    | Annotated[FunctionCallOutput, Tag("<function_call_output>")],
    Discriminator(_kind_of),
    BeforeValidator(_one_item),
]


def _items(given: object) -> object:
    return [{"role": "user", "content": given}] if isinstance(given, str) else given


class ResponsesRequest(Scheduled):
    """``POST /v1/responses``."""

    INERT: ClassVar[Inert] = INERT

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    input: Annotated[
        list[AnyItem], BeforeValidator(_items, json_schema_input_type=str | list[AnyItem]), Field(min_length=1)
    ]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    temperature: float = Field(SamplingParams.temperature, ge=0, le=5)
    top_p: float = Field(SamplingParams.top_p, gt=0, le=1)
    include: list[Literal["message.output_text.logprobs"]] = Field(default_factory=list, max_length=16)
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    text: TextConfig = TextConfig()
    tools: list[Annotated[FunctionTool, BeforeValidator(known_tool)]] = Field(
        default_factory=list, max_length=MAX_TOOLS
    )
    tool_choice: Choice = "auto"
    parallel_tool_calls: bool = True
    metadata: dict[str, str] = Field(default_factory=dict, max_length=16)
    stream: bool = False
    stream_options: ResponsesStreamOptions | None = None

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refuse("`stream_options` needs `stream` to be true.")
        if self.top_logprobs and not self.include:
            raise refuse("`top_logprobs` needs {name} in `include`.", name=LOGPROBS)
        plan = self.tool_plan()
        if plan is not None and plan.tools and self.include:
            raise refuse("Log-probabilities of an answer that may hold calls are not supported here.", UNSUPPORTED)
        if plan is not None and plan.force and self.text.format.type != "text":
            raise refuse("A forced `tool_choice` decides what the answer looks like; `text.format` cannot.")
        return self

    def tool_plan(self) -> ToolPlan | None:
        """What is asked of tools, if anything."""
        return tool_plan(
            [tool.as_definition() for tool in self.tools],
            self.tool_choice.as_choice() if isinstance(self.tool_choice, FlatChoice) else self.tool_choice,
            parallel=self.parallel_tool_calls,
            called_before=any(not isinstance(item, Item) for item in self.input),
        )

    def _messages(self) -> tuple[dict[str, Any], ...]:
        """The chat; calls belong to the assistant's message before them, or make one."""
        messages: list[dict[str, Any]] = []
        if self.instructions:
            messages.append({"role": "system", "content": self.instructions})
        for item in self.input:
            match item:
                case Item():
                    messages.append(item.as_dict())
                case FunctionCallOutput():
                    messages.append(item.as_message())
                case FunctionCall():
                    if not messages or messages[-1]["role"] != "assistant":
                        messages.append({"role": "assistant", "content": ""})
                    messages[-1].setdefault("tool_calls", []).append(item.as_call())
        return tuple(messages)

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it."""
        return GenerateRequest(
            messages=self._messages(),
            sampling=SamplingParams(temperature=self.temperature, top_p=self.top_p),
            max_tokens=self.max_output_tokens,
            n_logprobs=self.top_logprobs if self.include else None,
            constraint=self.text.format.constraint(),
            client=client,
            priority=self.priority,
            deadline=self.timeout,
        )
