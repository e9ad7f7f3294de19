"""Anthropic's official client, unmodified, over a real socket."""

import asyncio

import anthropic
import pytest

from localllm.errors import ContextLengthError, EngineBusyError, EngineDiedError
from serve.engine.constraint_types import Constraint
from serve.engine.types import SamplingParams
from serve.http.anthropic_types import MessagesRequest
from serve.http.errors import HTTPError
from serve.http.wire_types import validate
from tests.fakes.engine import Script

HELLO = [{"role": "user", "content": "Hi"}]
BODY = {"model": "tiny", "max_tokens": 50, "messages": HELLO}


async def test_a_message(serve):
    served = await serve()
    async with served.anthropic() as client:
        message = await client.messages.create(
            model="tiny",
            max_tokens=50,
            system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral"}}],
            messages=[
                {"role": "user", "content": "One."},
                {"role": "user", "content": [{"type": "text", "text": "Two."}, {"type": "text", "text": "Three."}]},
                {"role": "assistant", "content": [{"type": "text", "text": "Four.", "citations": None}]},
                {"role": "user", "content": "Five."},
            ],
            metadata={"user_id": "me"},
            extra_body={"temperature": 0, "top_p": 0.5, "top_k": 3},
        )
    assert (message.type, message.role, message.model) == ("message", "assistant", "tiny:f16")
    assert message.content[0].text == "Hello world."
    assert (message.stop_reason, message.stop_sequence) == ("end_turn", None)
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 2, 4)
    request = served.engine.requests[0]
    assert request.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "One.\nTwo.\nThree."},
        {"role": "assistant", "content": "Four."},
        {"role": "user", "content": "Five."},
    )
    assert request.sampling == SamplingParams(temperature=0, top_p=0.5, top_k=3)
    assert (request.max_tokens, request.n_logprobs) == (50, None)
    assert request.client


async def test_a_message_goes_back_as_it_came(serve):
    served = await serve()
    async with served.anthropic() as client:
        message = await client.messages.create(**BODY)
        await client.messages.create(**{**BODY, "messages": [*HELLO, message.to_param(), *HELLO]})
    assert served.engine.requests[1].messages[1] == {"role": "assistant", "content": "Hello world."}


async def test_a_streamed_message(serve):
    served = await serve(Script(texts=("Grüße ", "🙂", "\u2028“\0”\n")))
    async with served.anthropic() as client:
        async with client.messages.stream(**BODY) as stream:
            text = "".join([text async for text in stream.text_stream])
            message = await stream.get_final_message()
        raw = await client.messages.create(**BODY, stream=True)
        kinds = [event.type async for event in raw]
    assert text == "Grüße 🙂\u2028“\0”\n" == message.content[0].text
    assert message.stop_reason == "end_turn"
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens, message.usage.output_tokens) == (3, 2, 4)
    assert kinds == [
        "message_start",
        "content_block_start",
        *["content_block_delta"] * 3,
        "content_block_stop",
        "message_delta",
        "message_stop",
    ]


async def test_the_bytes_of_a_stream(serve):
    served = await serve(Script(texts=("é",)))
    async with served.http() as client:
        response = await client.post("/v1/messages", json={**BODY, "stream": True})
    assert response.headers["content-type"].startswith("text/event-stream")
    event = response.text.split("\n\n")[2]
    assert event == (
        "event: content_block_delta\n"
        'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"\\u00e9"}}'
    )


def sync_message(served):
    with anthropic.Anthropic(api_key=served.token, base_url=served.base_url, max_retries=0) as client:
        return client.messages.create(**BODY).content[0].text


async def test_the_sync_client(serve):
    assert await asyncio.to_thread(sync_message, await serve()) == "Hello world."


async def test_the_length_and_the_stop_sequence_that_end_an_answer(serve):
    served = await serve(Script(texts=("a", "STOP", "END")))
    async with served.anthropic() as client:
        cut = await client.messages.create(**{**BODY, "max_tokens": 2})
        stopped = await client.messages.create(**BODY, stop_sequences=["END", "OP"])
        ended = await client.messages.create(**BODY, stop_sequences=["never"])
        async with client.messages.stream(**BODY, stop_sequences=["END", "OP"]) as stream:
            streamed = await stream.get_final_message()
    assert (cut.stop_reason, cut.stop_sequence) == ("max_tokens", None)
    assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "OP")
    assert (streamed.stop_reason, streamed.stop_sequence) == ("stop_sequence", "OP")
    assert (ended.stop_reason, ended.stop_sequence) == ("end_turn", None)
    assert served.engine.requests[1].stop == ("END", "OP")


