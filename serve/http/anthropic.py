"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages API."""

import json
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from localllm.errors import ContextLengthError
from serve.engine.types import Delta, Finished, FinishReason, GenerateRequest, Started, TokenLogprob
from serve.http.anthropic_types import CountTokensRequest, MessagesRequest
from serve.http.completion import complete
from serve.http.dialects import error_body
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.sse import StreamStyle, open_stream, sse_event
from serve.http.wire_types import validate
from serve.supervisor import Supervisor


def _event(kind: str, **more: object) -> bytes:
    return sse_event({"type": kind, **more}, kind)


_STREAM = StreamStyle("text/event-stream", lambda reply: sse_event(error_body("anthropic", reply), "error"))
_DELTA = (
    b'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":'
)
_DELTA_END = b"}}\n\n"


class AnthropicRoutes:
    """The routes of the Messages API.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def messages(self, request: Request) -> Response:
        """``POST /v1/messages``."""
        body = validate(MessagesRequest, parse_json(await request.body()))
        wanted = body.generate_request(client_of(request))
        if body.stream:
            return await open_stream(request.receive, self._events(body.model, wanted), _STREAM)
        return JSONResponse(await unless_disconnected(request.receive, self._message(body.model, wanted)))

    async def count_tokens(self, request: Request) -> Response:
        """``POST /v1/messages/count_tokens``."""
        body = validate(CountTokensRequest, parse_json(await request.body()))
        wanted = body.generate_request(client_of(request))
        return JSONResponse(
            {"input_tokens": await unless_disconnected(request.receive, self._count(body.model, wanted))}
        )

    async def _message(self, model: str, wanted: GenerateRequest) -> dict[str, Any]:
        async with self._supervisor.engine(model) as (manifest, engine):
            done = await complete(engine, wanted)
        usage = done.finished.usage
        return {
            **_message_fields(str(manifest.model_name)),
            "content": [{"type": "text", "text": done.text, "citations": None}],
            **_stop_fields(done.finished.reason, wanted.stop, done.logprobs),
            "usage": {**_input_fields(usage.n_prompt, usage.n_cached), "output_tokens": usage.n_completion},
        }

    async def _events(self, model: str, wanted: GenerateRequest) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(model) as (manifest, engine):
            seen: list[TokenLogprob] = []
            async with aclosing(generate_all(engine, [wanted])) as events:
                async for _, event in events:
                    match event:
                        case Started(n_prompt=n_prompt, n_cached=n_cached):
                            usage = {**_input_fields(n_prompt, n_cached), "output_tokens": 0}
                            empty = {"content": [], "stop_reason": None, "stop_sequence": None, "usage": usage}
                            name = str(manifest.model_name)
                            yield _event("message_start", message={**_message_fields(name), **empty})
                            block = {"type": "text", "text": "", "citations": None}
                            yield _event("content_block_start", index=0, content_block=block)
                        case Delta(text=text, logprobs=tokens):
                            seen.extend(tokens)
                            if text:
                                yield _DELTA + json.dumps(text).encode("ascii") + _DELTA_END
                        case Finished(reason=reason, usage=counts):
                            yield _event("content_block_stop", index=0)
                            total = {
                                **_input_fields(counts.n_prompt, counts.n_cached),
                                "output_tokens": counts.n_completion,
                            }
                            stop = _stop_fields(reason, wanted.stop, seen)
                            yield _event("message_delta", delta=stop, usage=total)
            yield _event("message_stop")

    async def _count(self, model: str, wanted: GenerateRequest) -> int:
        """Tokens of a prompt, known as soon as the engine has admitted it; then it is cancelled."""
        async with (
            self._supervisor.engine(model) as (_, engine),
            aclosing(generate_all(engine, [wanted])) as events,
        ):
            try:
                async for _, event in events:
                    if isinstance(event, Started):
                        return event.n_prompt
            except ContextLengthError as error:
                return error.n_prompt
        raise AssertionError("an engine's events begin with Started or with an error")


def _message_fields(model: str) -> dict[str, Any]:
    return {"id": f"msg_{uuid.uuid4().hex}", "type": "message", "role": "assistant", "model": model}


def _input_fields(n_prompt: int, n_cached: int) -> dict[str, int]:
    """Anthropic counts the cached tokens beside the others, not among them."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
    }


def _stop_fields(reason: FinishReason, stops: Sequence[str], tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
    """Why the answer ended.

    Args:
        reason: As the engine says it.
        stops: The stop sequences of the request.
        tokens: All tokens of the answer, those of the stop sequence too; needed where there are stop sequences.
    """
    if reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    text = b"".join(token.text for token in tokens).decode("utf-8", errors="replace")
    found = min(((text.find(stop), stop) for stop in stops if stop in text), default=None)
    if found is None:
        return {"stop_reason": "end_turn", "stop_sequence": None}
    return {"stop_reason": "stop_sequence", "stop_sequence": found[1]}
