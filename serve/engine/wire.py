"""The pipe between the server and an engine's process: frames of JSON, one a step with all that happened in it.

A frame is a 4-byte little-endian length and that many bytes of JSON. The server sends ``{"op": …}`` with one of
``generate``, ``prompt_tokens``, ``embed``, ``rerank``, ``tokenize``, ``detokenize``, ``cancel``, ``close``; the engine
answers ``{"ready": {…}}`` or ``{"failed": […]}`` once, then ``{"events": […]}``.
"""

import json
import struct
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineError,
    EngineLoadError,
    LocalLLMError,
    RequestError,
)
from serve.engine.constraint_types import Constraint
from serve.engine.types import (
    Delta,
    Embeddings,
    Finished,
    GenerateRequest,
    PromptLogprobs,
    SamplingParams,
    Scores,
    Started,
    TokenLogprob,
    Usage,
)

MAX_FRAME = 256 << 20
HEADER = struct.Struct("<I")
# json.dumps builds an encoder for every call that has options; a frame goes out with every token.
_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True)
class Reply:
    """The answer to a question that is answered at once: token ids, or text."""

    value: Any


Event = Started | PromptLogprobs | Delta | Finished | Embeddings | Scores | Reply | LocalLLMError

# Errors that cross the pipe as themselves; any other one is a bug in the engine and ends its process.
_ERRORS: dict[str, type[LocalLLMError]] = {
    cls.__name__: cls for cls in (EngineBusyError, EngineError, EngineLoadError, RequestError)
}


def encode_frame(message: dict[str, Any]) -> bytes:
    """A message as bytes, length first."""
    body = _encode(message).encode("utf-8", errors="replace")
    if len(body) > MAX_FRAME:
        raise RequestError(f"A message of {len(body)} bytes is too long.")
    return HEADER.pack(len(body)) + body


def decode_frame(body: bytes) -> dict[str, Any]:
    """The message in a frame's body."""
    message = json.loads(body)
    assert isinstance(message, dict)
    return message


def request_to_wire(request: GenerateRequest) -> dict[str, Any]:
    """A request as JSON."""
    return asdict(request)


def request_from_wire(record: dict[str, Any]) -> GenerateRequest:
    """The inverse of :func:`request_to_wire`."""
    fields = dict(record)
    prompt, messages, sampling = fields["prompt"], fields["messages"], dict(fields["sampling"])
    sampling["logit_bias"] = tuple((token, bias) for token, bias in sampling["logit_bias"])
    fields["prompt"] = tuple(prompt) if isinstance(prompt, list) else prompt
    fields["messages"] = None if messages is None else tuple(messages)
    fields["sampling"] = SamplingParams(**sampling)
    fields["stop"], fields["show_special"] = tuple(fields["stop"]), tuple(fields["show_special"])
    fields["adapters"] = tuple((path, scale) for path, scale in fields["adapters"])
    fields["constraint"] = None if fields["constraint"] is None else Constraint(**fields["constraint"])
    return GenerateRequest(**fields)


def event_to_wire(job_id: int, event: Event) -> list[Any]:
    """An event as a short list: id, kind, values."""
    if type(event) is Delta and not event.logprobs:  # one for every token: the match below costs ten times as much
        return [job_id, "d", event.text, event.n_tokens]
    match event:
        case Delta(text, n_tokens, logprobs):
            return [job_id, "d", text, n_tokens, _logprobs_to_wire(logprobs)]
        case PromptLogprobs(tokens):
            return [job_id, "p", _logprobs_to_wire(tokens)]
        case Started(n_prompt, n_cached):
            return [job_id, "s", n_prompt, n_cached]
        case Finished(reason, usage, stop):
            return [job_id, "f", reason, asdict(usage), stop]
        case Embeddings(vectors, n_tokens):
            return [job_id, "v", vectors, n_tokens]
        case Scores(values, n_tokens):
            return [job_id, "k", values, n_tokens]
        case Reply(value):
            return [job_id, "r", value]
        case LocalLLMError():
            return [job_id, "e", *error_to_wire(event)]


def event_from_wire(record: list[Any]) -> tuple[int, Event]:
    """The inverse of :func:`event_to_wire`."""
    match record:
        case [job_id, "d", text, n_tokens]:
            return job_id, Delta(text, n_tokens)
        case [job_id, "d", text, n_tokens, logprobs]:
            return job_id, Delta(text, n_tokens, _logprobs_from_wire(logprobs))
        case [job_id, "p", logprobs]:
            return job_id, PromptLogprobs(_logprobs_from_wire(logprobs))
        case [job_id, "r", value]:
            return job_id, Reply(value)
        case [job_id, "s", n_prompt, n_cached]:
            return job_id, Started(n_prompt, n_cached)
        case [job_id, "f", reason, usage, stop]:
            return job_id, Finished(reason, Usage(**usage), stop)
        case [job_id, "v", vectors, n_tokens]:
            return job_id, Embeddings(tuple(tuple(vector) for vector in vectors), n_tokens)
        case [job_id, "k", values, n_tokens]:
            return job_id, Scores(tuple(values), n_tokens)
        case [job_id, "e", *error]:
            return job_id, error_from_wire(error)
    raise ValueError(f"unknown event {record[1:2]!r:.20}")  # not the text in it: this is logged


def _logprobs_to_wire(logprobs: Sequence[TokenLogprob]) -> list[Any]:
    # Tokens are bytes, often no whole characters: Latin-1 gives each byte a character of its own.
    return [
        [item.token, item.text.decode("latin-1"), item.logprob, [[text.decode("latin-1"), p] for text, p in item.top]]
        for item in logprobs
    ]


def _logprobs_from_wire(record: list[Any]) -> tuple[TokenLogprob, ...]:
    return tuple(
        TokenLogprob(token, text.encode("latin-1"), logprob, tuple((other.encode("latin-1"), p) for other, p in top))
        for token, text, logprob, top in record
    )


def error_to_wire(error: LocalLLMError) -> list[Any]:
    """An error as a list: class name, then its arguments."""
    match error:
        case ContextLengthError():
            return ["ContextLengthError", error.n_prompt, error.n_ctx]
        case RequestError():
            return ["RequestError", error.message, error.hint, error.param]
        case _:
            name = type(error).__name__
            return [name if name in _ERRORS else "EngineError", error.message, error.hint]


def error_from_wire(record: list[Any]) -> LocalLLMError:
    """The inverse of :func:`error_to_wire`."""
    name, *arguments = record
    if name == "ContextLengthError":
        return ContextLengthError(*arguments)
    return _ERRORS.get(name, EngineError)(*arguments)
