"""The Responses API, with the official client, unmodified."""

import openai
import pytest

from localllm.errors import ContextLengthError, EngineDiedError
from serve.engine.constraint_types import Constraint
from serve.engine.types import SamplingParams
from serve.http.errors import HTTPError
from serve.http.responses_types import LOGPROBS, ResponsesRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script


async def test_a_response(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.responses.create(
            model="tiny",
            instructions="Be brief.",
            input=[
                {"role": "developer", "content": "Be kind."},
                {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]},
            ],
            temperature=0,
            top_p=0.5,
            max_output_tokens=50,
            metadata={"a": "b"},
            store=False,
        )
    assert answer.output_text == "Hello world."
    assert (answer.status, answer.model, answer.store) == ("completed", "tiny:f16", False)
    assert answer.metadata == {"a": "b"}
    assert (answer.usage.input_tokens, answer.usage.output_tokens, answer.usage.total_tokens) == (5, 4, 9)
    assert answer.usage.input_tokens_details.cached_tokens == 2
    request = served.engine.requests[0]
    assert request.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
    )
    assert request.sampling == SamplingParams(temperature=0, top_p=0.5)
    assert request.max_tokens == 50
    assert request.client


async def test_the_output_goes_back_as_input(serve):
    served = await serve()
    async with served.openai() as client:
        first = await client.responses.create(model="tiny", input="Hi")
        history = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output)]
        await client.responses.create(model="tiny", input=[*history, {"role": "user", "content": "More."}])
    assert [message["content"] for message in served.engine.requests[1].messages] == ["Hi", "Hello world.", "More."]


async def test_a_streamed_response(serve):
    served = await serve(Script(texts=("Grüße ", "🙂")))
    async with served.openai() as client:
        stream = await client.responses.create(model="tiny", input="Hi", stream=True)
        events = [event async for event in stream]
        async with client.responses.stream(model="tiny", input="Hi") as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_response()
    assert [event.type for event in events] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
        "response.output_text.delta",
        "response.output_text.delta",
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(10))
    assert events[-1].response.output_text == final.output_text == "Grüße 🙂"
    assert events[-1].response.usage.total_tokens == 8
    assert events[0].response.usage is None


async def test_an_answer_that_is_cut_is_incomplete(serve):
    served = await serve()
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", max_output_tokens=2)
        stream = await client.responses.create(model="tiny", input="Hi", max_output_tokens=2, stream=True)
        last = [event async for event in stream][-1]
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")
    assert last.type == "response.incomplete"
    assert last.response.output[0].status == "incomplete"


async def test_logprobs(serve):
    served = await serve(Script(texts=("a",)))
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", include=[LOGPROBS], top_logprobs=2)
        stream = await client.responses.create(model="tiny", input="Hi", include=[LOGPROBS], stream=True)
        deltas = [event for event in [e async for e in stream] if event.type == "response.output_text.delta"]
    (token,) = answer.output[0].content[0].logprobs
    assert (token.token, token.logprob, len(token.top_logprobs)) == ("a", -0.5, 2)
    assert deltas[0].logprobs[0].token == "a"


async def test_errors(serve):
    served = await serve(Script(refuse=ContextLengthError(900, 256)), Script(error=EngineDiedError("Dead.")))
    async with served.openai() as client:
        with pytest.raises(openai.BadRequestError) as refused:
            await client.responses.create(model="tiny", input="Hi", stream=True)
        events = [event async for event in await client.responses.create(model="tiny", input="Hi", stream=True)]
    assert refused.value.code == "context_length_exceeded"
    assert (events[-1].type, events[-1].message, events[-1].code) == ("error", "Dead.", "engine_died")
    assert events[-1].sequence_number == len(events) - 1


async def test_a_client_that_goes_away_cancels(serve, eventually):
    served = await serve(Script(hold=1))
    async with served.openai() as client:
        stream = await client.responses.create(model="tiny", input="Hi", stream=True)
        await anext(aiter(stream))
        await stream.close()
        await eventually(lambda: served.engine.cancelled == 1)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"type": "text"}, None),
        ({"type": "json_object"}, Constraint("json_object")),
        (
            {"type": "json_schema", "name": "x", "schema": {"type": "object"}},
            Constraint("json_schema", '{"type": "object"}', lenient=True),
        ),
        (
            {"type": "json_schema", "name": "x", "schema": {"type": "object"}, "strict": True},
            Constraint("json_schema", '{"type": "object"}'),
        ),
    ],
)
async def test_formats(serve, given, expected):
    served = await serve()
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", text={"format": given})
    assert served.engine.requests[0].constraint == expected
    assert answer.text.format.type == given["type"]


@pytest.mark.parametrize(
    "more",
    [
        {"previous_response_id": "resp_1"},
        {"store": True},
        {"background": True},
        {"conversation": "conv_1"},
        {"reasoning": {"effort": "low"}},
        {"truncation": "auto"},
        {"prompt": {"id": "x"}},
    ],
)
def test_what_is_not_supported_is_refused_by_name(more):
    with pytest.raises(HTTPError) as error:
        validate(ResponsesRequest, {"model": "tiny", "input": "Hi", **more})
    assert (error.value.code, error.value.param) == ("unsupported_parameter", next(iter(more)))


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"input": []}, "input"),
        ({"input": [{"type": "reasoning", "summary": []}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "output": "y"}]}, "input.0"),
        ({"tools": [{"type": "web_search"}]}, "tools.0"),
        ({"tools": [{"type": "function", "name": "a b"}]}, "tools.0"),
        ({"tool_choice": "required"}, ""),
        ({"tool_choice": {"type": "function", "name": "f"}}, ""),
        ({"tool_choice": {"type": "file_search"}}, "tool_choice"),
        ({"max_tool_calls": 2}, "max_tool_calls"),
        ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input.0.content"),
        ({"include": ["file_search_call.results"]}, "include.0"),
        ({"top_logprobs": 3}, ""),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"text": {"verbosity": "low"}}, "text.verbosity"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format"),
        ({"text": {"format": {"type": "text", "schema": {}}}}, "text.format"),
        ({"stream_options": {"include_obfuscation": False}}, ""),
        ({"metadata": {"a": 5}}, "metadata.a"),
    ],
)
def test_wrong_values_are_named(more, param):
    with pytest.raises(HTTPError) as error:
        validate(ResponsesRequest, {"model": "tiny", "input": "Hi", **more})
    assert error.value.param.startswith(param)
