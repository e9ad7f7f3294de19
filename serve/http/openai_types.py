"""Requests of the OpenAI API, as far as they are supported; everything else is refused by name, never dropped.

Fields that official clients send but that ask for nothing (``user``, ``n=1``, ``store=false``, …) are accepted when
their value asks for nothing: :data:`INERT` lists them. ``reasoning_effort`` and ``verbosity`` are refused, because a
client that sends them expects another answer.

Our own additions: ``top_k``, ``min_p``, ``repeat_penalty``, ``repeat_last_n`` (as in
:class:`serve.engine.types.SamplingParams`) and ``chat_template_kwargs`` (more names for the model's chat template).
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from serve.engine.types import GenerateRequest, SamplingParams
from serve.http.errors import HTTPError

MAX_STOPS = 16
MAX_STOP_LENGTH = 512
MAX_PROMPTS = 64
MAX_INPUTS = 2048
MAX_SEED = 2**32 - 2
_LEGACY_MAX_TOKENS = 16  # what OpenAI documents for /v1/completions

_UNSUPPORTED = "unsupported_parameter"
_INVALID = "invalid_value"


def _one_of(*values: object) -> Callable[[object], bool]:
    """A test for these very values: 1 is not True here."""
    return lambda given: any(type(given) is type(value) and given == value for value in values)


def _anything(_given: object) -> bool:
    return True


# Known fields that change nothing, each with the values for which that is true. None is always one of them.
INERT: Mapping[str, Callable[[object], bool]] = {
    "user": _anything,
    "metadata": _anything,
    "safety_identifier": _anything,
    "prompt_cache_key": _anything,
    "prompt_cache_retention": _anything,
    "store": _one_of(False),
    "n": _one_of(1),
    "best_of": _one_of(1),
    "echo": _one_of(False),
    "suffix": _one_of(""),
    "logprobs": _one_of(False),
    "top_logprobs": _one_of(0),
    "logit_bias": _one_of({}),
    "service_tier": _one_of("auto", "default"),
    "modalities": _one_of(["text"]),
    "response_format": _one_of({"type": "text"}),
    "tools": _one_of([]),
    "functions": _one_of([]),
    "tool_choice": _one_of("none", "auto"),
    "function_call": _one_of("none", "auto"),
    "parallel_tool_calls": _anything,  # tools are refused, so it can mean nothing
    "audio": _one_of(),
    "prediction": _one_of(),
    "reasoning_effort": _one_of(),
    "verbosity": _one_of(),
    "web_search_options": _one_of(),
}
# What an assistant's message may carry when it comes back from an official client.
_INERT_IN_MESSAGE: Mapping[str, Callable[[object], bool]] = {
    "refusal": _one_of(),
    "audio": _one_of(),
    "function_call": _one_of(),
    "tool_calls": _one_of([]),
    "annotations": _one_of([]),
}


def _without_inert(raw: object, inert: Mapping[str, Callable[[object], bool]]) -> object:
    """``raw`` without its inert fields, and without ``null`` ones; fields that do ask for something stay."""
    if not isinstance(raw, dict):
        return raw
    return {
        name: value
        for name, value in raw.items()
        if not (name in inert and (value is None or inert[name](value))) and not (value is None and name not in inert)
    }


class _Wire(BaseModel):
    """Exact types: a number in quotes is no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def _text_of(content: object) -> object:
    """The text of a message's content: a string, or a list of text parts."""
    if not isinstance(content, list):
        return content
    texts: list[str] = []
    for part in content:
        kind = part.get("type") if isinstance(part, dict) else None
        if kind != "text":
            named = f"Parts of type {kind[:40]!r}" if isinstance(kind, str) else "Parts without a type"
            raise PydanticCustomError(_UNSUPPORTED, "{named} are not supported, only text.", {"named": named})
        if not isinstance(part.get("text"), str) or part.keys() - {"type", "text"}:
            raise PydanticCustomError(_INVALID, "A text part has the fields `type` and `text`.")
        texts.append(part["text"])
    return "\n".join(texts)


