"""The client against a server that misbehaves in every way; the good ways are in tests/serve/http."""

import asyncio
import json
from contextlib import aclosing, asynccontextmanager

import httpx2
import pytest

from localllm.errors import (
    ContextLengthError,
    EngineDiedError,
    MemoryFitError,
    ModelNotFoundError,
    ServerError,
)
from serve.client import Address, ChatOptions, ServeClient
from serve.events import StreamDone, TextDelta
from serve.http.errors import HTTPError, describe

HELLO = [{"role": "user", "content": "Hi"}]


def event(record) -> bytes:
    return b"data: " + json.dumps(record).encode() + b"\n\n"


def chunk(text="", reason=None, **more) -> bytes:
    return event({"model": "tiny:f16", "choices": [{"delta": {"content": text}, "finish_reason": reason}], **more})


USAGE = {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 2}}
TIMINGS = {"prompt_seconds": 0.5, "decode_seconds": 1.0, "n_ctx": 256}
WHOLE = [
    b": a comment\n\n",
    chunk(),
    chunk("Grüße\u2028"),
    chunk("!", "stop", timings=TIMINGS),
    event({"choices": [], "usage": USAGE}),
    b"data: [DONE]\n\n",
]


class Pieces(httpx2.AsyncByteStream):
    def __init__(self, pieces):
        self.pieces = pieces
        self.closed = False

    async def __aiter__(self):
        for piece in self.pieces:
            if isinstance(piece, Exception):
                raise piece
            yield piece

    async def aclose(self):
        self.closed = True


@asynccontextmanager
async def client_of(answer, **options):
    """A client whose server is ``answer(request)``."""
    client = ServeClient("http://127.0.0.1:1/", "token", transport=httpx2.MockTransport(answer), **options)
    try:
        yield client
    finally:
        await client.aclose()


async def read(client, options=ChatOptions()):  # noqa: B008  frozen
    return [event async for event in client.stream_chat("tiny", HELLO, options)]


@pytest.mark.parametrize("size", [1, 3, 7, 10_000])
async def test_a_stream_cut_anywhere(size):
    raw = b"".join(WHOLE)
    pieces = [raw[start : start + size] for start in range(0, len(raw), size)]
    async with client_of(lambda request: httpx2.Response(200, stream=Pieces(pieces))) as client:
        *texts, done = await read(client)
    assert texts == [TextDelta("Grüße\u2028"), TextDelta("!")]
    assert done == StreamDone("stop", 7, 2, 3, 0.5, 1.0, 256, "tiny:f16")


async def test_what_is_sent():
    seen = []

    def answer(request):
        seen.append(request)
        return httpx2.Response(200, stream=Pieces(WHOLE))

    async with client_of(answer) as client:
        await read(client, ChatOptions(temperature=0.0, max_tokens=5, seed=0, stop=("x",)))
        await read(client)
    body = json.loads(seen[0].content)
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert (body["temperature"], body["max_tokens"], body["seed"], body["stop"]) == (0.0, 5, 0, ["x"])
    assert not {"temperature", "max_tokens", "seed", "stop", "top_p"} & set(json.loads(seen[1].content))
    assert seen[0].headers["authorization"] == "Bearer token"
    assert str(seen[0].url) == "http://127.0.0.1:1/v1/chat/completions"


@pytest.mark.parametrize(
    "pieces",
    [
        WHOLE[:-1],
        [],
        [*WHOLE[:2], httpx2.ReadError("cut")],
        [*WHOLE[:2], httpx2.RemoteProtocolError("cut")],
        [b"data: {no json\n\n"],
        [b"data: 5\n\n"],
        [b"<html>hello</html>\n"],
    ],
)
async def test_an_answer_that_is_not_whole(pieces):
    stream = Pieces(pieces)
    async with client_of(lambda request: httpx2.Response(200, stream=stream)) as client:
        with pytest.raises(ServerError):
            await read(client)
    assert stream.closed


@pytest.mark.parametrize(
    "error",
    [ContextLengthError(9, 8), ModelNotFoundError("No.", "Pull."), MemoryFitError("Big."), EngineDiedError("x")],
)
async def test_errors_are_rebuilt(error):
    reply = describe(error)

    def refuse(request):
        return httpx2.Response(reply.status, json=reply.body)

    async with client_of(refuse) as client:
        for call in (read(client), client.load("tiny"), client.models()):
            with pytest.raises(type(error)) as raised:
                await call
            assert raised.value.hint == error.hint


async def test_an_error_event_is_raised():
    failing = [chunk("a"), event(describe(EngineDiedError("Dead.", "Again.")).body)]
    async with client_of(lambda request: httpx2.Response(200, stream=Pieces(failing))) as client:
        texts = []
        with pytest.raises(EngineDiedError, match="Dead"):  # noqa: PT012  the error comes from the loop itself
            async for item in client.stream_chat("tiny", HELLO):
                texts.append(item)
    assert texts == [TextDelta("a")]


async def test_closing_the_iterator_closes_the_connection():
    stream = Pieces(WHOLE)
    async with (
        client_of(lambda request: httpx2.Response(200, stream=stream)) as client,
        aclosing(client.stream_chat("tiny", HELLO)) as events,
    ):
        assert await anext(events) == TextDelta("Grüße\u2028")
    assert stream.closed


async def test_no_server():
    with_nobody = ServeClient("http://127.0.0.1:9", "")
    with pytest.raises(ServerError, match="cannot be reached"):
        await with_nobody.health()
    await with_nobody.aclose()


async def test_a_server_that_went_is_found_again():
    moved = []

    def answer(request):
        if request.url.port == 1:
            raise httpx2.ConnectError("refused")
        return httpx2.Response(200, json={"data": [{"id": request.headers["authorization"]}]})

    async def renew():
        moved.append(1)
        return Address("http://127.0.0.1:2", "new")

    async with client_of(answer, renew=renew) as client:
        assert await client.models() == ["Bearer new"]
        assert await client.models() == ["Bearer new"]
    assert moved == [1]


async def test_a_server_that_does_not_know_us_is_not_ours():
    def answer(request):
        if request.url.port == 1:
            reply = describe(HTTPError(401, "invalid_api_key", "A valid key is needed."))
            return httpx2.Response(reply.status, json=reply.body)
        return httpx2.Response(200, stream=Pieces(WHOLE))

    async def renew():
        return Address("http://127.0.0.1:2", "new")

    async with client_of(answer, renew=renew) as client:
        assert (await read(client))[0] == TextDelta("Grüße\u2028")


async def test_a_proxy_of_the_environment_is_ignored(monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    seen = asyncio.Event()

    async def serve(reader, writer):
        seen.set()
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 15\r\nconnection: close\r\n\r\n{"status":"ok"}')
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    client = ServeClient(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}")
    assert await client.health() == {"status": "ok"}
    await client.aclose()
    server.close()
    await server.wait_closed()
    assert seen.is_set()
