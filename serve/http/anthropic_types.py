"""Requests of Anthropic's Messages API, as far as they are supported; everything else is refused by name.

Prompt caching needs no marks here, so ``cache_control`` changes nothing. Turns of one role that follow each other are
put together, as Anthropic documents it.
"""

import json
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest, SamplingParams
from serve.http.openai_types import Stop
from serve.http.wire_types import (
    MAX_MODEL_NAME,
    MAX_STOPS,
    UNSUPPORTED,
    Inert,
    TextPart,
    Wire,
    anything,
    one_of,
    refuse,
    text_of,
)

INERT: Inert = {
    "metadata": anything,
    "cache_control": anything,
    "service_tier": one_of("auto", "standard_only"),
    "speed": one_of("standard"),
    "thinking": one_of({"type": "disabled"}),
    "tools": one_of([]),
    "tool_choice": one_of({"type": "auto"}, {"type": "none"}),
    "container": one_of(),
    "diagnostics": one_of(),
    "inference_geo": one_of(),
}


def _text(content: object) -> object:
    return text_of(content, also=frozenset({"cache_control"}))


_Text = Annotated[str, BeforeValidator(_text, json_schema_input_type=str | list[TextPart])]


class Turn(Wire):
    """One message."""

    role: Literal["user", "assistant"]
    content: _Text


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
        return self.format and Constraint("json_schema", json.dumps(self.format.schema_, ensure_ascii=False))


class _Chat(Wire):
    """What both routes have in common."""

    INERT: ClassVar[Inert] = INERT

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    messages: Annotated[list[Turn], Field(min_length=1), AfterValidator(_ends_with_the_user)]
    system: _Text = ""
    output_config: OutputConfig = OutputConfig()

    def turns(self) -> tuple[dict[str, Any], ...]:
        """The chat as a template takes it."""
        turns: list[dict[str, Any]] = [{"role": "system", "content": self.system}] if self.system else []
        for turn in self.messages:
            if turns and turns[-1]["role"] == turn.role:
                turns[-1]["content"] += f"\n{turn.content}"
            else:
                turns.append({"role": turn.role, "content": turn.content})
        return tuple(turns)


class CountTokensRequest(_Chat):
    """``POST /v1/messages/count_tokens``."""

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it; only its prompt is of interest."""
        return GenerateRequest(messages=self.turns(), max_tokens=1, client=client)


class MessagesRequest(_Chat):
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
            n_logprobs=0 if self.stop_sequences else None,
            client=client,
        )
