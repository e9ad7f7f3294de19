"""Bodies of answers that are not streamed."""

from collections.abc import Sequence
from typing import Any

from starlette.responses import JSONResponse

from localllm.errors import LocalLLMError
from serve.engine.types import Usage
from serve.http.dialects import dialect_of, error_body
from serve.http.errors import describe


def error_response(error: LocalLLMError, path: str) -> JSONResponse:
    """``error`` with its status, in the shape of the API that ``path`` belongs to."""
    reply = describe(error)
    return JSONResponse(error_body(dialect_of(path), reply), reply.status, reply.headers)


def usage_fields(usages: Sequence[Usage], n: int = 1) -> dict[str, Any]:
    """OpenAI's ``usage`` of one request, summed over its choices.

    Args:
        usages: Of every choice: ``n`` of the first prompt, ``n`` of the second, …
        n: Choices of one prompt; the prompt counts once.
    """
    n_prompt = sum(usage.n_prompt for usage in usages[::n])
    n_completion = sum(usage.n_completion for usage in usages)
    return {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {"cached_tokens": sum(usage.n_cached for usage in usages[::n])},
    }


def timing_fields(usages: Sequence[Usage], n_ctx: int) -> dict[str, Any]:
    """Our own ``timings``: of the slowest choice, because choices are made together."""
    return {
        "prompt_seconds": max(usage.prompt_seconds for usage in usages),
        "decode_seconds": max(usage.decode_seconds for usage in usages),
        "n_ctx": n_ctx,
    }
