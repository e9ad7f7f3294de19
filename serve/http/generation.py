"""``/v1/chat/completions`` and ``/v1/completions``."""

import time
import uuid
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serve.engine.types import Engine, Finished, GenerateRequest, Started, Usage
from serve.http.choices import Choice, Kind
from serve.http.disconnect import unless_disconnected
from serve.http.fanout import generate_all
from serve.http.guards import client_of
from serve.http.json_body import parse_json
from serve.http.openai_types import ChatRequest, CompletionRequest
from serve.http.replies import timing_fields, usage_fields
from serve.http.sse import DONE, ChunkWriter, open_stream
from serve.http.wire_types import validate
from serve.supervisor import Supervisor
from serve.toolcalls.plan import ToolPlan


@dataclass(frozen=True)
class _Ask:
    """What a route is asked for.

    Attributes:
        kind: By which API.
        model: The model's name, as it was given.
        requests: One for each choice: ``n`` for the first prompt, ``n`` for the second, …
        n: Choices of one prompt.
        echo: Each choice begins with its prompt.
        include_usage: A stream ends with the usage.
        tools: What is asked of tools, if anything.
        adapters: Names and scales of adapters, beside those in the model's name.
    """

    kind: Kind
    model: str
    requests: list[GenerateRequest]
    n: int
    echo: bool = False
    include_usage: bool = False
    tools: ToolPlan | None = None
    adapters: tuple[tuple[str, float], ...] = ()

    def on(self, engine: Engine) -> "_Ask":
        """The same for a model that has its own way with tools."""
        if self.tools is None:
            return self
        tool_format = engine.info.tool_format
        return replace(self, requests=[self.tools.request(request, tool_format) for request in self.requests])


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
        requests = body.generate_requests(client_of(request))
        ask = _Ask(
            "chat",
            body.model,
            requests,
            body.n,
            include_usage=body.include_usage,
            tools=body.tool_plan(),
            adapters=body.adapter_scales,
        )
        return await self._answer(request, ask, body.stream)

    async def completions(self, request: Request) -> Response:
        """``POST /v1/completions``."""
        body = validate(CompletionRequest, parse_json(await request.body()))
        requests = body.generate_requests(client_of(request))
        ask = _Ask("text", body.model, requests, body.n, body.echo, body.include_usage, adapters=body.adapter_scales)
        return await self._answer(request, ask, body.stream)

    async def _answer(self, request: Request, ask: _Ask, stream: bool) -> Response:
        if stream:
            return await open_stream(request.receive, self._frames(ask))
        return JSONResponse(await unless_disconnected(request.receive, self._collect(ask)))

    async def _frames(self, ask: _Ask) -> AsyncGenerator[bytes, None]:
        """The events of a streamed answer. The engine is kept until the generator is closed."""
        async with self._supervisor.engine(ask.model, adapters=ask.adapters) as (served, engine):
            name, n_ctx = served.name, engine.info.n_ctx
            ask = ask.on(engine)
            choices = await _choices(engine, ask)
            writer = ChunkWriter(
                ask.kind, _answer_id(ask.kind), int(time.time()), name, len(choices), ask.include_usage
            )
            usages: dict[int, Usage] = {}
            async with aclosing(generate_all(engine, ask.requests)) as events:
                async for index, event in events:
                    if isinstance(event, Started):
                        yield writer.first(index)
                    for piece in choices[index].pieces(event):
                        if piece.call is not None:
                            yield writer.call(index, piece.call)
                        else:
                            yield writer.text(index, piece.text, piece.logprobs)
                    if isinstance(event, Finished):
                        usages[index] = event.usage
                        yield writer.last(index, choices[index].reason(event), event.usage, n_ctx)
            if ask.include_usage:
                yield writer.usage([usages[index] for index in range(len(choices))], ask.n)
            yield DONE

    async def _collect(self, ask: _Ask) -> dict[str, Any]:
        """The body of an answer in one piece."""
        async with self._supervisor.engine(ask.model, adapters=ask.adapters) as (served, engine):
            ask = ask.on(engine)
            choices = await _choices(engine, ask)
            async with aclosing(generate_all(engine, ask.requests)) as events:
                async for index, event in events:
                    choices[index].take(event)
            n_ctx = engine.info.n_ctx
        usages = [choice.end.usage for choice in choices]
        return {
            "id": _answer_id(ask.kind),
            "object": "chat.completion" if ask.kind == "chat" else "text_completion",
            "created": int(time.time()),
            "model": served.name,
            "choices": [choice.fields(index) for index, choice in enumerate(choices)],
            "usage": usage_fields(usages, ask.n),
            "timings": timing_fields(usages, n_ctx),
        }


async def _choices(engine: Engine, ask: _Ask) -> list[Choice]:
    """The choices, with the text to be echoed where that was asked for."""
    choices: list[Choice] = []
    for prompt_of in ask.requests[:: ask.n]:
        echo = await _prompt_text(engine, prompt_of.prompt) if ask.echo else None
        for request in ask.requests[len(choices) : len(choices) + ask.n]:
            parser = None if ask.tools is None else ask.tools.parser(engine.info.tool_format)
            choices.append(Choice(ask.kind, request, echo, parser, engine.info.tool_format))
    return choices


async def _prompt_text(engine: Engine, prompt: str | tuple[int, ...] | None) -> str:
    assert prompt is not None, "chats have no echo"
    return prompt if isinstance(prompt, str) else await engine.detokenize(prompt)


def _answer_id(kind: Kind) -> str:
    return f"{'chatcmpl' if kind == 'chat' else 'cmpl'}-{uuid.uuid4().hex}"
