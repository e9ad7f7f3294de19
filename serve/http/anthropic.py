"""``/v1/messages`` and ``/v1/messages/count_tokens``: Anthropic's Messages API."""

import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Delta, Finished, Started, Usage
from serve.http.anthropic_blocks import BlockEvents, event, whole_blocks
from serve.http.anthropic_types import CountTokensRequest, MessagesRequest
from serve.http.completion import complete
from serve.http.dialects import error_body
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.sse import StreamStyle, open_stream, sse_event
from serve.http.tool_answer import ToolAnswer
from serve.http.wire_types import validate
from serve.supervisor import Supervisor

_NO_STOP = {"stop_reason": None, "stop_sequence": None}
_STREAM = StreamStyle(
    "text/event-stream", lambda reply: sse_event(error_body("anthropic", reply), "error"), event("ping")
)


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
        client = client_of(request)
        if body.stream:
            return await open_stream(request.receive, self._events(body, client), _STREAM)
        return JSONResponse(await unless_disconnected(request.receive, self._message(body, client)))

    async def count_tokens(self, request: Request) -> Response:
        """``POST /v1/messages/count_tokens``."""
        body = validate(CountTokensRequest, parse_json(await request.body()))
        n_tokens = await unless_disconnected(request.receive, self._count(body, client_of(request)))
        return JSONResponse({"input_tokens": n_tokens})

    async def _message(self, body: MessagesRequest, client: str) -> dict[str, Any]:
        async with self._supervisor.engine(body.model) as (served, engine):
            answer = ToolAnswer(body.tool_plan(), body.generate_request(client), engine.info.tool_format)
            done = await complete(engine, answer.request)
        parts = [*answer.parts(done.text), *answer.last_parts()]
        stop = _stop_fields(done.finished, answer)
        return _message(served.name, whole_blocks(parts), stop, _usage_fields(done.finished.usage))

    async def _events(self, body: MessagesRequest, client: str) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(body.model) as (served, engine):
            answer = ToolAnswer(body.tool_plan(), body.generate_request(client), engine.info.tool_format)
            name, blocks = served.name, BlockEvents()
            async with aclosing(generate_all(engine, [answer.request])) as events:
                async for _, item in events:
                    match item:
                        case Started(n_prompt=n_prompt, n_cached=n_cached):
                            usage = {**_input_fields(n_prompt, n_cached), "output_tokens": 0}
                            yield event("message_start", message=_message(name, [], _NO_STOP, usage))
                        case Delta(text=text):
                            for frame in blocks.events(answer.parts(text)):
                                yield frame
                        case Finished(usage=counts) as finished:
                            for frame in (*blocks.events(answer.last_parts()), *blocks.end()):
                                yield frame
                            stop = _stop_fields(finished, answer)
                            yield event("message_delta", delta=stop, usage=_usage_fields(counts))
            yield event("message_stop")

    async def _count(self, body: CountTokensRequest, client: str) -> int:
        """Tokens of a prompt; nothing is generated."""
        async with self._supervisor.engine(body.model) as (_, engine):
            answer = ToolAnswer(body.tool_plan(), body.generate_request(client), engine.info.tool_format)
            return len(await engine.prompt_tokens(answer.request))


def _stop_fields(finished: Finished, answer: ToolAnswer) -> dict[str, Any]:
    """Why an answer ended."""
    if finished.reason == "length":
        return {"stop_reason": "max_tokens", "stop_sequence": None}
    if finished.stop:
        return {"stop_reason": "stop_sequence", "stop_sequence": finished.stop}
    return {"stop_reason": "tool_use" if answer.called else "end_turn", "stop_sequence": None}


def _message(model: str, content: list[dict[str, Any]], stop: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        **stop,
        "usage": usage,
    }


def _usage_fields(usage: Usage) -> dict[str, int]:
    return {**_input_fields(usage.n_prompt, usage.n_cached), "output_tokens": usage.n_completion}


def _input_fields(n_prompt: int, n_cached: int) -> dict[str, int]:
    """Anthropic counts the cached tokens beside the others, not among them."""
    return {
        "input_tokens": n_prompt - n_cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": n_cached,
    }
