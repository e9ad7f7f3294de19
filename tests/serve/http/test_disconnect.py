"""A client that goes away cancels its request in the engine."""

import asyncio

import pytest

from tests.fakes.engine import Script

HELLO = [{"role": "user", "content": "Hi"}]
CHAT = {"model": "tiny", "messages": HELLO}


async def test_closing_a_stream_cancels(serve, eventually):
    served = await serve(Script(hold=1))
    async with served.openai() as client:
        stream = await client.chat.completions.create(**CHAT, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        assert served.engine.active == 1
        await stream.close()
        await eventually(lambda: served.engine.active == 0)
    assert served.engine.cancelled == 1
    assert served.running.supervisor.loaded()[0].requests == 0


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/chat/completions", {**CHAT, "stream": True}),
        ("/v1/completions", {"model": "tiny", "prompt": ["a", "b"]}),
    ],
)
async def test_leaving_before_the_first_token_cancels(serve, eventually, path, body):
    # The streamed one is given its header with Started, so it is held at the first text; the others wait for all.
    served = await serve(Script(hold=0))
    async with served.http() as client:
        request = asyncio.create_task(client.post(path, json=body))
        await eventually(lambda: bool(served.starter.started) and served.engine.active > 0)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
    await eventually(lambda: served.engine.active == 0)
    assert served.engine.cancelled == len(body.get("prompt", [None]))


async def test_leaving_during_the_load_leaves_the_load_to_others(serve, eventually):
    served = await serve()
    served.starter.gate.clear()
    async with served.http() as client:
        request = asyncio.create_task(client.post("/v1/chat/completions", json=CHAT))
        await eventually(lambda: served.starter.attempts == 1)
        request.cancel()
        await asyncio.gather(request, return_exceptions=True)
        await eventually(lambda: served.running.activity.requests == 0)
        served.starter.gate.set()
        assert (await client.post("/v1/chat/completions", json=CHAT)).status_code == 200
    assert served.starter.attempts == 1
