"""Tools through Anthropic's API, with the official client and scripted engines."""

import json

import pytest

from serve.http.anthropic_blocks import whole_blocks
from serve.http.anthropic_types import MessagesRequest
from serve.http.errors import HTTPError
from serve.http.wire_types import validate
from serve.toolcalls.types import CallArguments, CallStart
from tests.fakes.engine import Script

WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TIME = {"name": "get_time", "input_schema": {"type": "object", "properties": {}}}
ASK = {"role": "user", "content": "Weather in Paris?"}
BODY = {"model": "tiny", "max_tokens": 50, "messages": [ASK], "tools": [WEATHER, TIME]}
CALLED = [
    "Let me",
    " see.\n",
    "<tool_",
    'call>{"name": "get_',
    'weather", "argum',
    'ents": {"city": ',
    '"Paris"}}',
    "</tool_call>",
]
TWICE = [*CALLED, '\n<tool_call>{"name": "get_time"}</tool_call>']
HISTORY = [
    ASK,
    {
        "role": "assistant",
        "content": [
            {"type": "text", "text": "Let me see."},
            {"type": "tool_use", "id": "toolu_1", "name": "get_weather", "input": {"city": "Paris"}},
        ],
    },
    {
        "role": "user",
        "content": [
            {"type": "tool_result", "tool_use_id": "toolu_1", "content": [{"type": "text", "text": "Rain"}]},
            {"type": "text", "text": "And now?"},
        ],
    },
]


async def test_calls_in_a_message(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.anthropic() as client:
        message = await client.messages.create(**BODY)
    text, first, second = message.content
    assert message.stop_reason == "tool_use"
    assert text.text == "Let me see."
    assert (first.type, first.name, first.input) == ("tool_use", "get_weather", {"city": "Paris"})
    assert (second.name, second.input) == ("get_time", {})
    assert first.id != second.id
    request = served.engine.requests[0]
    told = [tool["function"]["name"] for tool in request.template_args["tools"]]
    assert told == ["get_weather", "get_time"]
    assert request.constraint is None


async def test_streamed_calls(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.anthropic() as client:
        async with client.messages.stream(**BODY) as stream:
            events = [event.type async for event in stream]
            message = await stream.get_final_message()
        raw = [event async for event in await client.messages.create(**BODY, stream=True)]
    assert message.stop_reason == "tool_use"
    assert message.content[0].text == "Let me see."
    assert [block.input for block in message.content[1:]] == [{"city": "Paris"}, {}]
    assert events.count("content_block_stop") == 3
    starts = [event.content_block.type for event in raw if event.type == "content_block_start"]
    assert starts == ["text", "tool_use", "tool_use"]
    assert [event.index for event in raw if event.type == "content_block_stop"] == [0, 1, 2]


async def test_calls_and_results_in_the_history(serve):
    served = await serve(Script(tool_format="hermes"))
    async with served.anthropic() as client:
        await client.messages.create(**{**BODY, "messages": HISTORY})
        await client.messages.count_tokens(model="tiny", messages=HISTORY, tools=[WEATHER])
    for request in served.engine.requests:
        _, called, result, more = request.messages
        assert called["content"] == "Let me see."
        assert called["tool_calls"][0]["function"] == {"name": "get_weather", "arguments": {"city": "Paris"}}
        assert (result["role"], result["tool_call_id"], result["content"]) == ("tool", "toolu_1", "Rain")
        assert more == {"role": "user", "content": "And now?"}


async def test_an_answer_goes_back_as_it_came(serve):
    served = await serve(Script(CALLED, tool_format="hermes"), Script())
    async with served.anthropic() as client:
        message = await client.messages.create(**BODY)
        result = {"type": "tool_result", "tool_use_id": message.content[1].id, "content": "No.", "is_error": True}
        turns = [ASK, message.to_param(), {"role": "user", "content": [result]}]
        await client.messages.create(**{**BODY, "messages": turns})
    assert served.engine.requests[1].messages[-1]["content"] == "Error: No."


@pytest.mark.parametrize("choice", [{"type": "any"}, {"type": "tool", "name": "get_weather"}])
async def test_a_forced_call(serve, choice):
    served = await serve(Script(['{"city": "Paris"}}</tool_call>'], tool_format="hermes"))
    async with served.anthropic() as client:
        await client.messages.create(**BODY, tool_choice=choice)
    assert served.engine.requests[0].constraint is not None


async def test_no_tools_are_told_when_none_may_be_called(serve):
    served = await serve(Script(CALLED, tool_format="hermes"))
    async with served.anthropic() as client:
        message = await client.messages.create(**BODY, tool_choice={"type": "none"})
    assert [block.type for block in message.content] == ["text"]
    assert "tools" not in served.engine.requests[0].template_args


async def test_only_one_call_when_more_are_not_wanted(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.anthropic() as client:
        message = await client.messages.create(**BODY, tool_choice={"type": "auto", "disable_parallel_tool_use": True})
    assert [block.type for block in message.content] == ["text", "tool_use"]


@pytest.mark.parametrize("text", ['{"city": "Par', "5", ""])
def test_arguments_that_are_no_object(text):
    (block,) = whole_blocks([CallStart(0, "f"), CallArguments(0, text)])
    assert block["input"] == {}


def test_arguments_are_put_together():
    parts = [CallStart(0, "f"), CallArguments(0, '{"a":'), CallArguments(0, " 1}")]
    assert whole_blocks(parts)[0]["input"] == json.loads('{"a": 1}')


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools.0"),
        ({"tools": [WEATHER, WEATHER]}, ""),
        ({"tools": [{"name": "no spaces", "input_schema": {}}]}, "tools.0.name"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "auto", "name": "get_time"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "other"}}, ""),
        ({"tools": [], "tool_choice": {"type": "any"}}, ""),
        ({"messages": [{"role": "assistant", "content": HISTORY[2]["content"]}, ASK]}, "messages.0"),
        ({"messages": [{"role": "user", "content": HISTORY[1]["content"]}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": [{"type": "thinking", "thinking": "x"}]}]}, "messages.0.content"),
        (
            {
                "tool_choice": {"type": "any"},
                "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
            },
            "",
        ),
    ],
)
def test_what_is_refused(more, param):
    with pytest.raises(HTTPError) as error:
        validate(MessagesRequest, {**BODY, **more})
    assert error.value.param.startswith(param)
