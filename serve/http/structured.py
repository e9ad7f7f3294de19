"""What an answer is to look like: ``response_format`` of the OpenAI API, and our own ``regex`` and ``grammar``."""

import json
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from serve.engine.constraint_types import Constraint
from serve.http.wire_types import Wire, refuse

MAX_CONSTRAINT = 64 << 10  # characters, the engine's own limit


class JsonSchemaFormat(Wire):
    """``json_schema`` of a response format.

    Attributes:
        name: For the client's own use.
        description: As above: the model is not told of it.
        schema_: The JSON schema, ``schema`` on the wire.
        strict: Refuse a schema that has keywords that cannot be enforced; without it they are ignored.
    """

    name: str = Field(min_length=1, max_length=64)
    description: str = Field("", max_length=4096)
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = False


class ResponseFormat(Wire):
    """``response_format``: text, any JSON object, or JSON of a schema."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = None

    @model_validator(mode="after")
    def _schema_where_it_belongs(self) -> Self:
        if (self.type == "json_schema") != (self.json_schema is not None):
            raise refuse("`json_schema` belongs to the type `json_schema`.")
        return self

    def constraint(self) -> Constraint | None:
        """As the engine takes it."""
        if self.json_schema is not None:
            text = json.dumps(self.json_schema.schema_, ensure_ascii=False)
            return Constraint("json_schema", text, lenient=not self.json_schema.strict)
        return Constraint("json_object") if self.type == "json_object" else None


ConstraintText = Annotated[str, Field(min_length=1, max_length=MAX_CONSTRAINT)]


def grammar_constraint(text: str) -> Constraint:
    """A grammar in llama.cpp's GBNF, told by its ``::=``, or else in llguidance's Lark dialect."""
    return Constraint("gbnf" if "::=" in text else "lark", text)


def one_constraint(*constraints: Constraint | None) -> Constraint | None:
    """The one that is given, if any.

    Raises:
        PydanticCustomError: More than one is.
    """
    given = [constraint for constraint in constraints if constraint is not None]
    if len(given) > 1:
        raise refuse("Only one of `response_format`, `regex`, `grammar` and a forced `tool_choice` can be followed.")
    return given[0] if given else None
