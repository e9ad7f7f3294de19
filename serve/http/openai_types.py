"""Requests of the OpenAI API, as far as they are supported; everything else is refused by name, never dropped.

Fields that official clients send but that ask for nothing (``user``, ``store=false``, …) are accepted when their value
asks for nothing: :data:`INERT` lists them. ``reasoning_effort`` and ``verbosity`` are refused, because a client that
sends them expects another answer.

Our own additions: ``top_k``, ``min_p``, ``repeat_penalty``, ``repeat_last_n`` (as in
:class:`serve.engine.types.SamplingParams`), ``ignore_eos``, ``adapters``, ``priority`` and ``timeout`` (see
:class:`serve.http.wire_types.Scheduled`), ``regex`` and ``grammar`` (what the whole answer must look
like, see :mod:`serve.http.structured`) and ``chat_template_kwargs`` (more names for the model's chat template).
"""

from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest, SamplingParams
from serve.http.structured import ConstraintText, ResponseFormat, grammar_constraint, one_constraint
from serve.http.tool_types import MAX_TOOLS, CallId, CallInMessage, ToolChoice, ToolDefinition, tool_plan
from serve.http.wire_types import (
    MAX_MODEL_NAME,
    MAX_SEED,
    MAX_STOP_LENGTH,
    MAX_STOPS,
    Inert,
    Scheduled,
    TextPart,
    Wire,
    anything,
    one_of,
    refuse,
    text_of,
)
from serve.toolcalls.plan import ToolPlan

MAX_PROMPTS = 64
MAX_INPUTS = 2048
MAX_N = 16
MAX_CHOICES = 128
MAX_LOGPROBS = 20
MAX_BIASES = 1024
MAX_TOKEN_ID = 2**31 - 1
_LEGACY_MAX_TOKENS = 16  # what OpenAI documents for /v1/completions

INERT: Inert = {
    "user": anything,
    "metadata": anything,
    "safety_identifier": anything,
    "prompt_cache_key": anything,
    "prompt_cache_retention": anything,
    "store": one_of(False),
    "best_of": one_of(1),
    "suffix": one_of(""),
    "service_tier": one_of("auto", "default"),
    "modalities": one_of(["text"]),
    "functions": one_of([]),
    "function_call": one_of("none", "auto"),
    "audio": one_of(),
    "prediction": one_of(),
    "reasoning_effort": one_of(),
    "verbosity": one_of(),
    "web_search_options": one_of(),
}


class ChatMessage(Wire):
    """One message. ``developer`` is another word for ``system``."""

    # What an assistant's message may carry when it comes back from an official client.
    INERT: ClassVar[Inert] = {
        "refusal": one_of(),
        "audio": one_of(),
        "function_call": one_of(),
        "tool_calls": one_of([]),
        "annotations": one_of([]),
    }

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: Annotated[str, BeforeValidator(text_of, json_schema_input_type=str | list[TextPart])]
    name: str | None = Field(None, max_length=256)
    tool_calls: list[CallInMessage] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_call_id: CallId | None = None

    @model_validator(mode="before")
    @classmethod
    def _calls_need_no_content(cls, raw: object) -> object:
        if isinstance(raw, dict) and raw.get("tool_calls") and raw.get("content") is None:
            return {**raw, "content": ""}
        return raw

    @model_validator(mode="after")
    def _tools_where_they_belong(self) -> Self:
        if (self.role == "tool") != (self.tool_call_id is not None):
            raise refuse("`tool_call_id` belongs to messages of the role `tool`, and to all of them.")
        if self.tool_calls and self.role != "assistant":
            raise refuse("`tool_calls` belong to messages of the assistant.")
        return self

    def as_dict(self) -> dict[str, Any]:
        """As the chat template takes it."""
        message: dict[str, Any] = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        if self.tool_calls:
            message["tool_calls"] = [call.model_dump() for call in self.tool_calls]
        more = {"tool_call_id": self.tool_call_id, "name": self.name}
        return message | {name: value for name, value in more.items() if value is not None}


