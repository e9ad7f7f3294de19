"""Grammars that force calls, on the starter model's vocabulary: what they allow is what the parser reads."""

import json

import pytest

from serve.engine.constraint_types import Constraint
from serve.engine.types import GenerateRequest
from serve.toolcalls.plan import ToolPlan, new_call_id
from serve.toolcalls.types import CallArguments, CallStart, Tool

pytestmark = pytest.mark.model

WEATHER = Tool(
    "get_weather",
    "Weather.",
    {
        "type": "object",
        "properties": {"city": {"$ref": "#/$defs/City"}, "days": {"type": "integer", "minimum": 1}},
        "required": ["city"],
        "$defs": {"City": {"enum": ["Oslo", "Rome"]}},
    },
)
CLOCK = Tool("get_time")
ROME = '{"city": "Rome", "days": 2}'
OBJECT = f'{{"name": "get_weather", "arguments": {ROME}}}'
PARAMETERS = f'{{"name": "get_weather", "parameters": {ROME}}}'
ONE = [("get_weather", ROME)]
TWO = [*ONE, ("get_time", "{}")]
EMPTY = '{"name": "get_time", "arguments": {}}'
CASES = [
    ("hermes", f"{OBJECT}\n</tool_call>", ONE),
    ("hermes", f"{OBJECT}\n</tool_call>\n<tool_call>\n{EMPTY}\n</tool_call>", TWO),
    ("llama3", PARAMETERS, ONE),
    ("mistral", f"[{OBJECT}]", ONE),
    ("mistral", f" [{OBJECT}, {EMPTY}]", TWO),
    ("mistral_args", f"get_weather[ARGS]{ROME}", ONE),
    ("plain", PARAMETERS, ONE),
]


@pytest.fixture(scope="module")
def model(starter_path):
    from serve.engine.llama import LlamaModel

    model = LlamaModel(str(starter_path))
    yield model
    model.close()


@pytest.fixture(scope="module")
def vocabulary(model):
    from serve.engine.llama_grammars import llama_grammar_vocabulary

    return llama_grammar_vocabulary(model)


def forced(tool_format, *tools, parallel=True):
    plan = ToolPlan(tools, force=True, parallel=parallel)
    request = plan.request(GenerateRequest(messages=({"role": "user", "content": "Hi"},)), tool_format)
    return plan, request


def follow(model, matcher, text):
    taken = b""
    for token in model.tokenize(text, add_special=False, parse_special=False):
        if matcher.is_finished or not matcher.allows(token):
            break
        matcher.accept(token)
        taken += model.piece(token)
    return taken.decode()


def read(parser, text):
    calls = []
    for part in [*parser.feed(text), *parser.finish()]:
        match part:
            case CallStart(_, name):
                calls.append([name, ""])
            case CallArguments(_, more):
                calls[-1][1] += more
            case _:
                raise AssertionError(part)
    return [tuple(call) for call in calls]


@pytest.mark.parametrize(("tool_format", "text", "calls"), CASES)
def test_a_call_is_allowed_to_its_end_and_read_back(model, vocabulary, tool_format, text, calls):
    plan, request = forced(tool_format, WEATHER, CLOCK)
    matcher = vocabulary.compile(request.constraint)
    assert follow(model, matcher, text) == text
    assert matcher.is_finished or matcher.allows(model.eos)
    assert read(plan.parser(tool_format), text) == calls


@pytest.mark.parametrize("tool_format", ["hermes", "llama3", "mistral", "mistral_args", "plain"])
@pytest.mark.parametrize("wrong", ["Hello", '{"city": "Paris"}', "get_weather(", " "])
def test_anything_else_is_not(model, vocabulary, tool_format, wrong):
    _, request = forced(tool_format, WEATHER, CLOCK)
    matcher = vocabulary.compile(request.constraint)
    assert follow(model, matcher, wrong) != wrong or not (matcher.is_finished or matcher.allows(model.eos))


def test_arguments_that_the_schema_does_not_name_are_not(model, vocabulary):
    _, request = forced("plain", WEATHER)
    text = '{"name": "get_weather", "parameters": {"city": "Rome", "colour"'
    assert follow(model, vocabulary.compile(request.constraint), text) < text


def test_one_call_where_several_are_not_wanted(model, vocabulary):
    _, request = forced("hermes", WEATHER, CLOCK, parallel=False)
    matcher = vocabulary.compile(request.constraint)
    follow(model, matcher, f"{OBJECT}\n</tool_call>")
    assert matcher.is_finished


def test_the_one_tool_of_a_named_call_is_part_of_the_beginning(model, vocabulary):
    plan, request = forced("mistral_args", WEATHER)
    assert request.answer_prefix == "[TOOL_CALLS]get_weather[ARGS]"
    assert follow(model, vocabulary.compile(request.constraint), ROME) == ROME
    assert read(plan.parser("mistral_args"), ROME) == ONE


@pytest.mark.parametrize(
    "parameters",
    [
        {},
        {"$ref": "#/$defs/X", "$defs": {"X": {"type": "object", "properties": {"a": {"type": "integer"}}}}},
        {"anyOf": [{"properties": {"a": {"const": 1}}}, {"properties": {"b": {"const": 1}}}]},
        {"type": "object", "properties": {"a": {"type": "array", "uniqueItems": True}}},
    ],
)
def test_schemas_as_people_write_them(vocabulary, parameters):
    _, request = forced("hermes", Tool("f", "", parameters))
    vocabulary.compile(request.constraint)


def test_white_space_is_bounded(model, vocabulary):
    _, request = forced("plain", WEATHER)
    text = '{"name": "get_weather", "parameters": {' + "\n" * 60
    assert len(follow(model, vocabulary.compile(request.constraint), text)) < len(text)


def test_ids():
    assert new_call_id("hermes") != new_call_id("hermes")
    assert len(new_call_id("mistral")) == 9
    assert new_call_id("mistral").isalnum()


def test_the_grammars_kind():
    _, request = forced("plain", CLOCK)
    assert isinstance(request.constraint, Constraint)
    assert json.dumps("get_time")[1:-1] in request.constraint.text
