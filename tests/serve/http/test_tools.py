"""Tools through the OpenAI API, with the official client and scripted engines."""

import json

import pytest

from serve.http.errors import HTTPError
from serve.http.openai_types import ChatRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script

MESSAGES = [{"role": "user", "content": "Weather in Paris?"}]
CHAT = {"model": "tiny", "messages": MESSAGES}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time"}}
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
    *MESSAGES,
    {
        "role": "assistant",
        "content": None,
        "tool_calls": [
            {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Paris"}'}}
        ],
    },
    {"role": "tool", "tool_call_id": "call_1", "content": "Rain"},
]


async def test_a_call_in_an_answer_in_one_piece(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.openai() as client:
        answer = await client.chat.completions.create(**CHAT, tools=[WEATHER, TIME])
    (choice,) = answer.choices
    assert choice.finish_reason == "tool_calls"
    assert choice.message.content == "Let me see."
    first, second = choice.message.tool_calls
    assert (first.type, first.function.name, json.loads(first.function.arguments)) == (
        "function",
        "get_weather",
        {"city": "Paris"},
    )
    assert (second.function.name, second.function.arguments) == ("get_time", "{}")
    assert first.id.startswith("call_")
    assert first.id != second.id
    (request,) = served.engine.requests
    assert [tool["function"]["name"] for tool in request.template_args["tools"]] == ["get_weather", "get_time"]
    assert "<tool_call>" in request.show_special
    assert request.constraint is None


async def test_calls_stream_as_openai_streams_them(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            **CHAT, tools=[WEATHER, TIME], stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
    deltas = [choice.delta for chunk in chunks for choice in chunk.choices]
    assert "".join(delta.content or "" for delta in deltas) == "Let me see."
    pieces = [call for delta in deltas for call in delta.tool_calls or []]
    assert len(pieces) > 4, "the arguments come bit by bit"
    for index, (name, arguments) in enumerate([("get_weather", '{"city": "Paris"}'), ("get_time", "{}")]):
        mine = [piece for piece in pieces if piece.index == index]
        assert (mine[0].function.name, mine[0].function.arguments, mine[0].type) == (name, "", "function")
        assert all(piece.id is None and piece.function.name is None for piece in mine[1:])
        assert "".join(piece.function.arguments for piece in mine) == arguments
    assert [choice.finish_reason for chunk in chunks for choice in chunk.choices][-1] == "tool_calls"
    assert chunks[-1].usage.completion_tokens == len(TWICE) + 1


async def test_the_official_client_accumulates_the_stream(serve):
    served = await serve(Script(CALLED, tool_format="hermes"))
    async with (
        served.openai() as client,
        client.chat.completions.stream(
            **CHAT, tools=[{**WEATHER, "function": {**WEATHER["function"], "strict": True}}]
        ) as stream,
    ):
        answer = await stream.get_final_completion()
    assert answer.choices[0].message.tool_calls[0].function.parsed_arguments == {"city": "Paris"}


async def test_only_one_call_where_several_are_not_wanted(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    async with served.openai() as client:
        answer = await client.chat.completions.create(**CHAT, tools=[WEATHER, TIME], parallel_tool_calls=False)
    assert len(answer.choices[0].message.tool_calls) == 1


async def test_an_answer_without_calls_is_an_answer(serve):
    served = await serve(Script(["It ", "rains. <tool", "> "], tool_format="hermes"))
    async with served.openai() as client:
        answer = await client.chat.completions.create(**CHAT, tools=[WEATHER])
    assert answer.choices[0].message.content == "It rains. <tool> "
    assert answer.choices[0].message.tool_calls is None
    assert answer.choices[0].finish_reason == "stop"


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "get_weather"}}])
async def test_a_forced_call_is_a_grammar_and_a_beginning(serve, choice):
    served = await serve(
        Script(['{"name": "get_weather", "arguments": {"city": "X"}}\n</tool_call>'], tool_format="hermes")
    )
    async with served.openai() as client:
        answer = await client.chat.completions.create(**CHAT, tools=[WEATHER, TIME], tool_choice=choice)
    assert answer.choices[0].message.content is None
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "X"}'
    (request,) = served.engine.requests
    assert request.answer_prefix == "<tool_call>\n"
    assert request.constraint.kind == "tool_calls"
    assert ("get_time" in request.constraint.text) == (choice == "required")


async def test_the_history_reaches_the_model_in_its_own_way(serve):
    served = await serve(Script(["Rainy."], tool_format="hermes"))
    async with served.openai() as client:
        await client.chat.completions.create(model="tiny", messages=HISTORY, tools=[WEATHER])
        await client.chat.completions.create(model="tiny", messages=HISTORY, tools=[WEATHER], tool_choice="none")
    told, untold = served.engine.requests
    assert told.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert told.messages[1]["content"] == ""
    assert told.messages[2] == {"role": "tool", "content": "Rain", "tool_call_id": "call_1"}
    assert untold.messages == told.messages
    assert "tools" not in untold.template_args


async def test_a_model_whose_template_knows_no_tools_is_told_in_words(serve):
    served = await serve(Script(['{"name": "get_weather", "parameters": {"city": "Rome"}}']))
    async with served.openai() as client:
        answer = await client.chat.completions.create(model="tiny", messages=HISTORY, tools=[WEATHER], logprobs=True)
    assert answer.choices[0].message.tool_calls[0].function.arguments == '{"city": "Rome"}'
    (request,) = served.engine.requests
    assert request.template_args == {}
    user, assistant, result = request.messages
    assert "get_weather" in user["content"]
    assert user["content"].endswith("Weather in Paris?")
    assert json.loads(assistant["content"]) == {"name": "get_weather", "parameters": {"city": "Paris"}}
    assert result == {"role": "user", "content": "Result of get_weather:\nRain"}


@pytest.mark.parametrize(
    ("field", "param"),
    [
        ({"tools": [{"type": "web_search"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": [{"type": "function", "function": {"name": "f", "colour": 1}}]}, "tools.0.function.colour"),
        ({"tools": [TIME, TIME]}, ""),
        ({"tools": [TIME] * 129}, "tools"),
        ({"tool_choice": "required"}, ""),
        ({"tools": [TIME], "tool_choice": "sometimes"}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "allowed_tools"}}, "tool_choice"),
        ({"tools": [TIME], "tool_choice": {"type": "function", "function": {"name": "f"}}}, ""),
        ({"tools": [TIME], "tool_choice": "required", "response_format": {"type": "json_object"}}, ""),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "c"}]}, "messages.0"),
        ({"messages": [{**HISTORY[1], "role": "user"}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "content": None}]}, "messages.0.content"),
    ],
)
def test_what_cannot_be_meant_is_refused(field, param):
    with pytest.raises(HTTPError) as refused:
        validate(ChatRequest, {**CHAT, **field})
    assert refused.value.status == 400
    assert refused.value.param == param