async def test_count_tokens(serve):
    served = await serve()
    async with served.anthropic() as client:
        counted = await client.messages.count_tokens(model="tiny", messages=HELLO, system="Be brief.")
    assert counted.input_tokens == 5
    (asked,) = served.engine.counted
    assert [message["role"] for message in asked.messages] == ["system", "user"]
    assert served.engine.requests == [], "nothing is generated"


@pytest.mark.parametrize(
    ("error", "kind", "name"),
    [
        (ContextLengthError(900, 256), anthropic.BadRequestError, "invalid_request_error"),
        (EngineBusyError("Full."), anthropic.RateLimitError, "rate_limit_error"),
        (EngineDiedError("Dead."), anthropic.InternalServerError, "api_error"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_errors_before_the_first_token(serve, error, kind, name, stream):
    served = await serve(Script(refuse=error))
    async with served.anthropic() as client:
        with pytest.raises(kind) as raised:
            await client.messages.create(**BODY, stream=stream)
    assert raised.value.body["type"] == "error"
    assert raised.value.body["error"]["type"] == name
    assert str(error) in raised.value.body["error"]["message"]


async def test_an_error_in_the_middle(serve):
    served = await serve(Script(error=EngineDiedError("Dead.")))
    async with served.anthropic() as client:
        stream = await client.messages.create(**BODY, stream=True)
        kinds = []
        with pytest.raises(anthropic.APIStatusError) as raised:  # noqa: PT012  the error comes from the loop itself
            async for event in stream:
                kinds.append(event.type)
    assert kinds[-1] == "content_block_delta"
    assert raised.value.body["error"]["message"] == "Dead."


async def test_a_client_that_goes_away_cancels(serve, eventually):
    served = await serve(Script(hold=1))
    async with served.anthropic() as client:
        stream = await client.messages.create(**BODY, stream=True)
        async for event in stream:
            if event.type == "content_block_delta":
                break
        await stream.close()
        await eventually(lambda: served.engine.cancelled == 1)


async def test_refusals_of_guards_have_anthropics_shape(serve):
    served = await serve()
    async with served.anthropic(api_key="wrong") as client:
        with pytest.raises(anthropic.AuthenticationError) as wrong:
            await client.messages.create(**BODY)
    async with served.anthropic(api_key=None, auth_token=served.token) as client:
        assert (await client.messages.create(**BODY)).content
        with pytest.raises(anthropic.NotFoundError) as unknown:
            await client.messages.create(**{**BODY, "model": "../tiny"})
    assert wrong.value.body["error"]["type"] == "authentication_error"
    assert unknown.value.body["error"]["type"] == "not_found_error"


@pytest.mark.parametrize(
    "more",
    [
        {"thinking": {"type": "enabled", "budget_tokens": 1024}},
        {"container": "x"},
        {"speed": "fast"},
        {"mcp_servers": [{}]},
    ],
)
def test_what_is_not_supported_is_refused_by_name(more):
    with pytest.raises(HTTPError) as error:
        validate(MessagesRequest, {**BODY, **more})
    assert (error.value.code, error.value.param) == ("unsupported_parameter", next(iter(more)))


def test_an_output_format():
    config = {"format": {"type": "json_schema", "schema": {"type": "object"}}}
    request = validate(MessagesRequest, {**BODY, "output_config": config}).generate_request("")
    assert request.constraint == Constraint("json_schema", '{"type": "object"}')
    assert validate(MessagesRequest, {**BODY, "output_config": {}}).generate_request("").constraint is None


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"output_config": {"effort": "low"}}, "output_config.effort"),
        ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": None}, "max_tokens"),
        ({"temperature": 1.1}, "temperature"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "system", "content": "x"}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image"}]}]}, "messages.0.content"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "The answer is ("}]}, "messages"),
        ({"system": [{"type": "text"}]}, "system"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"stop_sequences": "x"}, "stop_sequences"),
    ],
)
def test_wrong_values_are_named(more, param):
    with pytest.raises(HTTPError) as error:
        validate(MessagesRequest, {**BODY, **more})
    assert error.value.param == param
