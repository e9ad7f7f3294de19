"""Structured answers and tool calls from the real starter model, through the real server and the official client."""

import json

import openai
import pytest

from tests.serve.test_end_to_end import MODEL, ask, client, server  # noqa: F401 - fixtures

pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 20},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "kind": {"enum": ["child", "adult"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 20}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
        },
    },
}
CLOCK = {"type": "function", "function": {"name": "get_time", "description": "The time."}}


def test_answers_follow_their_form(client):  # noqa: F811 - a fixture
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": PERSON, "strict": True}}
    answer = ask(client, "Describe Ada.", response_format=response_format, max_tokens=100)
    person = json.loads(answer.choices[0].message.content)
    assert person.keys() == {"name", "age", "kind"}
    assert 0 <= person["age"] <= 130
    assert answer.choices[0].finish_reason == "stop"

    # Of so small a model only what it is led to by the hand ends: any other object may go on to the limit.
    wanted = 'Answer with JSON: {"name": "Ada"}'
    answer = ask(client, wanted, response_format={"type": "json_object"}, max_tokens=100)
    assert answer.choices[0].finish_reason == "stop"
    assert isinstance(json.loads(_text(answer)), dict)
    assert _text(ask(client, "Red or blue?", extra_body={"regex": "red|blue"})) in ("red", "blue")
    completion = client.completions.create(
        model=MODEL, prompt="2 + 2 =", max_tokens=8, extra_body={"grammar": 'root ::= " " [0-9]'}
    )
    assert completion.choices[0].text.strip().isdigit()

    schema = {"name": "x", "strict": True, "schema": {"type": "array", "uniqueItems": True}}
    with pytest.raises(openai.BadRequestError, match="uniqueItems"):
        ask(client, "Hi", response_format={"type": "json_schema", "json_schema": schema})


def _text(answer):
    return answer.choices[0].message.content


def test_a_forced_call_has_arguments_of_its_schema(client):  # noqa: F811 - a fixture
    named = {"type": "function", "function": {"name": "get_weather"}}
    answer = ask(client, "Is it cold in Oslo?", tools=[WEATHER, CLOCK], tool_choice=named, max_tokens=200)
    for call in answer.choices[0].message.tool_calls:
        assert call.function.name == "get_weather"
        arguments = json.loads(call.function.arguments)
        assert arguments.keys() == {"city", "unit"}
        assert arguments["unit"] in ("C", "F")

    stream = ask(
        client, "Is it cold in Oslo?", tools=[WEATHER], tool_choice="required", parallel_tool_calls=False, stream=True
    )
    pieces, reasons = [], []
    for chunk in stream:
        (choice,) = chunk.choices
        assert not choice.delta.content
        pieces += choice.delta.tool_calls or []
        reasons.append(choice.finish_reason)
    assert reasons[-1] == "tool_calls"
    assert len(pieces) > 3, "the arguments stream"
    assert json.loads("".join(piece.function.arguments for piece in pieces)).keys() == {"city", "unit"}

    history = [
        {"role": "user", "content": "Is it cold in Oslo?"},
        answer.choices[0].message.to_dict(),
        *(
            {"role": "tool", "tool_call_id": call.id, "content": "-3 C"}
            for call in answer.choices[0].message.tool_calls
        ),
    ]
    final = client.chat.completions.create(model=MODEL, messages=history, tools=[WEATHER], max_tokens=30)
    assert final.choices[0].message.content or final.choices[0].message.tool_calls
