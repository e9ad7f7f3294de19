"""Tools through Ollama's API, with the official client and scripted engines."""

import pytest

from serve.http.errors import HTTPError
from serve.http.ollama_tools import MessageFields, joined
from serve.http.ollama_types import OllamaChatRequest
from serve.http.wire_types import validate
from serve.toolcalls.types import CallArguments, CallStart, TextPart
from tests.fakes.engine import Script

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Weather of a city.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
TIME = {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}}
ASK = {"role": "user", "content": "Weather in Paris?"}
CALLED = [
    "Let me",
    " see.\n",
    "<tool_",
    'call>{"name": "get_',
    'weather", "arguments": {"city": ',
    '"Paris"}}</tool_call>',
]
TWICE = [*CALLED, '\n<tool_call>{"name": "get_time"}</tool_call>']


def called(message) -> list[tuple[str, dict]]:
    return [(call.function.name, dict(call.function.arguments)) for call in message.tool_calls or ()]


async def test_calls_in_an_answer(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    answer = await served.ollama().chat("tiny", [ASK], tools=[WEATHER, TIME])
    assert answer.message.content == "Let me see."
    assert called(answer.message) == [("get_weather", {"city": "Paris"}), ("get_time", {})]
    assert answer.done_reason == "stop"
    told = served.engine.requests[0].template_args["tools"]
    assert [tool["function"]["name"] for tool in told] == ["get_weather", "get_time"]


async def test_streamed_calls_come_whole(serve):
    served = await serve(Script(TWICE, tool_format="hermes"))
    parts = [part async for part in await served.ollama().chat("tiny", [ASK], tools=[WEATHER, TIME], stream=True)]
    assert "".join(part.message.content for part in parts) == "Let me see."
    assert [call for part in parts for call in called(part.message)] == [
        ("get_weather", {"city": "Paris"}),
        ("get_time", {}),
    ]
    assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]


async def test_functions_of_python_are_tools(serve):
    def add(a: int, b: int) -> int:
        """Add two numbers.

        Args:
            a: One.
            b: Another.
        """
        return a + b

    served = await serve(Script(tool_format="hermes"))
    await served.ollama().chat("tiny", [ASK], tools=[add])
    (tool,) = served.engine.requests[0].template_args["tools"]
    assert tool["function"]["parameters"]["required"] == ["a", "b"]


async def test_results_find_their_calls(serve):
    served = await serve(Script(TWICE, tool_format="hermes"), Script())
    client = served.ollama()
    answer = await client.chat("tiny", [ASK], tools=[WEATHER, TIME])
    results = [
        {"role": "tool", "content": "Noon", "tool_name": "get_time"},
        {"role": "tool", "content": "Rain", "tool_name": "get_weather"},
    ]
    await client.chat("tiny", [ASK, answer.message, *results], tools=[WEATHER, TIME])
    _, called_before, first, second = served.engine.requests[1].messages
    ids = {call["function"]["name"]: call["id"] for call in called_before["tool_calls"]}
    assert called_before["tool_calls"][0]["function"]["arguments"] == {"city": "Paris"}
    assert (first["content"], first["tool_call_id"]) == ("Noon", ids["get_time"])
    assert (second["content"], second["tool_call_id"]) == ("Rain", ids["get_weather"])


def test_results_without_names_go_in_order():
    calls = [{"function": {"name": "f"}}, {"function": {"name": "f", "arguments": {"a": 1}}, "id": "x"}]
    messages = [
        ASK,
        {"role": "assistant", "tool_calls": calls},
        *({"role": "tool", "content": str(i)} for i in range(3)),
    ]
    request = validate(OllamaChatRequest, {"model": "tiny", "messages": messages}).generate_request("")
    assert [message.get("tool_call_id") for message in request.messages[2:]] == ["call_1_0", "x", "call_4"]


def test_parts_of_an_answer():
    fields = MessageFields()
    parts = [CallStart(0, "f"), CallArguments(0, '{"a": '), CallArguments(0, "1}"), TextPart("x"), CallStart(1, "g")]
    got = [*fields.more(parts), *fields.more([CallArguments(1, '{"cut')]), *fields.end()]
    assert [one.get("tool_calls") for one in got] == [
        [{"function": {"name": "f", "arguments": {"a": 1}}}],
        None,
        [{"function": {"name": "g", "arguments": {}}}],
    ]
    assert joined(got)["content"] == "x"
    assert len(joined(got)["tool_calls"]) == 2
    assert joined([]) == {"content": ""}


async def test_logprobs_beside_calls(serve):
    served = await serve(Script(CALLED, tool_format="hermes"))
    client = served.ollama()
    whole = await client.chat("tiny", [ASK], tools=[WEATHER], logprobs=True)
    stream = await client.chat("tiny", [ASK], tools=[WEATHER], logprobs=True, stream=True)
    streamed = [token.token async for part in stream for token in part.logprobs or ()]
    assert [token.token for token in whole.logprobs] == streamed == CALLED


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"tools": [{"type": "function"}]}, "tools.0.function"),
        ({"tools": [WEATHER, WEATHER]}, ""),
        ({"messages": [{"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]}]}, "messages.0"),
        ({"messages": [{"role": "user", "content": "x", "tool_name": "f"}]}, "messages.0"),
    ],
)
def test_what_is_refused(more, param):
    with pytest.raises(HTTPError) as error:
        validate(OllamaChatRequest, {"model": "tiny", "messages": [ASK], **more})
    assert error.value.param.startswith(param)
