"""Log-probabilities, echo and several choices: what evaluation harnesses ask for."""

import math

import openai
import pytest
from starlette.datastructures import Headers

from serve.engine.types import TokenLogprob
from serve.http.keys import Keys
from serve.http.logprobs import TextLogprobs, chat_token
from serve.http.server import ServerOptions
from tests.fakes.engine import Script

HELLO = [{"role": "user", "content": "Hi"}]


def test_tokens_that_are_parts_of_a_character():
    smile = "🙂".encode()
    tokens = [TokenLogprob(1, raw, -1.0, ((raw, -1.0),)) for raw in (b"a", smile[:2], smile[2:], b"b")]
    fields = TextLogprobs().fields(tokens)
    assert fields["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x99\\x82", "b"]
    assert fields["text_offset"] == [0, 1, 1, 2]
    assert chat_token(tokens[1])["bytes"] == list(smile[:2])


def test_a_prompt_whose_tokens_say_more_than_its_text():
    reporter = TextLogprobs()
    tokens = [TokenLogprob(1, b"<s>", None), TokenLogprob(2, b" Hi", -1.0), TokenLogprob(3, b"!", -2.0)]
    assert reporter.prompt_fields(tokens, "Hi!")["text_offset"] == [0, 0, 2]
    assert reporter.fields([TokenLogprob(4, b"x", -math.inf)]) == {
        "tokens": ["x"],
        "token_logprobs": [-9999.0],
        "top_logprobs": [{"x": -9999.0}],
        "text_offset": [3],
    }


def test_the_likelier_of_two_tokens_with_one_name_is_reported():
    token = TokenLogprob(1, b"x", -3.0, ((b"y", -0.5), (b"y", -2.0), (b"x", -2.5)))
    assert TextLogprobs().fields([token])["top_logprobs"] == [{"y": -0.5, "x": -2.5}]


async def test_chat_logprobs(serve):
    served = await serve(Script(texts=("é", "b")))
    async with served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, logprobs=True, top_logprobs=3)
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, logprobs=True, top_logprobs=3, stream=True
        )
        chunks = [chunk.choices[0] async for chunk in stream]
    content = answer.choices[0].logprobs.content
    assert [(token.token, token.bytes, token.logprob) for token in content] == [
        ("é", [195, 169], -0.5),
        ("b", [98], -0.5),
    ]
    assert [(top.token, top.logprob) for top in content[1].top_logprobs] == [
        ("b", -0.5),
        ("\ufffd", -1.5),
        ("z", -9999),
    ]
    streamed = [token for chunk in chunks if chunk.logprobs for token in chunk.logprobs.content]
    assert streamed == content
    assert "".join(chunk.delta.content or "" for chunk in chunks) == "éb"


async def test_no_logprobs_unless_asked(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO)
    assert answer.choices[0].logprobs is None
    assert served.engine.requests[0].n_logprobs is None


async def test_several_choices(serve):
    served = await serve(Script(texts=("a",)), Script(texts=("b",)), Script(texts=("c",)))
    async with served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, n=3, seed=7)
    assert sorted(choice.message.content for choice in answer.choices) == ["a", "b", "c"]
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    assert sorted(request.sampling.seed for request in served.engine.requests) == [7, 8, 9]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (5, 6)  # the prompt counts once


async def test_several_streamed_choices(serve):
    served = await serve()
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=HELLO, n=2, stream=True, stream_options={"include_usage": True}
        )
        texts, usage = ["", ""], None
        async for chunk in stream:
            usage = chunk.usage or usage
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
    assert texts == ["Hello world."] * 2
    assert (usage.prompt_tokens, usage.completion_tokens) == (5, 8)


