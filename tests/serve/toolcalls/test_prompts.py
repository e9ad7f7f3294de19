"""Conversations with calls, as each family's templates take them; and the formats told from templates."""

import json

import pytest

from serve.engine.templates import ChatTemplate
from serve.toolcalls.formats import tool_format
from serve.toolcalls.prompts import chat_for
from serve.toolcalls.types import Tool

WEATHER = Tool("get_weather", "Weather {of} a city.", {"type": "object", "properties": {"city": {"type": "string"}}})


def call(call_id, city):
    arguments = json.dumps({"city": city})
    return {"id": call_id, "type": "function", "function": {"name": "get_weather", "arguments": arguments}}


def result(call_id, content):
    return {"role": "tool", "tool_call_id": call_id, "content": content}


USER = {"role": "user", "content": "Oslo or Rome?"}
CALLS = {"role": "assistant", "content": "", "tool_calls": [call("call_1", "Oslo"), call("call_2", "Rome")]}
CHAT = [USER, CALLS, result("call_1", "Rain"), result("call_2", "Sun")]


def test_templates_get_the_arguments_as_objects():
    chat = chat_for("hermes", CHAT, [WEATHER])
    assert [c["function"]["arguments"] for c in chat[1]["tool_calls"]] == [{"city": "Oslo"}, {"city": "Rome"}]
    assert chat[2:] == CHAT[2:]
    assert isinstance(CALLS["tool_calls"][0]["function"]["arguments"], str), "what was given is left as it is"


def test_arguments_that_are_no_json_stay_text():
    broken = {**CALLS, "tool_calls": [{**call("c", "x"), "function": {"name": "get_weather", "arguments": "{oh"}}]}
    assert chat_for("hermes", [USER, broken], [])[1]["tool_calls"][0]["function"]["arguments"] == "{oh"


def test_llama_gets_one_call_a_message_with_its_result_after_it():
    chat = chat_for("llama3", [*CHAT, USER], [WEATHER])
    assert [message["role"] for message in chat] == ["user", "assistant", "tool", "assistant", "tool", "user"]
    assert [message["tool_call_id"] for message in chat if message["role"] == "tool"] == ["call_1", "call_2"]
    assert all(len(message.get("tool_calls", [])) < 2 for message in chat)


def test_mistral_gets_ids_of_nine_that_still_match():
    _, calls, first, second = chat_for("mistral", CHAT, [WEATHER])
    ids = [c["id"] for c in calls["tool_calls"]]
    assert ids == [first["tool_call_id"], second["tool_call_id"]]
    assert all(len(i) == 9 and i.isalnum() for i in ids)
    assert len(set(ids)) == 2
    assert (
        chat_for("mistral", [{**CALLS, "tool_calls": [call("abcDEF123", "x")]}], [])[0]["tool_calls"][0]["id"]
        == "abcDEF123"
    )


def test_plain_models_read_it_all_as_words():
    chat = chat_for(
        "plain", [*CHAT, {"role": "user", "content": "So?"}, {"role": "assistant", "content": "Rome."}], [WEATHER]
    )
    assert [message["role"] for message in chat] == ["user", "assistant", "user", "assistant"]
    assert chat[0]["content"].endswith(USER["content"])
    assert "Weather {of} a city." in chat[0]["content"]
    assert [json.loads(line)["parameters"]["city"] for line in chat[1]["content"].splitlines()] == ["Oslo", "Rome"]
    assert chat[2]["content"] == "Result of get_weather:\nRain\n\nResult of get_weather:\nSun\n\nSo?"
    assert all(message.keys() == {"role", "content"} for message in chat)


def test_instructions_join_the_system_message_where_there_is_one():
    chat = chat_for("plain", [{"role": "system", "content": "Be kind."}, USER], [WEATHER])
    assert chat[0]["content"].startswith("Be kind.\n\n")
    assert "get_weather" in chat[0]["content"]
    assert chat[1] == USER
    assert chat_for("plain", [USER], []) == [USER]


HERMES = """{%- if tools %}<tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools>
return <tool_call>{"name": …, "arguments": …}</tool_call>{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}
{{ m.content }}
{%- for c in m.tool_calls %}<tool_call>{{ c.function.arguments | tojson }}</tool_call>{% endfor %}<|im_end|>
{% endfor %}"""


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "plain"),
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "plain"),
        (HERMES, "hermes"),
        ("{% if tools %}<tool_call><function=x></function></tool_call>{% endif %}", "plain"),
        ("{% if tools %}<tool_call>name<arg_key>key</arg_key></tool_call>{% endif %}", "plain"),
        ("{% if tools %}<|python_tag|> or <function=name>{}</function>{% endif %}", "plain"),
        ('{% if tools %}{{ \'<|start_header_id|>\' }}Respond {"name": n, "parameters": p}{% endif %}', "llama3"),
        ("{% if tools %}<|python_tag|>{% endif %}", "llama3"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS] [", "mistral"),
        ("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]{{ n }}[ARGS]", "mistral_args"),
        ("{% if tools %}<|tool|>{% endif %}", "plain"),
    ],
)
def test_the_format_is_told_from_the_template(template, expected):
    assert tool_format(template) == expected


def test_a_template_renders_calls():
    text = ChatTemplate(HERMES).render(chat_for("hermes", CHAT, [WEATHER]), tools=[WEATHER.as_dict()])
    assert '<tool_call>{"city": "Oslo"}</tool_call>' in text
    assert '"description": "Weather {of} a city."' in text
