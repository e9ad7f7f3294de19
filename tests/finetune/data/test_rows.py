"""Rows of every shape are understood, and what is wrong with a row is said."""

import json
from datetime import UTC, datetime

import pytest

from finetune.data.rows import Chat, Completion, RowError, Text, read_row

USER, ANSWER = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}


def turns(fields):
    content = read_row(fields).content
    assert isinstance(content, Chat)
    return [(message["role"], message["content"]) for message in content.messages]


def test_messages_with_tools():
    tool = {"name": "weather", "parameters": {}}
    row = read_row({"messages": [USER, ANSWER], "tools": json.dumps([tool])})
    assert row.shape == "messages"
    assert row.content == Chat((USER, ANSWER), ({"type": "function", "function": tool},))


def test_parts_of_text_are_joined():
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    assert turns({"messages": [{"role": "user", "content": parts}, ANSWER]})[0] == ("user", "ab")


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"prompt": "2+2?", "completion": "4"}, Completion("2+2?", "4")),
        ({"question": "2+2?", "answer": "4"}, Completion("2+2?", "4")),
        ({"text": "once"}, Text("once")),
        ({"prompt": [USER], "completion": [ANSWER]}, Chat((USER, ANSWER))),
    ],
)
def test_pairs_and_text(fields, expected):
    assert read_row(fields).content == expected


def test_alpaca_with_input_system_and_history():
    fields = {
        "instruction": "Translate",
        "input": "Haus",
        "output": "house",
        "system": "Be brief.",
        "history": [["a", "b"]],
    }
    assert turns(fields) == [
        ("system", "Be brief."), ("user", "a"), ("assistant", "b"),
        ("user", "Translate\n\nHaus"), ("assistant", "house"),
    ]  # fmt: skip


def test_a_field_of_white_space_alone_says_nothing():
    fields = {"instruction": "Greet", "input": " ", "system": "\n", "output": "Hello."}
    assert turns(fields) == [("user", "Greet"), ("assistant", "Hello.")]
    fields = {"system": " ", "conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
    assert turns(fields) == [("user", "Hi"), ("assistant", "Hello.")]


def test_half_a_character_is_named():
    with pytest.raises(RowError, match=r"half of a character \(\\ud83d\)"):
        read_row(json.loads('{"text": "cut off \\ud83d"}'))


def test_a_turn_may_hold_more_than_json_can():
    said_at = datetime(2026, 1, 2, tzinfo=UTC)
    assert turns({"messages": [USER | {"at": said_at}, ANSWER]}) == [("user", "Hi"), ("assistant", "Hello.")]


def test_sharegpt_with_a_function_call():
    fields = {
        "conversations": [
            {"from": "human", "value": "Weather?"},
            {"from": "function_call", "value": json.dumps({"name": "weather", "arguments": {"city": "Bonn"}})},
            {"from": "observation", "value": "rain"},
            {"from": "gpt", "value": "It rains."},
        ],
        "tools": '[{"name": "weather"}]',
    }
    content = read_row(fields).content
    assert [message["role"] for message in content.messages] == ["user", "assistant", "tool", "assistant"]
    assert content.messages[1]["tool_calls"][0]["function"] == {"name": "weather", "arguments": {"city": "Bonn"}}


@pytest.mark.parametrize(
    "call",
    [
        {"name": "f", "arguments": {"a": 1}},
        {"type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}},
    ],
)
def test_tool_calls_are_brought_into_one_form(call):
    content = read_row({"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}).content
    assert content.messages[1] == {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"a": 1}}}],
    }


def test_rows_that_say_the_same_have_one_key():
    alpaca = read_row({"instruction": "Hi", "input": "", "output": "Hello."})
    assert alpaca.key == read_row({"messages": [USER, ANSWER]}).key


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"chosen": "a", "rejected": "b"}, "preference"),
        ({"a": 1, "b": 2}, r"fields \(a, b\)"),
        ({"messages": []}, "no list of turns"),
        ({"messages": ["x"]}, "turn 1 is no object"),
        ({"messages": [{"role": "bot", "content": "x"}]}, "role 'bot'"),
        ({"messages": [USER]}, "nothing to learn"),
        ({"messages": [USER, {"role": "assistant", "content": " "}]}, "turn 2, the assistant's, is empty"),
        ({"messages": [USER, {"role": "assistant"}]}, "turn 2 has no content"),
        ({"messages": [ANSWER, USER]}, "before the user"),
        ({"messages": [USER, USER, ANSWER]}, "turns 1 and 2 are both"),
        ({"messages": [USER, ANSWER, {"role": "system", "content": "x"}]}, "system turn"),
        ({"conversations": [{"from": "cat", "value": "miaow"}]}, "from 'cat'"),
        ({"conversations": [{"from": "human", "value": 3}]}, "has no value"),
        ({"prompt": "", "completion": "x"}, "prompt is empty"),
        ({"prompt": "x", "completion": 3}, "completion is no text"),
        ({"text": " "}, "text is empty"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": ["x"]}]}, "turn 2 has a tool call"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"function": {}}]}]}, "turn 2 has a tool call"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": "x"}]}, "turn 2 has a tool call"),
    ],
)
def test_what_is_wrong_is_said(fields, reason):
    with pytest.raises(RowError, match=reason):
        read_row(fields)
