"""``/api/chat`` and ``/api/generate``: Ollama's API, streamed as lines of JSON unless the request says otherwise."""

import json
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Delta, Finished, TokenLogprob
from serve.http.completion import complete
from serve.http.dialects import error_body
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.logprobs import chat_token
from serve.http.ollama_tools import MessageFields, joined
from serve.http.ollama_types import OllamaChatRequest, OllamaGenerateRequest
from serve.http.sse import StreamStyle, open_stream
from serve.http.tool_answer import ToolAnswer
from serve.http.wire_types import validate
from serve.supervisor import Supervisor

_Asked = OllamaChatRequest | OllamaGenerateRequest


def _line(record: dict[str, Any]) -> bytes:
    return json.dumps(record, separators=(",", ":")).encode("ascii") + b"\n"


_NOTHING: dict[str, Any] = {"content": ""}
_STREAM = StreamStyle("application/x-ndjson", lambda reply: _line(error_body("ollama", reply)), idle=b"")


class OllamaRoutes:
    """The routes that make text.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def chat(self, request: Request) -> Response:
        """``POST /api/chat``."""
        return await self._answer(request, validate(OllamaChatRequest, parse_json(await request.body())))

    async def generate(self, request: Request) -> Response:
        """``POST /api/generate``."""
        return await self._answer(request, validate(OllamaGenerateRequest, parse_json(await request.body())))

    async def _answer(self, request: Request, asked: _Asked) -> Response:
        if asked.loads_only:
            return JSONResponse(await unless_disconnected(request.receive, self._load(asked)))
        if asked.stream:
            return await open_stream(request.receive, self._lines(asked, client_of(request)), _STREAM)
        return JSONResponse(await unless_disconnected(request.receive, self._whole(asked, client_of(request))))

    async def _load(self, asked: _Asked) -> dict[str, Any]:
        """Load the model, which is what an empty prompt asks for; or unload it, where it is to be kept no longer."""
        if asked.keep_alive == 0:
            served, reason = await self._supervisor.unload(asked.model), "unload"
        else:
            reason = "load"
            async with self._supervisor.engine(asked.model, asked.keep_alive) as (served, engine):
                asked.check(engine.info)
        return {**_head(served.name), **_content(asked, _NOTHING), "done": True, "done_reason": reason}

    async def _whole(self, asked: _Asked, client: str) -> dict[str, Any]:
        began = time.monotonic()
        async with self._supervisor.engine(asked.model, asked.keep_alive) as (served, engine):
            asked.check(engine.info)
            loaded = time.monotonic()
            answer = ToolAnswer(asked.tool_plan(), asked.generate_request(client), engine.info.tool_format)
            done = await complete(engine, answer.request)
        message = MessageFields()
        fields = [*message.more([*answer.parts(done.text), *answer.last_parts()]), *message.end()]
        return {
            **_head(served.name),
            **_content(asked, joined(fields), done.logprobs),
            **_end(done.finished, began, loaded),
        }

    async def _lines(self, asked: _Asked, client: str) -> AsyncGenerator[bytes, None]:
        """The lines of a streamed answer. The engine is kept until the generator is closed."""
        began = time.monotonic()
        async with self._supervisor.engine(asked.model, asked.keep_alive) as (served, engine):
            asked.check(engine.info)
            loaded = time.monotonic()
            head = _head(served.name)
            answer = ToolAnswer(asked.tool_plan(), asked.generate_request(client), engine.info.tool_format)
            message = MessageFields()
            async with aclosing(generate_all(engine, [answer.request])) as events:
                async for _, event in events:
                    match event:
                        case Delta(text=text, logprobs=tokens):
                            for fields in _with_logprobs(list(message.more(answer.parts(text))), tokens):
                                yield _line({**head, **_content(asked, *fields), "done": False})
                        case Finished():
                            for last in (*message.more(answer.last_parts()), *message.end()):
                                yield _line({**head, **_content(asked, last), "done": False})
                            yield _line({**head, **_content(asked, _NOTHING), **_end(event, began, loaded)})


def _with_logprobs(
    fields: list[dict[str, Any]], tokens: Sequence[TokenLogprob]
) -> list[tuple[dict[str, Any], Sequence[TokenLogprob]]]:
    """Each line's fields, with the log-probabilities in the first line; they make a line where there is no text."""
    if not fields:
        return [(_NOTHING, tokens)] if tokens else []
    return [(fields[0], tokens), *((more, ()) for more in fields[1:])]


def _head(model: str) -> dict[str, Any]:
    now = datetime.now(UTC).isoformat(timespec="microseconds")
    return {"model": model, "created_at": now.replace("+00:00", "Z")}


def _content(asked: _Asked, fields: dict[str, Any], tokens: Sequence[TokenLogprob] = ()) -> dict[str, Any]:
    """An answer or a piece of it; only chats can hold more than ``content``."""
    logprobs = {"logprobs": [chat_token(token) for token in tokens]} if tokens else {}
    if isinstance(asked, OllamaChatRequest):
        return {"message": {"role": "assistant", **fields}, **logprobs}
    return {"response": fields["content"], **logprobs}


def _end(finished: Finished, began: float, loaded: float) -> dict[str, Any]:
    """What the last line says besides; durations in nanoseconds."""
    usage = finished.usage
    return {
        "done": True,
        "done_reason": finished.reason,
        "total_duration": _nanoseconds(time.monotonic() - began),
        "load_duration": _nanoseconds(loaded - began),
        "prompt_eval_count": usage.n_prompt,
        "prompt_eval_duration": _nanoseconds(usage.prompt_seconds),
        "eval_count": usage.n_completion,
        "eval_duration": _nanoseconds(usage.decode_seconds),
    }


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1e9)
