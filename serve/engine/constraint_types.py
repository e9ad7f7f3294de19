"""What an answer must look like, as data: cheap to import, sent over the engine's pipe as it is."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    import numpy as np

# White space between JSON tokens: none, a blank, or a new line and its indent. With all that JSON allows, small models
# write line breaks until they run out of tokens.
JSON_SPACE = r"[ ]|\n[ \t]{0,20}"

ConstraintKind = Literal["json_schema", "json_object", "regex", "lark", "gbnf", "tool_calls"]


@dataclass(frozen=True)
class Constraint:
    """The language that an answer must belong to.

    Attributes:
        kind: How ``text`` is to be read: a JSON schema, nothing (any JSON object), a regular expression for the whole
            answer (Rust's syntax: no look-around, no back references), a grammar in llguidance's Lark dialect, one in
            llama.cpp's GBNF, or one of our own (Lark again) around the schemas of tools.
        text: The schema, expression or grammar.
        lenient: Ignore keywords of a schema that cannot be enforced, instead of refusing the schema.
    """

    kind: ConstraintKind
    text: str = ""
    lenient: bool = False


class TokenMatcher(Protocol):
    """Where one answer stands in its grammar; :class:`serve.engine.constraints.Matcher` is llama.cpp's."""

    @property
    def is_finished(self) -> bool:
        """Nothing may follow any more."""

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next."""

    def accept(self, token: int) -> None:
        """Take ``token``, which must be allowed.

        Raises:
            RequestError: The grammar has become too complex.
        """

    def forced(self) -> list[int]:
        """Tokens that must come next, as the tokenizer would write them; often none."""

    def allowed(self) -> "np.ndarray[Any, np.dtype[np.intp]]":
        """The ids of all tokens that may come next; never empty before the end.

        Raises:
            RequestError: The grammar has become too complex.
        """
