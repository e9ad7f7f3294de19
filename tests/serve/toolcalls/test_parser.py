"""Tool calls found in streams that are cut anywhere."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve.toolcalls.parser import ToolCallParser
from serve.toolcalls.types import CallArguments, CallStart, TextPart

NAMES = ("get_weather", "add")
FORMATS = ("hermes", "llama3", "mistral", "mistral_args", "plain")
PARIS = {"city": 'Pa"r}is\\', "days": [1, {"x": "]"}], "é": None}
PARIS_TEXT = json.dumps(PARIS)


def parse(tool_format, pieces, **options):
    """The whole text, and (name, arguments' text) of each call."""
    parser = ToolCallParser(tool_format, NAMES, **options)
    text, calls = "", []
    for part in [part for piece in pieces for part in parser.feed(piece)] + parser.finish():
        match part:
            case TextPart(more):
                text += more
            case CallStart(index, name):
                assert index == len(calls)
                calls.append([name, ""])
            case CallArguments(index, more):
                assert index == len(calls) - 1
                calls[index][1] += more
    return text, [tuple(call) for call in calls]


def cut(text, places):
    ends = sorted({min(place, len(text)) for place in places} | {len(text)})
    return [text[a:b] for a, b in zip([0, *ends], ends, strict=False)]


ONE = [("get_weather", PARIS_TEXT)]
TWO = [("get_weather", PARIS_TEXT), ("add", '{"a": 1}')]
NESTED = f'{{"name": "get_weather", "arguments": {PARIS_TEXT}}}'
ADD = '{"name": "add", "arguments": {"a": 1}}'
PARAMETERS = f'{{"name": "get_weather", "parameters": {PARIS_TEXT}}}'
CASES = [
    ("hermes", f"<tool_call>\n{NESTED}\n</tool_call>", "", ONE),
    ("hermes", f"Let me see.\n\n<tool_call>\n{NESTED}\n</tool_call>\n<tool_call>{ADD}</tool_call>", "Let me see.", TWO),
    ("hermes", f"<tool_call>[{NESTED}, {ADD}]</tool_call> Done", " Done", TWO),
    ("hermes", f"<tool_call>\n{NESTED}\n", "", ONE),
    ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "add"}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add", "arguments": "{\\"a\\": 1}"}</tool_call>', "", [("add", '{"a": 1}')]),
    ("hermes", '<tool_call>{"name": "add"}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": null}</tool_call>', "", [("add", "{}")]),
    ("hermes", '<tool_call>{"name": "add", "arguments": {"a": "</tool_call>', "", [("add", '{"a": "</tool_call>')]),
    ("llama3", PARAMETERS, "", ONE),
    ("llama3", f'<|python_tag|>{PARAMETERS}; {{"type": "function", "name": "add", "parameters": {{"a": 1}}}}', "", TWO),
    ("llama3", f"\n {PARAMETERS}\n", "", ONE),
    ("mistral", f"[TOOL_CALLS] [{NESTED}, {ADD}]", "", TWO),
    ("mistral", f'Well: [TOOL_CALLS][{{"id": "abc123def", {NESTED[1:]}]', "Well:", ONE),
    ("mistral_args", f'[TOOL_CALLS]get_weather[ARGS]{PARIS_TEXT}[TOOL_CALLS]add[CALL_ID]x[ARGS]{{"a": 1}}', "", TWO),
    ("mistral_args", f"[TOOL_CALLS]get_weather{PARIS_TEXT}", "", ONE),
    ("mistral_args", f"[TOOL_CALLS] [{NESTED}, {ADD}]", "", TWO),
    ("plain", PARAMETERS, "", ONE),
    ("plain", f"Sure.\n```json\n{PARAMETERS}\n```\n", "Sure.", ONE),
    ("plain", f"```tool_code\n[{NESTED}, {ADD}]\n```", "", TWO),
    ("plain", "```tool_code\nprint(tools.add(a=1, b='x'))\n```", "", [("add", '{"a": 1, "b": "x"}')]),
    ("plain", "```tool_code\n[add(a=-1), get_weather()]", "", [("add", '{"a": -1}'), ("get_weather", "{}")]),
]
NO_CALLS = [
    ("hermes", "Plain text, 3 < 4, <tool> and <tool_cal"),
    ("hermes", " \n <tool_call>\nnothing of the kind</tool_call> \n"),
    ("hermes", '<tool_call>{"name": "unknown", "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
    ("hermes", '<tool_call>{"name": "add", "arguments": [1]}</tool_call>'),
    ("hermes", "<tool_call></tool_call>"),
    ("llama3", '{"city": "Paris", "name": "add"}'),
    ("llama3", '[1, 2] {"name": "add", "parameters": {}}'),
    ("llama3", 'As JSON: {"name": "add", "parameters": {}}'),
    ("llama3", '{"name": "ad'),
    ("mistral", "[TOOL_CALLS] I would call add"),
    ("mistral", "[TOOL_CALL"),
    ("mistral_args", "[TOOL_CALLS]unknown[ARGS]{}"),
    ("mistral_args", "[TOOL_CALLS]add[ARGS]"),
    ("plain", "```json\n[1, 2, 3]\n```\n"),
    ("plain", "```tool_code\nimport os\nos.remove(path)\n```"),
    ("plain", "```tool_code\nadd(a=open('x'))\n```"),
    ("plain", "```python\nadd(a=1)\n```"),
]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(case=st.sampled_from(CASES), places=st.lists(st.integers(0, 200), max_size=30))
def test_calls_are_found_however_the_stream_is_cut(case, places):
    tool_format, answer, text, calls = case
    assert parse(tool_format, cut(answer, places)) == (text, calls)


@pytest.mark.parametrize(("tool_format", "answer", "text", "calls"), CASES)
def test_calls_are_found_character_by_character(tool_format, answer, text, calls):
    assert parse(tool_format, answer) == parse(tool_format, [answer]) == (text, calls)


@pytest.mark.parametrize(("tool_format", "answer"), NO_CALLS)
def test_what_is_no_call_stays_text(tool_format, answer):
    assert parse(tool_format, answer) == parse(tool_format, [answer]) == (answer, [])


_FRAGMENTS = st.sampled_from(
    ("<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "```json", "```tool_code", "```")
) | st.sampled_from(
    ("{", "}", "[", "]", ":", ",", '"', "\\", '"name"', '"arguments"', '"add"', "add", "1", " ", "\n", "é")
)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    tool_format=st.sampled_from(FORMATS),
    answer=st.lists(_FRAGMENTS, max_size=25).map("".join),
    places=st.lists(st.integers(0, 200), max_size=30),
)
def test_any_text_is_read_alike_however_it_is_cut(tool_format, answer, places):
    text, calls = parse(tool_format, [answer])
    assert parse(tool_format, cut(answer, places)) == (text, calls)
    if not calls:
        assert text == answer


def test_text_without_marks_is_not_held_back():
    parser = ToolCallParser("hermes", NAMES)
    assert parser.feed("Hello") == [TextPart("Hello")]
    assert parser.feed(" world <") == [TextPart(" world")]
    assert parser.feed("3") == [TextPart(" <3")]


def test_what_an_answer_begins_with_is_never_text():
    parser = ToolCallParser("hermes", NAMES)
    parser.begin("<tool_call>\n")
    assert parser.feed('{"name": "ge') == []
    assert parser.finish() == [TextPart('{"name": "ge')]
    parser = ToolCallParser("mistral_args", NAMES)
    parser.begin("[TOOL_CALLS]add[ARGS]")
    assert parser.feed('{"a": 1}') == [CallStart(0, "add"), CallArguments(0, '{"a": 1}')]


def test_arguments_stream():
    parser = ToolCallParser("hermes", NAMES)
    assert parser.feed('<tool_call>{"name": "add", "arguments": {"a"') == [
        CallStart(0, "add"),
        CallArguments(0, '{"a"'),
    ]
    assert parser.feed(": 1") == [CallArguments(0, ": 1")]
    assert parser.n_calls == 1


def test_calls_beyond_the_limit_are_dropped():
    answer = f"<tool_call>{NESTED}</tool_call><tool_call>{ADD}</tool_call>"
    assert parse("hermes", [answer], max_calls=1) == ("", ONE)
