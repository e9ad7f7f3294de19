"""The official client, unmodified, over a real socket."""

import asyncio

import openai
import pytest

from localllm.errors import (
    ContextLengthError,
    EngineBusyError,
    EngineDiedError,
    EngineLoadError,
    MemoryFitError,
    RequestError,
)
from serve.http.server import ServerOptions
from tests.fakes.engine import Script

HELLO = [{"role": "user", "content": "Hi"}]


async def test_a_chat_in_one_piece(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, temperature=0, seed=0, stop="x")
    assert answer.choices[0].message.content == "Hello world."
    assert answer.choices[0].finish_reason == "stop"
    assert answer.model == "tiny:f16"
    assert answer.object == "chat.completion"
    assert answer.usage is not None
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer.timings == {"prompt_seconds": 0.25, "decode_seconds": 0.5, "n_ctx": 256}
    request = served.engine.requests[0]
    assert request.messages == ({"role": "user", "content": "Hi"},)
    assert (request.sampling.temperature, request.sampling.seed, request.stop) == (0, 0, ("x",))
    assert request.max_tokens is None


async def test_a_streamed_chat_with_usage(serve):
    served = await serve(Script(texts=("Grüße ", "🙂", "\u2028“\0”\n")))
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks[:-1]) == "Grüße 🙂\u2028“\0”\n"
    assert [c.choices[0].finish_reason for c in chunks[:-1]] == [None] * 4 + ["stop"]
    assert [c.usage is None for c in chunks] == [True] * 5 + [False]
    assert chunks[-1].choices == []
    assert chunks[-1].usage.total_tokens == 9
    assert len({c.id for c in chunks}) == 1


async def test_a_streamed_chat_without_usage(serve):
    served = await serve()
    async with served.openai() as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        chunks = [chunk async for chunk in stream]
    assert all(chunk.usage is None and chunk.choices for chunk in chunks)


async def test_the_bytes_of_a_stream(serve):
    served = await serve(Script(texts=("é",)))
    async with served.http() as client:
        body = {"model": "tiny", "messages": HELLO, "stream": True}
        response = await client.post("/v1/chat/completions", json=body)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert "content-length" not in response.headers
    assert not [name for name in response.headers if name.startswith("access-control")]
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all(event.startswith("data: ") for event in events[:-1])


def sync_chat(served):
    with (
        openai.OpenAI(api_key=served.token, base_url=f"{served.base_url}/v1", max_retries=0) as client,
        client.chat.completions.create(model="tiny", messages=HELLO, stream=True) as stream,
    ):
        return "".join(chunk.choices[0].delta.content or "" for chunk in stream)


async def test_the_sync_client(serve):
    assert await asyncio.to_thread(sync_chat, await serve()) == "Hello world."


async def test_eight_streams_at_once(serve, eventually):
    gated = Script(hold=1)
    served = await serve(gated)

    async def one(client):
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async with served.openai() as client:
        tasks = [asyncio.create_task(one(client)) for _ in range(8)]
        await eventually(lambda: bool(served.starter.started) and served.engine.active == 8)
        gated.gate.set()
        assert await asyncio.gather(*tasks) == ["Hello world."] * 8
    assert served.starter.attempts == 1


