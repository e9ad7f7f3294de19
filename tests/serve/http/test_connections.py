"""Peers that are slow, silent, or do not read, over real sockets."""

import asyncio
import contextlib
import json
import socket

import pytest

from serve.http.connections import ConnectionLimits
from serve.http.server import ServerOptions
from tests.fakes.engine import Script

BODY = json.dumps({"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "stream": True}).encode()
SHORT = {"head_seconds": 0.3, "body_seconds": 0.3, "write_seconds": 0.3}


def limited(**limits) -> ServerOptions:
    return ServerOptions(managed=False, limits=ConnectionLimits(**limits))


def head(length: int, path: str = "/v1/chat/completions") -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


@contextlib.asynccontextmanager
async def connected(served, buffer: int = 0):
    """A connection; with ``buffer`` its kernel keeps no more than that (about) of what nobody reads."""
    sock = socket.socket()
    sock.setblocking(False)
    if buffer:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    await asyncio.get_running_loop().sock_connect(sock, ("127.0.0.1", served.running.record.port))
    reader, writer = await asyncio.open_connection(sock=sock, limit=1024)
    try:
        yield reader, writer
    finally:
        writer.close()


async def trickle(writer, data: bytes) -> None:
    """Byte by byte, until the server has had enough."""
    for byte in data:
        writer.write(bytes([byte]))
        try:
            await writer.drain()
        except ConnectionError:
            return
        await asyncio.sleep(0.02)


async def whole(reader) -> bytes:
    """Everything until the server closes, which it must."""
    taken = b""
    async with asyncio.timeout(10):
        with contextlib.suppress(ConnectionError):  # it closed while the peer went on sending
            while piece := await reader.read(1024):
                taken += piece
    return taken


async def test_a_silent_connection_is_closed(serve):
    served = await serve(options=limited(**SHORT))
    async with connected(served) as (reader, _):
        assert await whole(reader) == b""


async def test_a_slow_head_is_a_408(serve):
    served = await serve(options=limited(**SHORT))
    async with connected(served) as (reader, writer):
        sending = asyncio.create_task(trickle(writer, head(len(BODY))))
        answer = await whole(reader)
        sending.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "request_timeout"


async def test_a_slow_second_head_is_no_better(serve):
    served = await serve(options=limited(**SHORT))
    async with connected(served) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert (await reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200 ")
        sending = asyncio.create_task(trickle(writer, head(len(BODY))))
        await whole(reader)
        sending.cancel()
    assert served.starter.attempts == 0


async def test_a_slow_body_is_a_408_and_the_connection_ends(serve):
    served = await serve(options=limited(**SHORT))
    async with connected(served) as (reader, writer):
        writer.write(head(10_000))
        sending = asyncio.create_task(trickle(writer, b" " * 10_000))
        answer = await whole(reader)
        sending.cancel()
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert served.starter.attempts == 0


async def test_the_rest_of_a_refused_body_is_not_awaited_for_ever(serve):
    served = await serve(options=limited(**SHORT))
    async with connected(served) as (reader, writer):
        writer.write(head(10_000).replace(b"application/json", b"text/plain"))
        sending = asyncio.create_task(trickle(writer, b" " * 10_000))
        answer = await whole(reader)
        sending.cancel()
    assert answer.startswith(b"HTTP/1.1 415 ")


async def test_a_slow_but_steady_request_is_answered(serve):
    served = await serve(options=limited(head_seconds=30, body_seconds=30))
    async with connected(served) as (reader, writer):
        await trickle(writer, head(len(BODY)))
        await trickle(writer, BODY)
        taken = b""
        async with asyncio.timeout(10):
            while b"[DONE]" not in taken:
                taken += await reader.read(1024)
    assert taken.startswith(b"HTTP/1.1 200 ")


async def test_a_reader_that_stops_reading_is_cancelled_and_nothing_piles_up(serve, eventually):
    script = Script(texts=["x" * 50_000] * 2000)  # 100 MB, if anybody kept them
    served = await serve(script, options=limited(**SHORT))
    async with connected(served, buffer=4096) as (_, writer):
        writer.write(head(len(BODY)) + BODY)
        await eventually(lambda: bool(served.starter.started) and served.engine.active == 1)
        await eventually(lambda: served.engine.active == 0, seconds=10)
        assert served.engine.cancelled == 1
        await eventually(lambda: not served.running.activity.requests)


async def test_a_slow_reader_gets_the_whole_answer(serve):
    texts = ["x" * 20_000] * 100
    served = await serve(Script(texts=texts), options=limited(head_seconds=30, write_seconds=5, write_bytes=1024))
    async with connected(served, buffer=4096) as (reader, writer):
        writer.write(head(len(BODY)) + BODY)
        taken = bytearray()
        async with asyncio.timeout(30):
            while b"[DONE]" not in taken[-100:]:
                taken += await reader.read(16384)
                await asyncio.sleep(0.001)
    assert taken.count(b"x") >= 2_000_000


async def test_too_many_connections_are_refused_and_then_taken_again(serve):
    served = await serve(options=limited(max_connections=2, head_seconds=30))
    async with connected(served), connected(served):
        async with connected(served) as (reader, _):
            answer = await whole(reader)
        assert answer.startswith(b"HTTP/1.1 503 ")
        assert json.loads(answer.partition(b"\r\n\r\n")[2])["error"]["code"] == "too_many_connections"

    async def answered() -> bool:
        async with connected(served) as (reader, writer):
            writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            return (await whole(reader)).startswith(b"HTTP/1.1 200 ")

    async with asyncio.timeout(10):
        while not await answered():  # noqa: ASYNC110  the server notices in its own time that they have gone
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("end", [b"\r\n\r\n", b""])
async def test_endless_headers_are_refused(serve, end):
    served = await serve(options=limited(head_seconds=5))
    async with connected(served) as (reader, writer):
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Long: " + b"a" * 200_000 + end)
        answer = await whole(reader)
    assert not answer.startswith(b"HTTP/1.1 200 ")


GET = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"


async def health(reader, writer) -> bytes:
    """The status line of one more request on the same connection."""
    writer.write(GET)
    async with asyncio.timeout(10):
        answer = await reader.readuntil(b"\r\n\r\n")
        length = next(line for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length"))
        await reader.readexactly(int(length.split(b":")[1]))
    return answer.split(b"\r\n")[0]


async def test_a_kept_connection_lives_longer_than_clients_keep_it(serve):
    # httpx and openai keep an idle connection for 5 s, requests and aiohttp for 15 and 75 s and more.
    assert ConnectionLimits().idle_seconds >= 75
    served = await serve(options=limited(head_seconds=0.2, idle_seconds=30))
    async with connected(served) as (reader, writer):
        assert await health(reader, writer) == b"HTTP/1.1 200 OK"
        await asyncio.sleep(0.6)  # three times what a head may take
        assert await health(reader, writer) == b"HTTP/1.1 200 OK"


async def test_an_idle_connection_is_closed_in_the_end(serve):
    served = await serve(options=limited(idle_seconds=0.3))
    async with connected(served) as (reader, writer):
        assert await health(reader, writer) == b"HTTP/1.1 200 OK"
        assert await whole(reader) == b""


async def test_idle_connections_make_room_for_new_ones_the_oldest_first(serve):
    served = await serve(options=limited(max_connections=3))
    async with connected(served) as oldest, connected(served) as second, connected(served) as busy:
        assert await health(*oldest) == await health(*second) == b"HTTP/1.1 200 OK"
        busy[1].write(head(len(BODY)))  # its body is still to come
        await asyncio.sleep(0.1)
        async with connected(served) as fourth, connected(served) as fifth:
            assert await health(*fourth) == b"HTTP/1.1 200 OK"
            assert await health(*fifth) == b"HTTP/1.1 200 OK"
            assert await whole(oldest[0]) == b""
            assert await whole(second[0]) == b""


async def test_where_no_connection_is_idle_one_more_is_refused(serve):
    served = await serve(options=limited(max_connections=1))
    async with connected(served) as (_, writer):
        writer.write(head(len(BODY)))
        await asyncio.sleep(0.1)
        async with connected(served) as (reader, _):
            assert (await whole(reader)).startswith(b"HTTP/1.1 503 ")