class ChatMessage(_Wire):
    """One message. ``developer`` is another word for ``system``."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(_text_of)]
    name: str | None = Field(None, max_length=256)

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, raw: object) -> object:
        return _without_inert(raw, _INERT_IN_MESSAGE)

    def as_dict(self) -> dict[str, Any]:
        """As the chat template takes it."""
        message = {"role": "system" if self.role == "developer" else self.role, "content": self.content}
        return {**message, "name": self.name} if self.name is not None else message


class StreamOptions(_Wire):
    """``stream_options``; ``include_obfuscation`` asks for padding, which loopback has no use for."""

    include_usage: bool = False
    include_obfuscation: bool = False


def _as_list(stop: object) -> object:
    return [stop] if isinstance(stop, str) else stop


_Stop = Annotated[str, Field(min_length=1, max_length=MAX_STOP_LENGTH)]


class _Sampled(_Wire):
    """What chats and completions have in common."""

    model: str = Field(min_length=1, max_length=256)
    temperature: float = Field(SamplingParams.temperature, ge=0, le=5)
    top_p: float = Field(SamplingParams.top_p, gt=0, le=1)
    top_k: int = Field(SamplingParams.top_k, ge=0, le=2**31 - 1)
    min_p: float = Field(SamplingParams.min_p, ge=0, le=1)
    repeat_penalty: float = Field(SamplingParams.repeat_penalty, gt=0, le=10)
    repeat_last_n: int = Field(SamplingParams.repeat_last_n, ge=-1, le=2**31 - 1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Annotated[list[_Stop], BeforeValidator(_as_list), Field(max_length=MAX_STOPS)] = Field(default_factory=list)
    max_tokens: int | None = Field(None, ge=1)
    stream: bool = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, raw: object) -> object:
        return _without_inert(raw, INERT)

    @model_validator(mode="after")
    def _options_need_a_stream(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise PydanticCustomError(_INVALID, "`stream_options` needs `stream` to be true.")
        return self

    @property
    def include_usage(self) -> bool:
        """A chunk with the usage is wanted."""
        return self.stream_options is not None and self.stream_options.include_usage

    def sampling(self) -> SamplingParams:
        """How tokens are to be chosen."""
        return SamplingParams(**{name: getattr(self, name) for name in SamplingParams.__dataclass_fields__})


_RESERVED_TEMPLATE_NAMES = frozenset(
    {"messages", "tools", "documents", "add_generation_prompt", "bos_token", "eos_token"}
)


def _template_args(args: object) -> object:
    if isinstance(args, dict) and (taken := args.keys() & _RESERVED_TEMPLATE_NAMES):
        raise PydanticCustomError(_INVALID, "{name} cannot be set here.", {"name": min(taken)})
    return args


class ChatRequest(_Sampled):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    chat_template_kwargs: Annotated[dict[str, bool | int | float | str], BeforeValidator(_template_args)] = Field(
        default_factory=dict, max_length=32
    )

    @model_validator(mode="after")
    def _one_limit(self) -> Self:
        if None not in (self.max_tokens, self.max_completion_tokens) and self.max_tokens != self.max_completion_tokens:
            raise PydanticCustomError(_INVALID, "`max_tokens` and `max_completion_tokens` contradict each other.")
        return self

    def generate_request(self) -> GenerateRequest:
        """As the engine takes it."""
        return GenerateRequest(
            messages=tuple(message.as_dict() for message in self.messages),
            sampling=self.sampling(),
            max_tokens=self.max_completion_tokens if self.max_tokens is None else self.max_tokens,
            stop=tuple(self.stop),
            template_args=dict(self.chat_template_kwargs),
        )


def _prompts(given: object) -> object:
    """A text, texts, token ids, or lists of token ids: as a list of texts and lists of ids."""
    if isinstance(given, str) or (isinstance(given, list) and given and all(type(item) is int for item in given)):
        return [given]
    return given


_TokenId = Annotated[int, Field(ge=0, le=2**31 - 1)]
_Prompt = str | Annotated[list[_TokenId], Field(min_length=1)]


class CompletionRequest(_Sampled):
    """``POST /v1/completions``. Without ``max_tokens`` the answer has 16 tokens at most, as OpenAI documents it."""

    prompt: Annotated[list[_Prompt], BeforeValidator(_prompts), Field(min_length=1, max_length=MAX_PROMPTS)]
    max_tokens: int | None = Field(_LEGACY_MAX_TOKENS, ge=1)

    def generate_requests(self) -> list[GenerateRequest]:
        """One for each prompt."""
        return [
            GenerateRequest(
                prompt=prompt if isinstance(prompt, str) else tuple(prompt),
                sampling=self.sampling(),
                max_tokens=self.max_tokens,
                stop=tuple(self.stop),
            )
            for prompt in self.prompt
        ]


class EmbeddingsRequest(_Wire):
    """``POST /v1/embeddings``. ``dimensions`` must be the model's own."""

    model: str = Field(min_length=1, max_length=256)
    input: Annotated[list[_Prompt], BeforeValidator(_prompts), Field(min_length=1, max_length=MAX_INPUTS)]
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)

    @model_validator(mode="before")
    @classmethod
    def _drop_inert(cls, raw: object) -> object:
        return _without_inert(raw, INERT)


class LoadRequest(_Wire):
    """``POST /internal/load``."""

    model: str = Field(min_length=1, max_length=256)


_Request = TypeVar("_Request", bound=_Wire)


def validate(kind: type[_Request], raw: Mapping[str, Any]) -> _Request:
    """``raw`` as a request.

    Raises:
        HTTPError: 400, naming the field: ``unsupported_parameter`` or ``invalid_value``.
    """
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        # What was given is left out: it may be part of a prompt.
        first = error.errors(include_input=False, include_url=False, include_context=False)[0]
    param = ".".join(str(part)[:64] for part in first["loc"])
    match first["type"]:
        case "extra_forbidden":
            manner = " with this value" if param in INERT else ""
            raise HTTPError(400, _UNSUPPORTED, f"`{param}` is not supported{manner}.", "Leave it out.", param)
        case "missing":
            raise HTTPError(400, "missing_required_parameter", f"`{param}` is missing.", param=param)
        case kind_of_error:
            code = _UNSUPPORTED if kind_of_error == _UNSUPPORTED else _INVALID
            message = f"{param}: {first['msg']}" if param else first["msg"]
            raise HTTPError(400, code, message, param=param)