async def test_completions_of_several_prompts(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.completions.create(model="tiny", prompt=["a", "b", "c"], max_tokens=9)
        one = await client.completions.create(model="tiny", prompt=[1, 2, 3])
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert [choice.text for choice in answer.choices] == ["Hello world."] * 3
    assert answer.usage.prompt_tokens == 15
    assert {request.prompt for request in served.engine.requests[:3]} == {"a", "b", "c"}
    assert served.engine.most_active == 3
    assert one.choices[0].text == "Hello world."
    assert served.engine.requests[3].prompt == (1, 2, 3)
    assert served.engine.requests[3].max_tokens == 16


async def test_streamed_completions_of_several_prompts(serve):
    served = await serve()
    async with served.openai() as client:
        stream = await client.completions.create(
            model="tiny", prompt=["a", "b"], stream=True, stream_options={"include_usage": True}
        )
        texts, usage = ["", ""], None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.text
    assert texts == ["Hello world."] * 2
    assert usage.completion_tokens == 8


async def test_one_failing_prompt_ends_its_siblings(serve):
    waiting = Script(hold=1)
    served = await serve(waiting, Script(refuse=ContextLengthError(900, 256)))
    async with served.openai() as client:
        with pytest.raises(openai.BadRequestError):
            await client.completions.create(model="tiny", prompt=["short", "long"])
    assert served.engine.active == 0
    assert served.engine.cancelled == 1


async def test_embeddings(serve):
    served = await serve()
    async with served.openai() as client:
        packed = await client.embeddings.create(model="tiny", input=["a", "b"])  # the client asks for base64 itself
        plain = await client.embeddings.create(model="tiny", input="a", encoding_format="float", dimensions=4)
        tokens = await client.embeddings.create(model="tiny", input=[[1, 2], [3]])
        with pytest.raises(openai.BadRequestError) as refused:
            await client.embeddings.create(model="tiny", input="a", dimensions=5)
    assert packed.data[1].embedding == [1.0, 0.0, 1.0, -0.5]
    assert packed.usage.prompt_tokens == 6
    assert plain.data[0].embedding == [1.0, 0.0, 0.0, -0.5]
    assert len(tokens.data) == 2
    assert served.engine.inputs[-1] == [[1, 2], [3]]
    assert refused.value.param == "dimensions"
    assert refused.value.code == "invalid_value"


async def test_models(serve):
    served = await serve()
    async with served.openai() as client:
        listed = await client.models.list()
        found = await client.models.retrieve("tiny:f16")
        with pytest.raises(openai.NotFoundError):
            await client.models.retrieve("huge")
    assert [model.id for model in listed.data] == ["tiny:f16"]
    assert found.created == 1767323045
    assert served.starter.attempts == 0


@pytest.mark.parametrize("name", ["huge", "../tiny", "/etc/passwd", "tiny/f16", "..", "tiny:..", "a" * 200, "tiny\0"])
@pytest.mark.parametrize("stream", [False, True])
async def test_unknown_models_and_paths_are_not_found(serve, name, stream):
    served = await serve()
    async with served.openai() as client:
        with pytest.raises(openai.NotFoundError) as error:
            await client.chat.completions.create(model=name, messages=HELLO, stream=stream)
    assert error.value.code == "model_not_found"
    assert served.starter.attempts == 0


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (ContextLengthError(900, 256), openai.BadRequestError, "context_length_exceeded"),
        (RequestError("No.", "Do not.", "messages"), openai.BadRequestError, "invalid_request"),
        (EngineBusyError("Full."), openai.RateLimitError, "server_busy"),
        (EngineDiedError("Dead."), openai.InternalServerError, "engine_died"),
    ],
)
async def test_errors_before_the_first_token_have_their_status(serve, error, kind, code, stream):
    served = await serve(Script(refuse=error))
    async with served.openai() as client:
        with pytest.raises(kind) as raised:
            await client.chat.completions.create(model="tiny", messages=HELLO, stream=stream)
    assert raised.value.code == code
    assert str(error) in str(raised.value)
    assert raised.value.response.headers.get("retry-after") == ("2" if code == "server_busy" else None)


@pytest.mark.parametrize(("error", "status"), [(EngineLoadError("Bad."), 503), (MemoryFitError("Big."), 503)])
async def test_load_errors_are_not_retried_by_the_client(serve, error, status):
    served = await serve()
    served.starter.errors = [error]
    async with served.openai(max_retries=2) as client:
        with pytest.raises(openai.InternalServerError) as raised:
            await client.chat.completions.create(model="tiny", messages=HELLO)
    assert raised.value.status_code == status
    assert served.starter.attempts == 1


async def test_a_death_in_the_middle_of_a_stream(serve):
    served = await serve(Script(hold=1), Script())
    async with served.openai() as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        text = ""
        with pytest.raises(openai.APIError) as raised:  # noqa: PT012  the error comes from the loop itself
            async for chunk in stream:
                text += chunk.choices[0].delta.content or ""
                if text:
                    served.engine.die()
        again = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert text == "Hello"
    assert raised.value.code == "engine_died"
    assert again.choices[0].message.content == "Hello world."
    assert len(served.starter.started) == 2
    assert served.starter.started[0].closed


async def test_a_dead_stream_has_no_done(serve):
    served = await serve(Script(error=EngineDiedError("Dead.")))
    async with served.http() as client:
        response = await client.post("/v1/chat/completions", json={"model": "tiny", "messages": HELLO, "stream": True})
    assert response.status_code == 200
    assert "[DONE]" not in response.text
    assert response.text.rstrip().split("\n\n")[-1].startswith('data: {"error":{"message":"Dead."')


async def test_keys(serve):
    served = await serve(options=ServerOptions(managed=False, api_key="secret"))
    for key, right in (("secret", True), (served.token, True), ("wrong", False), ("secre", False)):
        async with served.openai(api_key=key) as client:
            if right:
                await client.models.list()
            else:
                with pytest.raises(openai.AuthenticationError):
                    await client.models.list()
