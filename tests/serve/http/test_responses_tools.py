"""Functions in the Responses API, with the official client, unmodified."""

import json

import pytest

from serve.http.errors import HTTPError
from serve.http.responses_types import LOGPROBS, ResponsesRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL = {"type": "function", "name": "weather", "description": "Tells.", "parameters": SCHEMA, "strict": True}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'


def calling(*texts):
    return Script(texts=texts, tool_format="hermes")


async def test_a_call_is_an_item_of_its_own(serve):
    served = await serve(calling("Let me see.\n", CALL))
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", tools=[TOOL], parallel_tool_calls=False)
    message, call = answer.output
    assert (message.type, message.content[0].text) == ("message", "Let me see.")
    assert (call.type, call.name, call.status) == ("function_call", "weather", "completed")
    assert json.loads(call.arguments) == {"city": "Köln"}
    assert call.call_id
    assert (answer.status, answer.tools[0].name, answer.parallel_tool_calls) == ("completed", "weather", False)
    (listed,) = served.engine.requests[0].template_args["tools"]
    assert listed["function"] == {"name": "weather", "description": "Tells.", "parameters": SCHEMA}


async def test_a_streamed_call(serve):
    served = await serve(calling(*CALL))
    async with served.openai() as client:
        stream = await client.responses.create(model="tiny", input="Hi", tools=[TOOL], stream=True)
        events = [event async for event in stream]
        async with client.responses.stream(model="tiny", input="Hi", tools=[TOOL]) as helper:
            async for _ in helper:
                pass
            final = await helper.get_final_response()
    kinds = [event.type for event in events]
    assert list(dict.fromkeys(kinds)) == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.function_call_arguments.delta",
        "response.function_call_arguments.done",
        "response.output_item.done",
        "response.completed",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.function_call_arguments.delta"]
    done = next(event for event in events if event.type == "response.function_call_arguments.done")
    assert "".join(event.delta for event in deltas) == done.arguments == final.output[0].arguments
    assert len(deltas) > 1
    assert {event.item_id for event in deltas} == {done.item_id, events[-1].response.output[0].id}
    assert done.name == "weather"


async def test_text_and_two_calls_are_three_items(serve):
    served = await serve(calling("First. ", CALL, CALL))
    async with served.openai() as client:
        stream = await client.responses.create(model="tiny", input="Hi", tools=[TOOL], stream=True)
        events = [event async for event in stream]
    added = [(event.output_index, event.item.type) for event in events if event.type == "response.output_item.added"]
    done = [(event.output_index, event.item.type) for event in events if event.type == "response.output_item.done"]
    assert added == done == [(0, "message"), (1, "function_call"), (2, "function_call")]
    assert len({item.id for item in events[-1].response.output}) == 3


async def test_the_output_and_the_result_go_back_as_input(serve):
    served = await serve(calling("See.\n", CALL), calling("Rain."))
    async with served.openai() as client:
        first = await client.responses.create(model="tiny", input="Hi", tools=[TOOL])
        call = first.output[1]
        history = [{"role": "user", "content": "Hi"}, *(item.model_dump() for item in first.output)]
        result = {"type": "function_call_output", "call_id": call.call_id, "output": "It rains."}
        second = await client.responses.create(model="tiny", input=[*history, result], tools=[TOOL])
    assert second.output_text == "Rain."
    user, assistant, tool = served.engine.requests[1].messages[-3:]
    assert (user["content"], assistant["content"], tool["content"]) == ("Hi", "See.", "It rains.")
    assert assistant["tool_calls"][0]["function"]["name"] == "weather"
    assert tool["role"] == "tool"


async def test_a_result_without_its_tools(serve):
    served = await serve()
    items = [
        {"role": "user", "content": "Hi"},
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "call_id": "c2", "name": "weather", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Rain."}]},
    ]
    request = validate(ResponsesRequest, {"model": "tiny", "input": items}).generate_request("")
    assert [message["role"] for message in request.messages] == ["user", "assistant", "tool"]
    assert [call["id"] for call in request.messages[1]["tool_calls"]] == ["c1", "c2"]
    async with served.openai() as client:
        assert (await client.responses.create(model="tiny", input=items)).output_text == "Hello world."


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
async def test_a_forced_choice_is_a_constraint(serve, choice):
    served = await serve(calling('{"name": "weather", "arguments": {"city": "Rom"}}\n</tool_call>'))
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", tools=[TOOL], tool_choice=choice)
    assert served.engine.requests[0].constraint.kind == "tool_calls"
    assert served.engine.requests[0].answer_prefix
    assert answer.output[0].type == "function_call"


async def test_a_call_that_is_cut_off_is_incomplete(serve):
    served = await serve(calling('<tool_call>\n{"name": "weather", "arguments": {"ci', "ty"))
    async with served.openai() as client:
        answer = await client.responses.create(model="tiny", input="Hi", tools=[TOOL], max_output_tokens=1)
    assert (answer.status, answer.output[-1].status) == ("incomplete", "incomplete")


@pytest.mark.parametrize(
    "more",
    [
        {"include": [LOGPROBS]},
        {"tool_choice": "required", "text": {"format": {"type": "json_object"}}},
    ],
)
def test_contradictions_are_refused(more):
    with pytest.raises(HTTPError):
        validate(ResponsesRequest, {"model": "tiny", "input": "Hi", "tools": [TOOL], **more})
