"""``/v1/responses``: OpenAI's Responses API, text in and text out."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from itertools import count
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Delta, Finished, Started, TokenLogprob
from serve.http.completion import Completion, complete
from serve.http.disconnect import unless_disconnected
from serve.http.errors import ErrorReply
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.logprobs import chat_token
from serve.http.responses_types import ResponsesRequest
from serve.http.sse import StreamStyle, open_stream, sse_event
from serve.http.wire_types import validate
from serve.supervisor import Supervisor

_Status = Literal["in_progress", "completed", "incomplete"]


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
        writer = _Writer()
        style = StreamStyle("text/event-stream", writer.error)
        return await open_stream(request.receive, self._events(body, client, writer), style)

    async def _whole(self, body: ResponsesRequest, client: str) -> dict[str, Any]:
        async with self._supervisor.engine(body.model) as (manifest, engine):
            done = await complete(engine, body.generate_request(client))
        return _Reply(body, str(manifest.model_name)).end(done)

    async def _events(self, body: ResponsesRequest, client: str, writer: "_Writer") -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(body.model) as (manifest, engine):
            reply = _Reply(body, str(manifest.model_name))
            place = {"item_id": reply.item_id, "output_index": 0, "content_index": 0}
            texts: list[str] = []
            logprobs: list[TokenLogprob] = []
            async with aclosing(generate_all(engine, [body.generate_request(client)])) as events:
                async for _, event in events:
                    match event:
                        case Started():
                            for frame in _opening(reply, writer, place):
                                yield frame
                        case Delta(text=text, logprobs=tokens):
                            texts.append(text)
                            logprobs.extend(tokens)
                            reported = [chat_token(token) for token in tokens]
                            yield writer.event("response.output_text.delta", **place, delta=text, logprobs=reported)
                        case Finished():
                            done = Completion("".join(texts), event, tuple(logprobs))
                            for frame in _closing(reply, writer, place, done):
                                yield frame


class _Writer:
    """Writes the events of one answer, numbered."""

    def __init__(self) -> None:
        self._numbers = count()

    def event(self, kind: str, **fields: object) -> bytes:
        return sse_event({"type": kind, "sequence_number": next(self._numbers), **fields}, kind)

    def error(self, reply: ErrorReply) -> bytes:
        detail = reply.body["error"]
        return self.event("error", code=detail["code"], message=detail["message"], param=detail["param"])


class _Reply:
    """The response object, before and after the answer."""

    def __init__(self, body: ResponsesRequest, model: str) -> None:
        self.item_id = f"msg_{uuid.uuid4().hex}"
        self._id = f"resp_{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._body = body
        self._model = model

    def begin(self) -> dict[str, Any]:
        """While nothing is there."""
        return self._fields("in_progress", [])

    def end(self, done: Completion) -> dict[str, Any]:
        """The whole."""
        usage, status = done.finished.usage, _status(done)
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
        return {**self._fields(status, [self.item(status, [_text_part(done.text, done.logprobs)])]), **more}

    def item(self, status: _Status, content: list[dict[str, Any]]) -> dict[str, Any]:
        """The one message of the output."""
        return {"type": "message", "id": self.item_id, "status": status, "role": "assistant", "content": content}

    def _fields(self, status: _Status, output: list[dict[str, Any]]) -> dict[str, Any]:
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
            "parallel_tool_calls": False,
            "previous_response_id": None,
            "store": False,
            "temperature": body.temperature,
            "text": {"format": body.text.format.as_dict()},
            "tool_choice": "none",
            "tools": [],
            "top_logprobs": body.top_logprobs,
            "top_p": body.top_p,
            "truncation": "disabled",
            "usage": None,
        }


def _text_part(text: str, logprobs: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    """The text of the output."""
    reported = [chat_token(token) for token in logprobs]
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": reported}


def _status(done: Completion) -> _Status:
    return "incomplete" if done.finished.reason == "length" else "completed"


def _opening(reply: _Reply, writer: _Writer, place: dict[str, Any]) -> list[bytes]:
    """The events before the first text."""
    return [
        writer.event("response.created", response=reply.begin()),
        writer.event("response.in_progress", response=reply.begin()),
        writer.event("response.output_item.added", output_index=0, item=reply.item("in_progress", [])),
        writer.event("response.content_part.added", **place, part=_text_part("")),
    ]


def _closing(reply: _Reply, writer: _Writer, place: dict[str, Any], done: Completion) -> list[bytes]:
    """The events after the last text."""
    part, status = _text_part(done.text, done.logprobs), _status(done)
    return [
        writer.event("response.output_text.done", **place, text=done.text, logprobs=part["logprobs"]),
        writer.event("response.content_part.done", **place, part=part),
        writer.event("response.output_item.done", output_index=0, item=reply.item(status, [part])),
        writer.event(f"response.{status}", response=reply.end(done)),
    ]
