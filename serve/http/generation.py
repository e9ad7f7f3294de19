"""``/v1/chat/completions`` and ``/v1/completions``."""

import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any, Literal

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Delta, Finished, FinishReason, GenerateRequest, Started, Usage
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.json_body import parse_json
from serve.http.openai_types import ChatRequest, CompletionRequest, validate
from serve.http.replies import timing_fields, usage_fields
from serve.http.sse import DONE, ChunkWriter, open_stream
from serve.supervisor import Supervisor

_Kind = Literal["chat", "text"]


@dataclass
class _Choice:
    """One completed choice."""

    texts: list[str] = field(default_factory=list)
    finished: Finished | None = None

    def take(self, event: Started | Delta | Finished) -> None:
        match event:
            case Delta(text=text):
                self.texts.append(text)
            case Finished():
                self.finished = event
            case Started():
                pass

    @property
    def end(self) -> Finished:
        assert self.finished is not None, "an engine's events end with Finished or with an error"
        return self.finished


class GenerationRoutes:
    """The routes that make text.

    Args:
        supervisor: Gives the engines.
    """

    def __init__(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    async def chat(self, request: Request) -> Response:
        """``POST /v1/chat/completions``."""
        body = validate(ChatRequest, parse_json(await request.body()))
        return await self._answer(
            request, "chat", body.model, [body.generate_request()], body.stream, body.include_usage
        )

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        body = validate(CompletionRequest, parse_json(await request.body()))
        return await self._answer(
            request, "text", body.model, body.generate_requests(), body.stream, body.include_usage
        )

    async def _answer(
        self,
        request: Request,
        kind: _Kind,
        model: str,
        requests: Sequence[GenerateRequest],
        stream: bool,
        include_usage: bool,
    ) -> Response:
        if stream:
            return await open_stream(request.receive, self._frames(kind, model, requests, include_usage))
        return JSONResponse(await unless_disconnected(request.receive, self._collect(kind, model, requests)))

    async def _frames(
        self, kind: _Kind, model: str, requests: Sequence[GenerateRequest], include_usage: bool
    ) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(model) as (manifest, engine):
            name, n_ctx = str(manifest.model_name), engine.info.n_ctx
            writer = ChunkWriter(kind, _answer_id(kind), int(time.time()), name, len(requests), include_usage)
            usages: list[Usage] = []
            async with aclosing(generate_all(engine, requests)) as events:
                async for index, event in events:
                    match event:
                        case Started():
                            yield writer.first(index)
                        case Delta(text=text):
                            yield writer.text(index, text)
                        case Finished(reason=reason, usage=usage):
                            usages.append(usage)
                            yield writer.last(index, reason, usage, n_ctx)
            if include_usage:
                yield writer.usage(usages)
            yield DONE

    async def _collect(self, kind: _Kind, model: str, requests: Sequence[GenerateRequest]) -> dict[str, Any]:
        """The body of an answer in one piece."""
        choices = [_Choice() for _ in requests]
        async with self._supervisor.engine(model) as (manifest, engine):
            async with aclosing(generate_all(engine, requests)) as events:
                async for index, event in events:
                    choices[index].take(event)
            n_ctx = engine.info.n_ctx
        usages = [choice.end.usage for choice in choices]
        return {
            "id": _answer_id(kind),
            "object": "chat.completion" if kind == "chat" else "text_completion",
            "created": int(time.time()),
            "model": str(manifest.model_name),
            "choices": [
                _choice_fields(kind, index, "".join(choice.texts), choice.end.reason)
                for index, choice in enumerate(choices)
            ],
            "usage": usage_fields(usages),
            "timings": timing_fields(usages, n_ctx),
        }


def _answer_id(kind: _Kind) -> str:
    return f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"


def _choice_fields(kind: _Kind, index: int, text: str, reason: FinishReason) -> dict[str, Any]:
    content: dict[str, Any] = (
        {"message": {"role": "assistant", "content": text, "refusal": None}} if kind == "chat" else {"text": text}
    )
    return {"index": index, **content, "logprobs": None, "finish_reason": reason}
