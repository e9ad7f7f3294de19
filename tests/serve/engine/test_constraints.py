"""Constraints on the starter model's vocabulary: what they allow, where they end, what is refused and why."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localllm.errors import RequestError
from serve.engine.constraint_types import Constraint

pytestmark = pytest.mark.model

POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer"}, "label": {"enum": ["a", "é\n😀"]}},
    "required": ["x"],
    "additionalProperties": False,
}


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


def follow(model, matcher, text):
    """Feed ``text``; how much of it is allowed."""
    taken = b""
    for token in model.tokenize(text, add_special=False, parse_special=False):
        if matcher.is_finished or not matcher.allows(token):
            break
        assert token in matcher.allowed()
        matcher.accept(token)
        taken += model.piece(token)
    return taken.decode()


def schema(record, lenient=False):
    return Constraint("json_schema", json.dumps(record), lenient)


@pytest.mark.parametrize(
    ("constraint", "text"),
    [
        (schema(POINT), '{"x": -12}'),
        (schema(POINT), '{\n  "x": 3,\n  "label": "é\\n😀"\n}'),
        (schema({"oneOf": [{"const": 1}, {"const": "one"}]}), '"one"'),
        (Constraint("json_object"), '{"any": [1, null, {"thing": "ü"}]}'),
        (Constraint("regex", "a/b\n[0-9]{3}"), "a/b\n123"),
        (Constraint("lark", 'start: "<" ("yes" | "no") ">"'), "<no>"),
        (Constraint("gbnf", 'root ::= "yes" | "no"'), "yes"),
    ],
)
def test_a_text_of_the_language_is_allowed_to_its_very_end(model, vocabulary, constraint, text):
    matcher = vocabulary.compile(constraint)
    assert follow(model, matcher, text) == text
    assert matcher.is_finished


@pytest.mark.parametrize(
    ("constraint", "text", "allowed"),
    [
        (schema(POINT), '{"y": 1}', '{"'),
        (Constraint("json_object"), "[1]", ""),
        (Constraint("regex", "[0-9]{3}"), "12x", "12"),
        (schema(POINT), '{"x":\n\n1}', '{"x":\n'),
        (schema(POINT), '{"x":' + " " * 5 + "1}", '{"x": '),
    ],
)
def test_what_leaves_the_language_is_rejected_where_it_leaves(model, vocabulary, constraint, text, allowed):
    assert allowed.startswith(follow(model, vocabulary.compile(constraint), text))


def test_the_answer_may_end_only_where_the_grammar_may(model, vocabulary):
    matcher = vocabulary.compile(Constraint("regex", "[0-9]+!?"))
    assert not matcher.allows(model.eos)
    assert model.eos not in matcher.allowed()
    assert follow(model, matcher, "12") == "12"
    assert not matcher.is_finished
    assert matcher.allows(model.eos)
    assert follow(model, matcher, "!") == "!"
    assert matcher.is_finished


def test_special_tokens_are_no_text(model, vocabulary):
    """The engine shows nothing for them, so a grammar must not count them as the characters of their names."""
    matcher = vocabulary.compile(Constraint("regex", "(?s:.*)end"))
    special = model.tokenize("<|im_start|>", add_special=False, parse_special=True)
    assert len(special) == 1
    assert not matcher.allows(special[0])
    assert special[0] not in matcher.allowed()


@pytest.mark.parametrize(
    "text", ["start: /a+/ /a+/", 'start: A A\nA: "a"+', 'start: "a" start', "start: /.*/ /.*/ /.*/"]
)
def test_a_grammar_that_never_ends_does_not_stop_the_engine(vocabulary, text):
    matcher = vocabulary.compile(Constraint("lark", text))
    for _ in range(20):
        assert len(matcher.forced()) < 100
        matcher.accept(int(matcher.allowed()[0]))


def test_forced_tokens_are_told(model, vocabulary):
    matcher = vocabulary.compile(Constraint("regex", "Hello, world[.]"))
    assert b"".join(map(model.piece, matcher.forced())).startswith(b"Hello, ")


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    value=st.recursive(
        st.none() | st.booleans() | st.integers(-(10**6), 10**6) | st.text(max_size=8),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
        max_leaves=6,
    ),
    indent=st.sampled_from([None, 2]),
)
def test_every_json_object_that_python_writes_is_one(model, vocabulary, value, indent):
    text = json.dumps({"value": value}, indent=indent)
    matcher = vocabulary.compile(Constraint("json_object"))
    assert follow(model, matcher, text) == text
    assert matcher.is_finished


@pytest.mark.parametrize(
    ("constraint", "reason"),
    [
        (Constraint("json_schema", "[1]"), "must be a JSON object"),
        (Constraint("json_schema", "{"), "JSON schema cannot be used"),
        (schema({"type": "objec"}), "Invalid type: objec"),
        (schema({"type": "array", "uniqueItems": True}), "uniqueItems"),
        (schema({"x-guidance": {"lenient": True}, "uniqueItems": True}), "uniqueItems"),
        (schema({"$ref": "http://other.example/schema"}), "cannot be used"),
        (schema({"allOf": [{"type": "string"}, {"type": "integer"}]}), "Unsatisfiable"),
        (Constraint("regex", "("), "unclosed group"),
        (Constraint("regex", r"(a)\1"), "backreferences are not supported"),
        (Constraint("regex", "a" * 70_000), "has 70000 characters"),
        (Constraint("regex", "(" * 101 + ")" * 101), "nested 101 levels"),
        (Constraint("json_schema", '{"items":' * 101), "nested 101 levels"),
        (Constraint("lark", "start: missing"), "unknown name"),
        (Constraint("lark", ""), "grammar cannot be used"),
        (Constraint("gbnf", "root ::= ("), "Expected"),
        (Constraint("lark", '%llguidance {"no_forcing": false}\nstart: /a+/ /a+/'), "not supported"),
        (Constraint("tool_calls", 'start: %json {"not": {}}'), "tools' schema cannot be used: .*not"),
        (Constraint("gbnf", ""), "grammar cannot be used"),
    ],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(vocabulary, constraint, reason):
    with pytest.raises(RequestError, match=reason):
        vocabulary.compile(constraint)


def test_a_lenient_schema_ignores_what_cannot_be_enforced(model, vocabulary):
    matcher = vocabulary.compile(schema({"type": "array", "items": {"const": 1}, "uniqueItems": True}, lenient=True))
    assert follow(model, matcher, "[1, 1]") == "[1, 1]"


@pytest.mark.parametrize(
    "text", ["(a{1,1000}){1,1000}", "(.*a){20}b", "[01]*1[01]{20}", "(.*)(a|b)*.{1000}c", "(x+x+)+y"]
)
def test_an_expression_that_explodes_elsewhere_is_followed_or_refused(model, vocabulary, text):
    try:
        matcher = vocabulary.compile(Constraint("regex", text))
        for _ in range(30):
            matcher.accept(int(matcher.allowed()[-1]))
            if matcher.is_finished:
                break
    except RequestError:
        return
