"""Requests of Ollama's API, as far as they are supported; everything else is refused by name.

How a model is loaded is decided when it is loaded, by ``localllm serve``: options such as ``num_gpu`` are refused, and
``num_ctx`` may ask for no more than there is. ``keep_alive`` holds until the next request for the model, and gives way
when the memory is needed for another one.
"""

import json
import math
import re
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from localllm.errors import RequestError
from serve.engine.constraint_types import Constraint
from serve.engine.types import EngineInfo, GenerateRequest, SamplingParams
from serve.http.ollama_tools import OllamaCall, with_ids
from serve.http.openai_types import MAX_INPUTS, MAX_LOGPROBS, Stop
from serve.http.tool_types import MAX_TOOLS, ToolDefinition, tool_plan
from serve.http.wire_types import MAX_MODEL_NAME, MAX_SEED, MAX_STOPS, Inert, Wire, anything, one_of, refuse
from serve.toolcalls.plan import ToolPlan

_DURATION = re.compile(r"-?(\d+(\.\d+)?(ns|us|µs|ms|s|m|h))+", re.ASCII)
_PART = re.compile(r"([\d.]+)(ns|us|µs|ms|s|m|h)", re.ASCII)
_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
_LONGEST = 1e9  # seconds; what is longer is for ever
_ENDLESS = (-1, -2)  # no limit; until the context is full


def _duration(given: object) -> object:
    """Seconds of a number, or of text as Go writes durations; below 0 is for ever."""
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise refuse("Give seconds, or a duration such as 5m.")
    if isinstance(given, str):
        if given != "0" and not _DURATION.fullmatch(given):
            raise refuse("Give seconds, or a duration such as 5m.")
        seconds = sum(float(number) * _UNITS[unit] for number, unit in _PART.findall(given))
        given = -1.0 if given.startswith("-") and seconds else seconds
    return -1.0 if given < 0 or given > _LONGEST else float(given)


def _for_ever(seconds: float) -> float:
    return math.inf if seconds < 0 else seconds


KeepAlive = Annotated[float, BeforeValidator(_duration, json_schema_input_type=float | str), AfterValidator(_for_ever)]


def _as_list(given: object) -> object:
    return [given] if isinstance(given, str) else given


def _truth_value(given: object) -> object:
    """A literal is compared by value alone, and 0 equals False."""
    if not isinstance(given, bool):
        raise refuse("Input should be a valid boolean")
    return given


def _n_predict(given: int) -> int:
    if given < 1 and given not in _ENDLESS:
        raise refuse("Give 1 or more, or -1 for no limit.")
    return given


class Options(Wire):
    """``options``, those of a request; those of a load are refused."""

    INERT: ClassVar[Inert] = {
        # The context is never shifted, so nothing is ever dropped from it.
        "num_keep": anything,
        "typical_p": one_of(1, 1.0),
        "tfs_z": one_of(1, 1.0),
        "mirostat": one_of(0),
        # Mirostat is off.
        "mirostat_tau": anything,
        "mirostat_eta": anything,
    }

    temperature: float = Field(SamplingParams.temperature, ge=0, le=5)
    top_k: int = Field(SamplingParams.top_k, ge=0, le=2**31 - 1)
    top_p: float = Field(SamplingParams.top_p, gt=0, le=1)
    min_p: float = Field(SamplingParams.min_p, ge=0, le=1)
    repeat_penalty: float = Field(SamplingParams.repeat_penalty, gt=0, le=10)
    repeat_last_n: int = Field(SamplingParams.repeat_last_n, ge=-1, le=2**31 - 1)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Annotated[
        list[Stop], BeforeValidator(_as_list, json_schema_input_type=Stop | list[Stop]), Field(max_length=MAX_STOPS)
    ] = Field(default_factory=list)
    num_predict: Annotated[int, AfterValidator(_n_predict)] = -1
    num_ctx: int | None = Field(None, ge=1)

    def sampling(self) -> SamplingParams:
        """How tokens are to be chosen."""
        names = SamplingParams.__dataclass_fields__.keys() & Options.model_fields.keys()
        return SamplingParams(**{name: getattr(self, name) for name in names})


