"""``response_format``, ``regex`` and ``grammar`` as requests, and on their way to the engine."""

import json

import pydantic
import pytest

from serve.engine.constraint_types import Constraint
from serve.http.errors import HTTPError
from serve.http.openai_types import ChatRequest, CompletionRequest
from serve.http.wire_types import validate
from tests.fakes.engine import Script

CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
TEXT = {"model": "tiny", "prompt": "Hi"}
SCHEMA = {"type": "object", "properties": {"é": {"type": "null"}}}


def schema_format(**more):
    return {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA, **more}}


@pytest.mark.parametrize(
    ("field", "constraint"),
    [
        ({}, None),
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        (
            {"response_format": schema_format(description="A thing.")},
            Constraint("json_schema", json.dumps(SCHEMA, ensure_ascii=False), lenient=True),
        ),
        (
            {"response_format": schema_format(strict=True)},
            Constraint("json_schema", json.dumps(SCHEMA, ensure_ascii=False)),
        ),
        ({"regex": "[0-9]+"}, Constraint("regex", "[0-9]+")),
        ({"grammar": 'root ::= "a"'}, Constraint("gbnf", 'root ::= "a"')),
        ({"grammar": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        ({"response_format": {"type": "text"}, "regex": "a"}, Constraint("regex", "a")),
    ],
)
def test_constraints_reach_the_engine(field, constraint):
    (request,) = validate(ChatRequest, {**CHAT, **field}).generate_requests()
    assert request.constraint == constraint
    if "response_format" not in field:
        (request,) = validate(CompletionRequest, {**TEXT, **field}).generate_requests()
        assert request.constraint == constraint


@pytest.mark.parametrize(
    ("kind", "body", "param"),
    [
        (ChatRequest, {"response_format": {"type": "xml"}}, "response_format.type"),
        (ChatRequest, {"response_format": {"type": "json_schema"}}, "response_format"),
        (ChatRequest, {"response_format": {**schema_format(), "type": "json_object"}}, "response_format"),
        (ChatRequest, {"response_format": schema_format(colour=1)}, "response_format.json_schema.colour"),
        (ChatRequest, {"response_format": {"type": "json_object"}, "regex": "a"}, ""),
        (ChatRequest, {"regex": "a", "grammar": 'start: "a"'}, ""),
        (CompletionRequest, {"regex": "a", "grammar": 'start: "a"'}, ""),
        (CompletionRequest, {"response_format": {"type": "json_object"}}, "response_format"),
        (ChatRequest, {"regex": ""}, "regex"),
        (ChatRequest, {"grammar": "x" * (1 << 17)}, "grammar"),
        (
            ChatRequest,
            {"regex": "a", "tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"},
            "",
        ),
    ],
)
def test_what_cannot_be_meant_is_refused(kind, body, param):
    with pytest.raises(HTTPError) as refused:
        validate(kind, {**(CHAT if kind is ChatRequest else TEXT), **body})
    assert refused.value.status == 400
    assert refused.value.param == param


class Point(pydantic.BaseModel):
    x: int
    y: int


async def test_the_official_client_parses_into_a_model(serve):
    served = await serve(Script(['{"x": 1,', ' "y": -2}']))
    async with served.openai() as client:
        answer = await client.chat.completions.parse(**CHAT, response_format=Point)
    assert answer.choices[0].message.parsed == Point(x=1, y=-2)
    (request,) = served.engine.requests
    assert request.constraint.kind == "json_schema"
    assert not request.constraint.lenient
    assert json.loads(request.constraint.text)["required"] == ["x", "y"]
