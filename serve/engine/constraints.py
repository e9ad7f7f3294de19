"""Keeps answers inside a JSON schema, a regular expression or a grammar, with llguidance.

Compiling takes well under a millisecond for an everyday schema; testing one token takes a few microseconds, and the
mask over the whole vocabulary some tens of them. Whatever is given is compiled in the engine's process, never in the
server's, and under caps: size, nesting, and llguidance's own limits on states and work per step.

Imported only in an engine's own process: llguidance costs about 30 ms.
"""

import json
from typing import Any, cast

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer
from llguidance.gbnf_to_lark import any_to_lark

from localllm.errors import RequestError
from serve.engine.constraint_types import JSON_SPACE, Constraint

MAX_TEXT = 64 << 10  # characters; the worst schema of this size compiles in about a second
MAX_NESTING = 100
_MAX_REASON = 300  # characters of llguidance's own words
_NAMES = {
    "json_schema": "JSON schema",
    "json_object": "JSON object",
    "regex": "regular expression",
    "lark": "grammar",
    "gbnf": "grammar",
    "tool_calls": "tools' schema",
}
# llguidance looks ahead for all that must come next. In a stranger's grammar that may have no end (``/a+/ /a+/``: the
# first takes every a), and it would look for ever.
_OPTIONS = "%llguidance"
_NO_FORCING = f'{_OPTIONS} {{"no_forcing": true}}\n'


class GrammarVocabulary:
    """A model's tokens as llguidance wants them. Making one takes up to a second, so it is made once.

    A token counts as special here exactly where the engine shows no text for it, so what a grammar matches is what the
    client reads. Tokens that end a generation are special always.

    Args:
        tokenizer: llguidance's form of the tokens.
        n_vocab: Width of the model's logits.
    """

    def __init__(self, tokenizer: LLTokenizer, n_vocab: int) -> None:
        self.tokenizer = tokenizer
        self.n_vocab = n_vocab
        self._limits = LLParserLimits(verbose_errors=False)

    def compile(self, constraint: Constraint) -> "Matcher":
        """A matcher at the beginning of an answer. Safe in any thread.

        Raises:
            RequestError: The constraint is too large, malformed, or asks for what cannot be enforced.
        """
        check_caps(constraint)
        try:
            grammar = _grammar(constraint)
        except Exception as error:
            # The converters are strangers' parsers: whatever they raise, the text is at fault.
            raise _refusal(constraint, str(error)) from error
        matcher = LLMatcher(self.tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refusal(constraint, matcher.get_error())
        return Matcher(matcher, self.n_vocab)


class Matcher:
    """Where one answer stands in its grammar. Used by one thread at a time.

    Args:
        matcher: llguidance's, in a good state.
        n_vocab: Size of the vocabulary.
    """

    def __init__(self, matcher: LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._bits = np.zeros((n_vocab + 31) // 32, np.uint32)
        self._n_vocab = n_vocab

    @property
    def is_finished(self) -> bool:
        """Nothing may follow any more: the answer is complete."""
        return self._matcher.is_stopped()

    def allows(self, token: int) -> bool:
        """Whether ``token`` may come next; one that ends a generation only where the answer may end."""
        return self._matcher.validate_tokens([token]) == 1

    def accept(self, token: int) -> None:
        """Take ``token``, which must be allowed.

        Raises:
            RequestError: The grammar has become too complex at this place.
        """
        if not self._matcher.consume_token(token):
            raise self._too_complex()

    def allowed(self) -> np.ndarray[Any, np.dtype[np.intp]]:
        """The ids of all tokens that may come next, ascending; never empty before the end.

        Raises:
            RequestError: The grammar has become too complex at this place.
        """
        self._matcher.unsafe_compute_mask_ptr(self._bits.ctypes.data, self._bits.nbytes)
        ids = np.flatnonzero(np.unpackbits(self._bits.view(np.uint8), count=self._n_vocab, bitorder="little"))
        if self._matcher.is_error() or not ids.size:
            raise self._too_complex()
        return ids

    def forced(self) -> list[int]:
        """Tokens that must come next, as the tokenizer would write them; often none."""
        return self._matcher.compute_ff_tokens()

    def _too_complex(self) -> RequestError:
        return RequestError(
            f"The answer's grammar cannot be followed any further: {_one_reason(self._matcher.get_error())}.",
            "Simplify the schema or grammar.",
        )


def check_caps(constraint: Constraint) -> None:
    """Refuse what is too large or too deeply nested to be handed to a parser.

    Raises:
        RequestError: It is.
    """
    name = _NAMES[constraint.kind]
    if len(constraint.text) > MAX_TEXT:
        raise RequestError(f"The {name} has {len(constraint.text)} characters; at most {MAX_TEXT} are read.")
    depth = deepest = 0
    for character in constraint.text:
        if character in "([{":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]}":
            depth = max(0, depth - 1)
    # Brackets inside strings count too; an honest text has few of them.
    if deepest > MAX_NESTING:
        raise RequestError(f"The {name} is nested {deepest} levels deep; at most {MAX_NESTING} are read.")


def _grammar(constraint: Constraint) -> str:
    match constraint.kind:
        case "json_object":
            return _schema_grammar('{"type":"object"}', lenient=False)
        case "json_schema":
            return _schema_grammar(constraint.text, lenient=constraint.lenient)
        case "regex":
            return LLMatcher.grammar_from_regex(constraint.text)
        case "lark":
            return _strangers_grammar(constraint.text)
        case "gbnf":
            return _strangers_grammar(any_to_lark(constraint.text).replace(f"{_OPTIONS} {{}}", "", 1))
        case "tool_calls":
            return LLMatcher.grammar_from_lark(constraint.text)


def _strangers_grammar(text: str) -> str:
    if _OPTIONS in text:
        raise ValueError(f"{_OPTIONS} is not supported")
    return LLMatcher.grammar_from_lark(_NO_FORCING + text)


def _schema_grammar(schema: str, *, lenient: bool) -> str:
    # oneOf becomes anyOf: what is written satisfies one of the schemas, or, rarely, more than one.
    options = {
        "whitespace_pattern": JSON_SPACE,
        "coerce_one_of": True,
        "lenient": lenient,
        "json_allow_general_unicode_escapes": True,
    }
    parsed = json.loads(schema)
    if not isinstance(parsed, dict):
        raise TypeError("it must be a JSON object")
    # Its own options for llguidance are not the client's to set.
    parsed.pop("x-guidance", None)
    return LLMatcher.grammar_from_json_schema(parsed, overrides=cast("Any", options))


def _refusal(constraint: Constraint, reason: str) -> RequestError:
    return RequestError(f"The {_NAMES[constraint.kind]} cannot be used: {_one_reason(reason)}.")


def _one_reason(reason: str) -> str:
    return " ".join(reason.split())[:_MAX_REASON].rstrip(".") or "it is not valid"