class _Generating(Wire):
    """What chats and completions have in common."""

    INERT: ClassVar[Inert] = {
        "images": one_of([]),
        "suffix": one_of(""),
        "template": one_of(""),
        "context": one_of([]),
    }

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    stream: bool = True
    options: Options = Options()
    keep_alive: KeepAlive | None = None
    format: Literal["", "json"] | dict[str, Any] | None = None
    think: Annotated[Literal[False], BeforeValidator(_truth_value)] | None = None
    logprobs: bool = False
    top_logprobs: int = Field(0, ge=0, le=MAX_LOGPROBS)

    @model_validator(mode="after")
    def _alternatives_need_logprobs(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise refuse("`top_logprobs` needs `logprobs` to be true.")
        return self

    def check(self, info: EngineInfo) -> None:
        """Refuse what the loaded model cannot do.

        Raises:
            RequestError: It has a smaller context than was asked for.
        """
        num_ctx = self.options.num_ctx
        if num_ctx is not None and num_ctx > info.n_ctx:
            raise RequestError(
                f"`num_ctx` {num_ctx} is more than this model's context, which holds {info.n_ctx} tokens.",
                "Leave it out, or start `localllm serve` with a larger --ctx.",
                "options.num_ctx",
            )

    def _request(self, client: str, **prompt: Any) -> GenerateRequest:
        n_predict = self.options.num_predict
        return GenerateRequest(
            **prompt,
            sampling=self.options.sampling(),
            max_tokens=None if n_predict in _ENDLESS else n_predict,
            stop=tuple(self.options.stop),
            template_args={} if self.think is None else {"enable_thinking": self.think},
            n_logprobs=self.top_logprobs if self.logprobs else None,
            constraint=self._constraint(),
            client=client,
        )

    def _constraint(self) -> Constraint | None:
        """``format``: any JSON object, or JSON of a schema."""
        match self.format:
            case None | "":
                return None
            case "json":
                return Constraint("json_object")
            case schema:
                # As with Ollama, what cannot be enforced is let go.
                return Constraint("json_schema", json.dumps(schema, ensure_ascii=False), lenient=True)


class Message(Wire):
    """One message of a chat."""

    INERT: ClassVar[Inert] = {
        "images": one_of([]),
        "tool_calls": one_of([]),
        "thinking": one_of(""),
    }

    role: Literal["system", "user", "assistant", "tool"]
    content: str = ""
    tool_calls: list[OllamaCall] = Field(default_factory=list, max_length=MAX_TOOLS)
    tool_name: str | None = Field(None, max_length=256)

    @model_validator(mode="after")
    def _tools_where_they_belong(self) -> Self:
        if self.tool_calls and self.role != "assistant":
            raise refuse("`tool_calls` belong to messages of the assistant.")
        if self.tool_name and self.role != "tool":
            raise refuse("`tool_name` belongs to messages of the role `tool`.")
        return self

    def as_dict(self) -> dict[str, Any]:
        """As :func:`serve.http.ollama_tools.with_ids` takes it."""
        return {name: value for name, value in dict(self).items() if value or name in ("role", "content")}


class OllamaChatRequest(_Generating):
    """``POST /api/chat``."""

    messages: list[Message] = Field(default_factory=list)
    tools: list[ToolDefinition] = Field(default_factory=list, max_length=MAX_TOOLS)

    @model_validator(mode="after")
    def _a_plan(self) -> Self:
        self.tool_plan()  # refuses tools of one name
        return self

    def tool_plan(self) -> ToolPlan | None:
        """What is asked of tools, if anything."""
        called_before = any(message.tool_calls or message.role == "tool" for message in self.messages)
        return tool_plan(self.tools, "auto", parallel=True, called_before=called_before)

    @property
    def loads_only(self) -> bool:
        """There is no message: the model is only to be loaded."""
        return not self.messages

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it."""
        return self._request(client, messages=with_ids([message.as_dict() for message in self.messages]))


class OllamaGenerateRequest(_Generating):
    """``POST /api/generate``."""

    prompt: str = ""
    system: str = ""
    raw: bool = False

    @model_validator(mode="after")
    def _raw_means_raw(self) -> Self:
        if self.raw and self.system:
            raise refuse("`system` has no place in a `raw` prompt.")
        return self

    def tool_plan(self) -> ToolPlan | None:
        """Prompts have no tools."""
        return None

    @property
    def loads_only(self) -> bool:
        """There is no prompt: the model is only to be loaded."""
        return not self.prompt

    def generate_request(self, client: str) -> GenerateRequest:
        """As the engine takes it: the prompt as it is, or as a chat in the model's own template."""
        if self.raw:
            return self._request(client, prompt=self.prompt)
        system: list[dict[str, str]] = [{"role": "system", "content": self.system}] if self.system else []
        return self._request(client, messages=(*system, {"role": "user", "content": self.prompt}))


class EmbedRequest(Wire):
    """``POST /api/embed``. A text that is too long is an error, never cut off; ``truncate`` may not ask for that."""

    INERT: ClassVar[Inert] = {"truncate": one_of(False), "options": one_of({})}

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
    input: Annotated[
        list[str],
        BeforeValidator(_as_list, json_schema_input_type=str | list[str]),
        Field(min_length=1, max_length=MAX_INPUTS),
    ]
    keep_alive: KeepAlive | None = None
    dimensions: int | None = Field(None, ge=1)


class ShowRequest(Wire):
    """``POST /api/show``."""

    INERT: ClassVar[Inert] = {"verbose": one_of(False)}

    model: str = Field(min_length=1, max_length=MAX_MODEL_NAME)
