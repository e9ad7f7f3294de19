"""Several completions of one request, made together."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import cast

from serve.engine.types import Engine, GenerateEvent, GenerateRequest

# One request may not fill the engine's queue and lock others out.
MAX_TOGETHER = 8


async def generate_all(
    engine: Engine, requests: Sequence[GenerateRequest]
) -> AsyncGenerator[tuple[int, GenerateEvent], None]:
    """Events of all ``requests``, each with its request's index; of one request in order, of several interleaved.

    The first error ends all of them. Closing the generator cancels them in the engine.

    Raises:
        LocalLLMError: As :meth:`Engine.generate`.
    """
    if len(requests) == 1:
        async with aclosing(_generate(engine, requests[0])) as events:
            async for event in events:
                yield 0, event
        return
    # Unbounded, because what can be in it is bounded by the requests' max_tokens.
    queue: asyncio.Queue[tuple[int, GenerateEvent] | None] = asyncio.Queue()
    runner = asyncio.create_task(_run(engine, requests, queue))
    try:
        while (item := await queue.get()) is not None:
            yield item
        await runner
    finally:
        runner.cancel()
        await asyncio.gather(runner, return_exceptions=True)


async def _run(
    engine: Engine, requests: Sequence[GenerateRequest], queue: asyncio.Queue[tuple[int, GenerateEvent] | None]
) -> None:
    """Put the events of all requests into ``queue``, and None at the end, however it ends."""
    pending = iter(enumerate(requests))

    async def work() -> None:
        for index, request in pending:
            async with aclosing(_generate(engine, request)) as events:
                async for event in events:
                    queue.put_nowait((index, event))

    workers = [asyncio.create_task(work()) for _ in range(min(MAX_TOGETHER, len(requests)))]
    try:
        await asyncio.gather(*workers)
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
        queue.put_nowait(None)


def _generate(engine: Engine, request: GenerateRequest) -> AsyncGenerator[GenerateEvent, None]:
    # The protocol promises an iterator that can be closed; there is no shorter name for that type.
    return cast("AsyncGenerator[GenerateEvent, None]", engine.generate(request))
