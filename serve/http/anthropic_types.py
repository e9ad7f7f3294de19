"""Requests of Anthropic's Messages API, as far as they are supported; everything else is refused by name.

Prompt caching needs no marks here, so ``cache_control`` changes nothing. Turns of one role that follow each other are
put together, as Anthropic documents it.
"""

import json
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest, SamplingParams
from serve.http.anthropic_tools import Text, ToolChoiceParam, ToolParam, Turn
from serve.http.openai_types import Stop
from serve.http.tool_types import MAX_TOOLS, tool_plan
from serve.http.wire_types import (
    MAX_MODEL_NAME,
    MAX_STOPS,
    UNSUPPORTED,
    Inert,
    Wire,
    anything,
    one_of,
    refuse,
)
from serve.toolcalls.plan import ToolPlan

INERT: Inert = {
    "metadata": anything,
    "cache_control": anything,
    "service_tier": one_of("auto", "standard_only"),
    "speed": one_of("standard"),
    "thinking": one_of({"type": "disabled"}),
    "container": one_of(),
    "diagnostics": one_of(),
    "inference_geo": one_of(),
}


def _ends_with_the_user(turns: list[Turn]) -> list[Turn]:
    if turns[-1].role == "assistant":
        raise refuse("The last message is the assistant's; to go on from one (prefill) is not supported.", UNSUPPORTED)
    return turns


class OutputFormat(Wire):
    """``output_config.format``: JSON of a schema, all of which can be enforced."""

    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Wire):
    """``output_config``; there is no ``effort`` to set."""

    format: OutputFormat | None = None

    def constraint(self) -> Constraint | None:
        """As the engine takes it."""
        if self.format is None:
            return None
        return Constraint("json_schema", json.dumps(self.format.schema_, ensure_ascii=False))


class Chat(Wire):
    """What both routes have in common."""

    INERT: ClassVar[Inert] = INERT

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    messages: Annotated[list[Turn], Field(min_length=1), AfterValidator(_ends_with_the_user)]
    system: Text = ""
    output_config: OutputConfig = OutputConfig()
    tools: list[ToolParam] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceParam = ToolChoiceParam()

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        plan = self.tool_plan()
        if plan is not None and plan.force and self.output_config.format is not None:
            raise refuse("A forced `tool_choice` decides what the answer looks like; `output_config` cannot.")
        return self

    def tool_plan(self) -> ToolPlan | None:
        """What is asked of tools, if anything."""
        return tool_plan(
            [tool.as_definition() for tool in self.tools],
            self.tool_choice.as_choice(),
            parallel=not self.tool_choice.disable_parallel_tool_use,
            called_before=any(turn.has_tools for turn in self.messages),
        )

    def turns(self) -> tuple[dict[str, Any], ...]:
        """The chat in OpenAI's shape."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for message in (message for turn in self.messages for message in turn.as_messages()):
            if turns and _one_turn(turns[-1], message):
                turns[-1]["content"] += f"\n{message['content']}"
            else:
                turns.append(message)
        return tuple(turns)


def _one_turn(before: dict[str, Any], after: dict[str, Any]) -> bool:
    """Both are words of one role."""
    return before["role"] == after["role"] != "tool" and "tool_calls" not in (before.keys() | after.keys())


class CountTokensRequest(Chat):
    """``POST /v1/messages/count_tokens``."""

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it; only its prompt is of interest."""
        return GenerateRequest(messages=self.turns(), max_tokens=1, client=client)


class MessagesRequest(Chat):
    """``POST /v1/messages``."""

    max_tokens: int = Field(ge=1)
    temperature: float = Field(SamplingParams.temperature, ge=0, le=1)
    top_p: float = Field(SamplingParams.top_p, gt=0, le=1)
    top_k: int = Field(SamplingParams.top_k, ge=0, le=2**31 - 1)
    stop_sequences: list[Stop] = Field(default_factory=list, max_length=MAX_STOPS)
    stream: bool = False

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it."""
        return GenerateRequest(
            messages=self.turns(),
            sampling=SamplingParams(temperature=self.temperature, top_p=self.top_p, top_k=self.top_k),
            max_tokens=self.max_tokens,
            stop=tuple(self.stop_sequences),
            constraint=self.output_config.constraint(),
            # The tokens' own bytes tell which of the stop sequences ended the answer.
            client=client,
        )
