"""Errors on the wire: OpenAI's error shape, its statuses and codes, in both directions.

The server turns an exception into a :class:`ErrorReply`, the client turns the body back into the same exception. No web
framework is imported here, because the client reads this table too.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineDiedError,
    EngineError,
    EngineLoadError,
    InvalidModelError,
    LocalLLMError,
    MemoryFitError,
    ModelNotFoundError,
    RequestError,
    ServerError,
    StoreError,
)

RETRY_AFTER_SECONDS = 2


class HTTPError(LocalLLMError):
    """A request that never reaches an engine: refused by a guard, a route or the request's types.

    Attributes:
        status: HTTP status.
        code: Machine-readable reason, such as ``unsupported_parameter``.
        param: The field at fault, as the API names it; empty when it is none in particular.
    """

    def __init__(self, status: int, code: str, message: str, hint: str = "", param: str = "") -> None:
        super().__init__(message, hint)
        self.status = status
        self.code = code
        self.param = param

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.status, self.code, self.message, self.hint, self.param))


@dataclass(frozen=True)
class ErrorReply:
    """An error as it is sent.

    Attributes:
        status: HTTP status.
        body: ``{"error": {"message", "type", "param", "code"}}`` and our own ``hint``.
        headers: More headers of the response.
    """

    status: int
    body: dict[str, Any]
    headers: dict[str, str] = field(default_factory=dict)


# The first class that matches wins, so subclasses stand before their bases.
_TABLE: tuple[tuple[type[LocalLLMError], int, str], ...] = (
    (ContextLengthError, 400, "context_length_exceeded"),
    (RequestError, 400, "invalid_request"),
    (ModelNotFoundError, 404, "model_not_found"),
    (EngineBusyError, 429, "server_busy"),
    (EngineDiedError, 503, "engine_died"),
    (EngineLoadError, 503, "engine_load_failed"),
    (EngineError, 503, "engine_failed"),
    (MemoryFitError, 503, "insufficient_memory"),
    (InvalidModelError, 500, "invalid_model"),
    (StoreError, 500, "store_failed"),
)
_CLASSES = {code: kind for kind, _, code in _TABLE if kind is not ContextLengthError}

# Trying these again at once cannot help; official clients would otherwise load the model three times.
_NO_RETRY = frozenset(
    {"engine_load_failed", "insufficient_memory", "invalid_model", "store_failed", "server_failed", "not_supported"}
)


def describe(error: LocalLLMError) -> ErrorReply:
    """The reply that tells a client about ``error``."""
    if isinstance(error, HTTPError):
        status, code = error.status, error.code
    else:
        status, code = next(((s, c) for kind, s, c in _TABLE if isinstance(error, kind)), (500, "server_failed"))
    detail: dict[str, Any] = {
        "message": str(error),
        "type": _kind(status),
        "param": getattr(error, "param", "") or None,
        "code": code,
    }
    if error.hint:
        detail["hint"] = error.hint
    if isinstance(error, ContextLengthError):
        detail.update(n_prompt=error.n_prompt, n_ctx=error.n_ctx)
    headers: dict[str, str] = {}
    if status == 429:
        headers["retry-after"] = str(RETRY_AFTER_SECONDS)
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    if code in _NO_RETRY:
        headers["x-should-retry"] = "false"
    return ErrorReply(status, {"error": detail}, headers)


def rebuild(status: int, body: object) -> LocalLLMError:
    """The exception that a reply tells about; the reverse of :func:`describe`.

    Args:
        status: HTTP status; 0 for an error event inside a stream.
        body: The decoded JSON body; anything that is not OpenAI's error shape gives a :class:`ServerError`.
    """
    detail = body.get("error") if isinstance(body, Mapping) else None
    if not isinstance(detail, Mapping) or not isinstance(detail.get("message"), str):
        return ServerError(f"The server answered with status {status} and no explanation.")
    hint = str(detail.get("hint") or "")
    message = str(detail["message"]).removesuffix(hint).rstrip()
    code = detail.get("code")
    n_prompt, n_ctx = detail.get("n_prompt"), detail.get("n_ctx")
    if code == "context_length_exceeded" and isinstance(n_prompt, int) and isinstance(n_ctx, int):
        return ContextLengthError(n_prompt, n_ctx)
    kind = _CLASSES.get(str(code))
    if kind is RequestError or (kind is None and status in {400, 422}):
        return RequestError(message, hint, str(detail.get("param") or ""))
    return (kind or ServerError)(message, hint)


def _kind(status: int) -> str:
    """OpenAI's ``type`` of an error."""
    match status:
        case 401:
            return "authentication_error"
        case 403:
            return "permission_error"
        case 404:
            return "not_found_error"
        case 429:
            return "rate_limit_error"
        case _ if status >= 500:
            return "server_error"
        case _:
            return "invalid_request_error"
