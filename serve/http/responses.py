"""``/v1/responses``: OpenAI's Responses API, text and calls of functions; nothing is stored."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Delta, Finished, Started
from serve.http.completion import complete
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.responses_output import EventWriter, OutputItems, Status
from serve.http.responses_types import ResponsesRequest
from serve.http.sse import StreamStyle, open_stream
from serve.http.tool_answer import ToolAnswer
from serve.http.wire_types import validate
from serve.supervisor import Supervisor


class ResponsesRoutes:
    """The route of the Responses API.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def responses(self, request: Request) -> Response:
        """``POST /v1/responses``."""
        body = validate(ResponsesRequest, parse_json(await request.body()))
        client = client_of(request)
        if not body.stream:
            return JSONResponse(await unless_disconnected(request.receive, self._whole(body, client)))
        writer = EventWriter()
        style = StreamStyle("text/event-stream", writer.error)
        return await open_stream(request.receive, self._events(body, client, writer), style)

    async def _whole(self, body: ResponsesRequest, client: str) -> dict[str, Any]:
        async with self._supervisor.engine(body.model, adapters=body.adapter_scales) as (served, engine):
            tool_format = engine.info.tool_format
            answer = ToolAnswer(body.tool_plan(), body.generate_request(client), tool_format)
            done = await complete(engine, answer.request)
        # An answer in one piece is what is left of its events.
        output = OutputItems(EventWriter(), tool_format)
        for _ in output.more([*answer.parts(done.text), *answer.last_parts()], done.logprobs):
            pass
        for _ in output.end(_status(done.finished)):
            pass
        return _Reply(body, served.name).end(done.finished, output.items)

    async def _events(self, body: ResponsesRequest, client: str, writer: EventWriter) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(body.model, adapters=body.adapter_scales) as (served, engine):
            reply = _Reply(body, served.name)
            answer = ToolAnswer(body.tool_plan(), body.generate_request(client), engine.info.tool_format)
            output = OutputItems(writer, engine.info.tool_format)
            async with aclosing(generate_all(engine, [answer.request])) as events:
                async for _, event in events:
                    match event:
                        case Started():
                            yield writer.event("response.created", response=reply.begin())
                            yield writer.event("response.in_progress", response=reply.begin())
                        case Delta(text=text, logprobs=tokens):
                            for frame in output.more(answer.parts(text), tokens):
                                yield frame
                        case Finished():
                            for frame in (*output.more(answer.last_parts()), *output.end(_status(event))):
                                yield frame
                            end = reply.end(event, output.items)
                            yield writer.event(f"response.{_status(event)}", response=end)


class _Reply:
    """The response object, before and after the answer."""

    def __init__(self, body: ResponsesRequest, model: str) -> None:
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._body = body
        self._model = model

    def begin(self) -> dict[str, Any]:
        """While nothing is there."""
        return self._fields("in_progress", [])

    def end(self, finished: Finished, items: list[dict[str, Any]]) -> dict[str, Any]:
        """The whole."""
        usage, status = finished.usage, _status(finished)
        more: dict[str, Any] = {
            "usage": {
                "input_tokens": usage.n_prompt,
                "input_tokens_details": {"cached_tokens": usage.n_cached, "cache_write_tokens": 0},
                "output_tokens": usage.n_completion,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": usage.n_prompt + usage.n_completion,
            }
        }
        if status == "incomplete":
            more["incomplete_details"] = {"reason": "max_output_tokens"}
        else:
            more["completed_at"] = int(time.time())
        return {**self._fields(status, items), **more}

    def _fields(self, status: Status, output: list[dict[str, Any]]) -> dict[str, Any]:
        body = self._body
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": body.instructions,
            "max_output_tokens": body.max_output_tokens,
            "metadata": body.metadata,
            "model": self._model,
            "output": output,
            "parallel_tool_calls": body.parallel_tool_calls,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.text.format.as_dict()},
            "tool_choice": body.tool_choice if isinstance(body.tool_choice, str) else body.tool_choice.model_dump(),
            "tools": [tool.as_dict() for tool in body.tools],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _status(finished: Finished) -> Status:
    return "incomplete" if finished.reason == "length" else "completed"
