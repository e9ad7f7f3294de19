"""Errors as each API spells them; which one is told by the path.

The statuses are the same everywhere. Below ``/v1/messages`` it is Anthropic's shape, below ``/api/`` Ollama's, and
OpenAI's anywhere else. ``code``, ``param`` and ``hint`` are in all of them.
"""

from typing import Any, Literal

from serve.http.errors import ErrorReply

Dialect = Literal["openai", "anthropic", "ollama"]

_ANTHROPIC_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


def dialect_of(path: str) -> Dialect:
    """Which API a path belongs to."""
    if path == "/v1/messages" or path.startswith("/v1/messages/"):
        return "anthropic"
    return "ollama" if path.startswith("/api/") else "openai"


def error_body(dialect: Dialect, reply: ErrorReply) -> dict[str, Any]:
    """The body that tells about an error."""
    detail = reply.body["error"]
    match dialect:
        case "openai":
            return reply.body
        case "anthropic":
            kind = _ANTHROPIC_TYPES.get(reply.status, "api_error" if reply.status >= 500 else "invalid_request_error")
            return {"type": "error", "error": {**detail, "type": kind}}
        case "ollama":
            return {**detail, "error": detail["message"]}
