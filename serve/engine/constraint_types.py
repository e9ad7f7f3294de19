"""What an answer must look like, as data: cheap to import, sent over the engine's pipe as it is."""

from dataclasses import dataclass
from typing import Literal

ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf"]


@dataclass(frozen=True)
class Constraint:
    """The language that an answer must belong to.

    Attributes:
        kind: How ``text`` is to be read: a JSON schema, nothing (any JSON object), a regular expression for the whole
            answer (Rust's syntax: no look-around, no back references), a grammar in llguidance's Lark dialect, or one
            in llama.cpp's GBNF.
        text: The schema, expression or grammar.
        lenient: Ignore keywords of a schema that cannot be enforced, instead of refusing the schema.
    """

    kind: ConstraintKind
    text: str = ""
    lenient: bool = False
