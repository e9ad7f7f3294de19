"""Streams that have nothing to say for long, and Anthropic's list of models, with the official clients."""

import asyncio

import anthropic
import pytest

from localllm.errors import EngineDiedError, RequestError
from serve.engine.types import GenerateRequest
from serve.http import sse
from serve.http.catalogue import page_of
from serve.http.errors import HTTPError
from tests.fakes.engine import Script, add_model

HELLO = [{"role": "user", "content": "Hi"}]
BODIES = {
    "/v1/chat/completions": ({"messages": HELLO}, ": keep-alive\n\n"),
    "/v1/completions": ({"prompt": "Hi"}, ": keep-alive\n\n"),
    "/v1/responses": ({"input": "Hi"}, ": keep-alive\n\n"),
    "/v1/messages": ({"messages": HELLO, "max_tokens": 9}, 'event: ping\ndata: {"type":"ping"}\n\n'),
}


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(sse, "IDLE_SECONDS", 0.02)


@pytest.mark.parametrize("path", BODIES)
async def test_a_stream_says_that_it_is_alive(serve, path):
    body, idle = BODIES[path]
    script = Script(hold=1)
    served = await serve(script)
    body = {"model": "tiny", "stream": True, **body}
    async with served.http() as client, client.stream("POST", path, json=body) as answer:
        text = ""
        async for piece in answer.aiter_text():
            text += piece
            if text.count(idle) == 2:
                script.gate.set()
    assert answer.status_code == 200
    assert text.count(idle) >= 2
    assert "world" in text.rpartition(idle)[2]


async def test_official_clients_skip_it(serve):
    script = Script(hold=1)
    served = await serve(script)
    async with served.openai() as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        texts = [chunk.choices[0].delta.content or "" async for chunk in _opening(stream, script)]
    assert "".join(texts) == "Hello world."
    script.gate.clear()
    asked = {"model": "tiny", "messages": HELLO, "max_tokens": 9}
    async with served.anthropic() as client, client.messages.stream(**asked) as stream:
        texts = [text async for text in _opening(stream.text_stream, script)]
    assert "".join(texts) == "Hello world."


async def _opening(stream, script):
    """Hold the stream back until it must have said that it is alive."""
    asyncio.get_running_loop().call_later(0.1, script.gate.set)
    async for item in stream:
        yield item


async def test_an_answer_begins_before_its_model_is_there(serve):
    served = await serve()
    served.starter.gate.clear()
    served.starter.errors = [EngineDiedError("Dead.")]
    body = {"model": "tiny", "stream": True, "messages": HELLO}
    async with served.http() as client, client.stream("POST", "/v1/chat/completions", json=body) as answer:
        assert answer.status_code == 200
        served.starter.gate.set()
        text = "".join([piece async for piece in answer.aiter_text()])
    assert text.startswith(": keep-alive\n\n")
    assert "Dead." in text.rpartition("data: ")[2]


async def test_lines_of_json_hold_nothing_else(serve):
    script = Script(hold=1)
    served = await serve(script)
    parts = [part async for part in _opening(await served.ollama().chat("tiny", HELLO, stream=True), script)]
    assert "".join(part.message.content for part in parts) == "Hello world."


async def test_anthropics_client_lists_the_models(serve, home):
    served = await serve()
    add_model(home, "another")
    async with served.anthropic() as client:
        models = [model async for model in client.models.list(limit=1)]
        one = await client.models.retrieve("tiny")
        with pytest.raises(anthropic.NotFoundError):
            await client.models.retrieve("huge")
    assert [model.id for model in models] == ["another:f16", "tiny:f16"]
    assert (one.id, one.type, one.created_at.year) == ("tiny:f16", "model", 2026)
    async with served.openai() as client:
        assert len((await client.models.list()).data) == 2


def test_pages():
    models = [{"id": name} for name in "abcd"]
    assert page_of(models, {})["has_more"] is False
    page = page_of(models, {"limit": "2", "after_id": "a"})
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("b", "c", True)
    page = page_of(models, {"limit": "2", "before_id": "d"})
    assert (page["first_id"], page["last_id"], page["has_more"]) == ("b", "c", True)
    assert page_of([], {})["first_id"] is None
    for query in ({"limit": "0"}, {"limit": "x"}, {"after_id": "z"}):
        with pytest.raises(HTTPError):
            page_of(models, query)


@pytest.mark.parametrize("n", [0, -1])
def test_an_answer_of_no_tokens_needs_an_echo(n):
    with pytest.raises(RequestError, match="max_tokens") as error:
        GenerateRequest(prompt="x", max_tokens=n)
    assert error.value.param == "max_tokens"
    assert GenerateRequest(prompt="x", max_tokens=0, prompt_logprobs=True).max_tokens == 0