class StreamOptions(Wire):
    """``stream_options``; ``include_obfuscation`` asks for padding, which loopback has no use for."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


def _token_ids(bias: object) -> object:
    """The names of a JSON object are text, so a token's id comes in quotes here."""
    if not isinstance(bias, dict):
        return bias
    wrong = [name for name in bias if not (isinstance(name, str) and name.isascii() and name.isdigit())]
    if wrong:
        raise refuse("The names in `logit_bias` are token ids.")
    return {int(name): value for name, value in bias.items()}


Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]
TokenId = Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]
_Bias = Annotated[float, Field(ge=-100, le=100)]


class Sampled(Scheduled):
    """What chats and completions have in common."""

    INERT: ClassVar[Inert] = INERT

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    temperature: float = Field(SamplingParams.temperature, ge=0, le=5)
    top_p: float = Field(SamplingParams.top_p, gt=0, le=1)
    top_k: int = Field(SamplingParams.top_k, ge=0, le=2**31 - 1)
    min_p: float = Field(SamplingParams.min_p, ge=0, le=1)
    repeat_penalty: float = Field(SamplingParams.repeat_penalty, gt=0, le=10)
    repeat_last_n: int = Field(SamplingParams.repeat_last_n, ge=-1, le=2**31 - 1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    logit_bias: Annotated[dict[TokenId, _Bias], Field(max_length=MAX_BIASES), BeforeValidator(_token_ids)] = Field(
        default_factory=dict
    )
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Annotated[
        list[Stop],
        Field(max_length=MAX_STOPS),
        BeforeValidator(_as_list, json_schema_input_type=Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS)]),
    ] = Field(default_factory=list)
    ignore_eos: bool = False
    regex: ConstraintText | None = None
    grammar: ConstraintText | None = None
    n: int = Field(1, ge=1, le=MAX_N)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise refuse("`stream_options` needs `stream` to be true.")
        return self

    @property
    def include_usage(self) -> bool:
        """A chunk with the usage is wanted."""
        return self.stream_options is not None and self.stream_options.include_usage

    def constraint(self, *more: Constraint | None) -> Constraint | None:
        """What the answer must look like; one of ``more``, ``regex`` and ``grammar``."""
        return one_constraint(
            *more,
            None if self.regex is None else Constraint("regex", self.regex),
            None if self.grammar is None else grammar_constraint(self.grammar),
        )

    def sampling(self) -> SamplingParams:
        """How tokens are to be chosen."""
        given = {name: getattr(self, name) for name in SamplingParams.__dataclass_fields__ if name != "logit_bias"}
        return SamplingParams(**given, logit_bias=tuple(self.logit_bias.items()))

    def _choices(self, request: GenerateRequest) -> list[GenerateRequest]:
        """``request`` once for each of its ``n`` choices; a seed counts up, so that they differ and can be repeated."""
        seed = request.sampling.seed
        if seed is None:
            return [request] * self.n
        return [
            replace(request, sampling=replace(request.sampling, seed=(seed + index) % (MAX_SEED + 1)))
            for index in range(self.n)
        ]


_RESERVED_TEMPLATE_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)


def template_args(args: object) -> object:
    """``args`` for the chat template, without the names that are not a client's to set."""
    if isinstance(args, dict) and (taken := args.keys() & _RESERVED_TEMPLATE_NAMES):
        raise refuse("{name} cannot be set here.", name=min(taken))
    return args


