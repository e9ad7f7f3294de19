"""Log-probabilities as OpenAI's two APIs report them."""

import codecs
from collections.abc import Sequence
from typing import Any

from serve.engine.types import TokenLogprob

# JSON has no minus infinity; OpenAI sends this for what cannot happen.
_LEAST = -9999.0


class ChatLogprobs:
    """``logprobs`` of a choice of /v1/chat/completions."""

    def fields(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The object for the next tokens."""
        return {"content": [chat_token(token) for token in tokens], "refusal": None}

    def joined(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several objects of one choice as one."""
        return {"content": [token for part in parts for token in part["content"]], "refusal": None}


def chat_token(token: TokenLogprob) -> dict[str, Any]:
    """One token and its alternatives."""
    top = [_alternative(text, logprob) for text, logprob in token.top]
    return {**_alternative(token.text, token.logprob or 0.0), "top_logprobs": top}


def _alternative(text: bytes, logprob: float) -> dict[str, Any]:
    return {"token": text.decode("utf-8", errors="replace"), "logprob": _finite(logprob), "bytes": list(text)}


class TextLogprobs:
    r"""``logprobs`` of a choice of /v1/completions; made for one choice, because its offsets go on.

    ``text_offset`` counts characters of the choice's ``text``, the echoed prompt included. The alternatives of a token
    hold the token itself too, so their number is ``logprobs`` or one more. A token that is a part of a character is
    written as ``bytes:\xe2\x80``, as OpenAI does.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        self._offset = 0

    def prompt_fields(self, tokens: Sequence[TokenLogprob], text: str) -> dict[str, Any]:
        """The object for an echoed prompt.

        Args:
            tokens: The prompt's tokens.
            text: The prompt as it is echoed. The tokens may say more: a BOS, or the space that a tokenizer puts first;
                such tokens are at offset 0.
        """
        total = len(b"".join(token.text for token in tokens).decode("utf-8", errors="replace"))
        self._offset = min(0, len(text) - total)
        return self.fields(tokens)

    def fields(self, tokens: Sequence[TokenLogprob]) -> dict[str, Any]:
        """The object for the next tokens."""
        offsets: list[int] = []
        for token in tokens:
            offsets.append(max(0, self._offset))
            self._offset += len(self._decoder.decode(token.text))
        return {
            "tokens": [_name(token.text) for token in tokens],
            "token_logprobs": [None if token.logprob is None else _finite(token.logprob) for token in tokens],
            "top_logprobs": [_by_name(token) for token in tokens],
            "text_offset": offsets,
        }

    def joined(self, parts: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Several objects of one choice as one."""
        names = ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        return {name: [item for part in parts for item in part[name]] for name in names}


def _by_name(token: TokenLogprob) -> dict[str, float] | None:
    if token.logprob is None:
        return None
    named: dict[str, float] = {}
    for text, logprob in (*token.top, (token.text, token.logprob)):
        # Two tokens may have the same name; the likelier one, which comes first, keeps it.
        named.setdefault(_name(text), _finite(logprob))
    return named


def _name(text: bytes) -> str:
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in text)


def _finite(logprob: float) -> float:
    return max(logprob, _LEAST)
