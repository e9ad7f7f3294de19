"""The pipe between the server and an engine's process: frames of JSON, one a step with all that happened in it.

A frame is a 4-byte little-endian length and that many bytes of JSON. The server sends ``{"op": "generate" | "embed" |
"cancel" | "close", …}``; the engine answers ``{"ready": {…}}`` or ``{"failed": […]}`` once, then ``{"events": […]}``.
"""

import json
import struct
from dataclasses import asdict
from typing import Any

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineError,
    EngineLoadError,
    LocalLLMError,
    RequestError,
)
from serve.engine.types import Delta, Embeddings, Finished, GenerateRequest, SamplingParams, Started, Usage

MAX_FRAME = 256 << 20
HEADER = struct.Struct("<I")

Event = Started | Delta | Finished | Embeddings | LocalLLMError

# Errors that cross the pipe as themselves; any other one is a bug in the engine and ends its process.
_ERRORS: dict[str, type[LocalLLMError]] = {
    cls.__name__: cls for cls in (EngineBusyError, EngineError, EngineLoadError, RequestError)
}


def encode_frame(message: dict[str, Any]) -> bytes:
    """A message as bytes, length first."""
    body = json.dumps(message, ensure_ascii=False, separators=(",", ":")).encode("utf-8", errors="replace")
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
    prompt = record["prompt"]
    return GenerateRequest(
        messages=None if record["messages"] is None else tuple(record["messages"]),
        prompt=tuple(prompt) if isinstance(prompt, list) else prompt,
        sampling=SamplingParams(**record["sampling"]),
        max_tokens=record["max_tokens"],
        stop=tuple(record["stop"]),
        template_args=record["template_args"],
    )


def event_to_wire(job_id: int, event: Event) -> list[Any]:
    """An event as a short list: id, kind, values."""
    match event:
        case Delta(text, n_tokens):
            return [job_id, "d", text, n_tokens]
        case Started(n_prompt, n_cached):
            return [job_id, "s", n_prompt, n_cached]
        case Finished(reason, usage):
            return [job_id, "f", reason, asdict(usage)]
        case Embeddings(vectors, n_tokens):
            return [job_id, "v", vectors, n_tokens]
        case LocalLLMError():
            return [job_id, "e", *error_to_wire(event)]


def event_from_wire(record: list[Any]) -> tuple[int, Event]:
    """The inverse of :func:`event_to_wire`."""
    match record:
        case [job_id, "d", text, n_tokens]:
            return job_id, Delta(text, n_tokens)
        case [job_id, "s", n_prompt, n_cached]:
            return job_id, Started(n_prompt, n_cached)
        case [job_id, "f", reason, usage]:
            return job_id, Finished(reason, Usage(**usage))
        case [job_id, "v", vectors, n_tokens]:
            return job_id, Embeddings(tuple(tuple(vector) for vector in vectors), n_tokens)
        case [job_id, "e", *error]:
            return job_id, error_from_wire(error)
    raise ValueError(f"unknown event {record!r:.80}")


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