@pytest.mark.parametrize("prompt", ["AB", [65, 66]])
async def test_echo_with_prompt_logprobs(serve, prompt):
    served = await serve(Script(texts=("C",)))
    async with served.openai() as client:
        more = {"model": "tiny", "prompt": prompt, "echo": True, "logprobs": 1}
        scored = await client.completions.create(**more, max_tokens=0)
        answer = await client.completions.create(**more, max_tokens=1)
        stream = await client.completions.create(**more, max_tokens=1, stream=True)
        chunks = [chunk.choices[0] async for chunk in stream]
    assert scored.choices[0].text == "AB"
    assert scored.choices[0].logprobs.tokens == ["<s>", "A", "B"]
    assert scored.choices[0].logprobs.token_logprobs == [None, -0.5, -0.5]
    assert scored.usage.completion_tokens == 0
    choice = answer.choices[0]
    assert choice.text == "ABC"
    assert choice.logprobs.tokens == ["<s>", "A", "B", "C"]
    assert choice.logprobs.top_logprobs == [None, {"A": -0.5}, {"B": -0.5}, {"C": -0.5}]
    assert choice.logprobs.text_offset == [0, 0, 1, 2]
    assert "".join(chunk.text for chunk in chunks) == "ABC"
    reported = [chunk.logprobs for chunk in chunks if chunk.logprobs]
    assert [token for part in reported for token in part.tokens] == choice.logprobs.tokens
    assert [offset for part in reported for offset in part.text_offset] == choice.logprobs.text_offset


async def test_echo_without_logprobs(serve):
    served = await serve(Script(texts=("C",)))
    async with served.openai() as client:
        answer = await client.completions.create(model="tiny", prompt=[[65], [66]], echo=True, n=2)
        stream = await client.completions.create(model="tiny", prompt="A", echo=True, stream=True)
        streamed = "".join([chunk.choices[0].text async for chunk in stream])
        with pytest.raises(openai.BadRequestError) as refused:
            await client.completions.create(model="tiny", prompt=[65, 300], echo=True)
    assert [choice.text for choice in answer.choices] == ["AC", "AC", "BC", "BC"]
    assert answer.choices[0].logprobs is None
    assert streamed == "AC"
    assert refused.value.param == "tokens"


async def test_echo_alone(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.completions.create(model="tiny", prompt="AB", echo=True, max_tokens=0)
    assert (answer.choices[0].text, answer.choices[0].logprobs) == ("AB", None)
    # An engine takes 0 only together with this; otherwise it would be no limit.
    assert (served.engine.requests[0].prompt_logprobs, served.engine.requests[0].max_tokens) == (True, 0)


async def test_each_key_has_its_own_namespace(serve):
    served = await serve(options=ServerOptions(managed=False, api_key="secret"))
    body = {"model": "tiny", "messages": HELLO}
    async with served.http() as client:
        for headers in (
            {},
            {"authorization": "Bearer secret"},
            {"x-api-key": "secret", "authorization": "Basic x"},
            {"x-api-key": "secret", "authorization": "Bearer wrong"},
        ):
            assert (await client.post("/v1/chat/completions", json=body, headers=headers)).status_code == 200
        for headers in ({"x-api-key": "wrong", "authorization": ""}, {"authorization": "", "x-api-key": ""}):
            assert (await client.post("/v1/chat/completions", json=body, headers=headers)).status_code == 401
    token, first, second, third = (request.client for request in served.engine.requests)
    assert token != first == second == third
    assert "secret" not in first
    assert len(first) == 24


async def test_without_a_key_everybody_is_one_client(serve):
    served = await serve(options=ServerOptions(managed=False))
    async with served.openai(api_key="none") as client:
        await client.chat.completions.create(model="tiny", messages=HELLO)
    assert served.engine.requests[0].client == ""


def test_the_token_is_one_client_in_every_run_and_no_keys_holder():
    def client(keys, given):
        return keys.accept(Headers({"x-api-key": given})).client

    keys, later = Keys(["k"], token="first"), Keys(["k"], token="second")
    assert client(keys, "first") == client(later, "second") != client(keys, "k")
    assert later.accept(Headers({"x-api-key": "first"})) is None


def test_no_key_opens_nothing():
    assert Keys(["", ""]).accept(Headers({"authorization": "Bearer ", "x-api-key": ""})) is None
