"""The life of a server in this process: its socket, its end."""

import asyncio
import socket

import pytest

from localllm.errors import EngineLoadError, ServerError
from localllm.settings import Settings
from serve.client import ServeClient
from serve.events import TextDelta
from serve.http.server import ServerOptions, _bound_socket, run_server
from tests.fakes.engine import EngineStarter, Script, add_model

HELLO = [{"role": "user", "content": "Hi"}]


def test_the_socket_says_that_it_is_tcp():
    # asyncio leaves Nagle's algorithm on for others: 40 ms on every second small write.
    with _bound_socket(ServerOptions()) as bound:
        assert bound.proto == socket.IPPROTO_TCP


def test_an_address_that_is_not_here():
    with (
        pytest.raises(ServerError, match=r"203\.0\.113\.1"),
        _bound_socket(ServerOptions(host="203.0.113.1"), keyed=True),
    ):
        pass


@pytest.mark.parametrize("error", [socket.gaierror(-2, "unknown"), UnicodeError("label too long")])
def test_a_name_without_an_address(monkeypatch, error):
    def getaddrinfo(*args, **kwargs):
        raise error

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(ServerError, match="nowhere"), _bound_socket(ServerOptions(host="nowhere")):
        pass


async def test_a_stopping_server_finishes_its_answers(home, eventually):
    add_model(home, "tiny")
    script = Script(hold=1)
    said, ready = [], asyncio.get_running_loop().create_future()

    async def on_ready(running):
        ready.set_result(running)

    starter = EngineStarter(script)
    server = asyncio.create_task(
        run_server(home, Settings(), ServerOptions(), starter, on_ready=on_ready, on_stopping=said.append)
    )
    record = (await ready).record
    client = ServeClient(record.base_url, record.token)
    texts = []

    async def read():
        texts.extend([event.text async for event in client.stream_chat("tiny", HELLO) if isinstance(event, TextDelta)])

    reading = asyncio.create_task(read())
    await eventually(lambda: bool(starter.started) and starter.started[0].active == 1)
    await client.shutdown()
    await asyncio.sleep(0.3)
    assert not server.done()
    script.gate.set()
    await reading
    await asyncio.wait_for(server, 10)
    await client.aclose()
    assert "".join(texts) == "Hello world."
    assert said == [1]
    assert starter.started[0].closed


async def test_what_fails_while_it_gets_ready_stops_it(home):
    async def on_ready(running):
        raise EngineLoadError("Cannot.")

    with pytest.raises(EngineLoadError):
        await run_server(home, Settings(), ServerOptions(), EngineStarter(), on_ready=on_ready)
    assert not home.server_file.exists()


async def test_a_model_is_loaded_ahead(serve):
    served = await serve()
    client = served.client()
    await client.load("tiny")
    health = await client.health()
    await client.aclose()
    assert served.starter.attempts == 1
    assert [(model["name"], model["requests"]) for model in health["models"]] == [("tiny:f16", 0)]
