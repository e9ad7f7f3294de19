"""A scripted stand-in for ``ServeClient``: no server, no network, no clock."""

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localllm.errors import LocalLLMError
from serve.events import StreamDone, StreamEvent, TextDelta


def done(model: str = "smollm2-135m:q4_1", **changes: Any) -> StreamDone:
    values: dict[str, Any] = {
        "reason": "stop",
        "n_prompt": 100,
        "n_cached": 0,
        "n_completion": 42,
        "prompt_seconds": 0.1,
        "decode_seconds": 1.0,
        "n_ctx": 8192,
        "model": model,
    }
    return StreamDone(**{**values, **changes})


@dataclass
class Answer:
    """What to stream: texts, each after ``gate`` lets it pass; then ``error``, or a normal end.

    ``hold`` is the number of texts after which the stream waits for ``gate`` (None: never).
    """

    texts: Sequence[str] = ("Hello", " there.")
    error: LocalLLMError | None = None
    hold: int | None = None
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    end: StreamDone | None = field(default_factory=done)


@dataclass
class FakeClient:
    """Streams the scripted answers in turn (the last one again and again) and notes every request."""

    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    requests: list[tuple[str, list[dict[str, str]], Any]] = field(default_factory=list)
    loaded: list[str] = field(default_factory=list)
    load_gate: asyncio.Event | None = None
    load_error: LocalLLMError | None = None
    closed_streams: int = 0
    closed: bool = False

    async def stream_chat(
        self, model: str, messages: Sequence[Mapping[str, str]], options: Any = None
    ) -> AsyncIterator[StreamEvent]:
        self.requests.append((model, [dict(message) for message in messages], options))
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        try:
            for index, text in enumerate(answer.texts):
                if answer.hold == index:
                    await answer.gate.wait()
                await asyncio.sleep(0)
                yield TextDelta(text)
            if answer.hold == len(answer.texts):
                await answer.gate.wait()
            if answer.error is not None:
                raise answer.error
            if answer.end is not None:
                yield answer.end
        finally:
            self.closed_streams += 1

    async def load(self, model: str) -> None:
        if self.load_gate is not None:
            await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        self.loaded.append(model)

    async def health(self) -> dict[str, Any]:
        return {"status": "ok"}

    async def models(self) -> list[str]:
        return ["smollm2-135m:q4_1"]

    async def aclose(self) -> None:
        self.closed = True


def connector(*clients: FakeClient) -> Callable[..., Any]:
    """A ``connect`` that hands out the clients in turn, the last one again and again."""
    waiting = list(clients)

    async def connect(*args: Any, on_status: Callable[[str], None] | None = None) -> FakeClient:
        return waiting.pop(0) if len(waiting) > 1 else waiting[0]

    return connect