class ChatRequest(Sampled):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)
    response_format: ResponseFormat | None = None
    tools: list[ToolDefinition] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_choice: ToolChoice = "auto"
    parallel_tool_calls: bool = True
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], BeforeValidator(template_args)] = Field(
        default_factory=dict, max_length=32
    )

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise refuse("`max_tokens` and `max_completion_tokens` contradict each other.")
        if self.top_logprobs and not self.logprobs:
            raise refuse("`top_logprobs` needs `logprobs` to be true.")
        plan, constraint = self.tool_plan(), self._constraint()
        if plan is not None and plan.force and constraint is not None:
            raise refuse("A forced `tool_choice` decides what the answer looks like; nothing else can.")
        return self

    def tool_plan(self) -> ToolPlan | None:
        """What is asked of tools, if anything."""
        called_before = any(message.tool_calls or message.tool_call_id for message in self.messages)
        return tool_plan(self.tools, self.tool_choice, parallel=self.parallel_tool_calls, called_before=called_before)

    def _constraint(self) -> Constraint | None:
        return self.constraint(None if self.response_format is None else self.response_format.constraint())

    def generate_requests(self, client: str = "") -> list[GenerateRequest]:
        """As the engine takes them, one for each choice."""
        request = GenerateRequest(
            messages=tuple(message.as_dict() for message in self.messages),
            sampling=self.sampling(),
            max_tokens=self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            stop=tuple(self.stop),
            template_args=dict(self.chat_template_kwargs),
            n_logprobs=self.top_logprobs if self.logprobs else None,
            ignore_eos=self.ignore_eos,
            client=client,
            priority=self.priority,
            deadline=self.timeout,
            constraint=self._constraint(),
        )
        return self._choices(request)


def _prompts(given: object) -> object:
    """A text, texts, token ids, or lists of token ids: as a list of texts and lists of ids."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(item) is int for item in given)):
        return [given]
    return given


_Prompt = str | Annotated[list[TokenId], Field(min_length=1)]


class CompletionRequest(Sampled):
    """``POST /v1/completions``. Without ``max_tokens`` the answer has 16 tokens at most, as OpenAI documents it."""

    prompt: Annotated[
        list[_Prompt],
        Field(min_length=1, max_length=MAX_PROMPTS),
        BeforeValidator(
            _prompts, json_schema_input_type=_Prompt | Annotated[list[_Prompt], Field(max_length=MAX_PROMPTS)]
        ),
    ]
    max_tokens: int | None = Field(_LEGACY_MAX_TOKENS, ge=0)
    logprobs: int | None = Field(None, ge=0, le=MAX_LOGPROBS)
    echo: bool = False

    @model_validator(mode="after")
    def _no_contradictions(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise refuse("`max_tokens` of 0 needs `echo`: there would be no answer.")
        if self.n * len(self.prompt) > MAX_CHOICES:
            raise refuse("`n` and `prompt` ask for more than {most} choices.", most=MAX_CHOICES)
        self.constraint()  # refuses two at once
        return self

    def generate_requests(self, client: str = "") -> list[GenerateRequest]:
        """As the engine takes them: ``n`` for the first prompt, then ``n`` for the second, and so on."""
        requests: list[GenerateRequest] = []
        for prompt in self.prompt:
            request = GenerateRequest(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt),
                sampling=self.sampling(),
                max_tokens=self.max_tokens,
                stop=tuple(self.stop),
                n_logprobs=self.logprobs,
                # Only a prompt that is to be scored may be asked for no answer at all.
                prompt_logprobs=self.echo and (self.logprobs is not None or self.max_tokens == 0),
                ignore_eos=self.ignore_eos,
                client=client,
                priority=self.priority,
                deadline=self.timeout,
                constraint=self.constraint(),
            )
            requests.extend(self._choices(request))
        return requests


class EmbeddingsRequest(Wire):
    """``POST /v1/embeddings``. ``dimensions`` cuts the vectors off, which only some models are made for."""

    INERT: ClassVar[Inert] = {"user": anything}

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    input: Annotated[
        list[_Prompt],
        Field(min_length=1, max_length=MAX_INPUTS),
        BeforeValidator(
            _prompts, json_schema_input_type=_Prompt | Annotated[list[_Prompt], Field(max_length=MAX_INPUTS)]
        ),
    ]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class LoadRequest(Wire):
    """``POST /internal/load``."""

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
