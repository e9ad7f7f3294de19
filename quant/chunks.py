"""Text cut into chunks of equal length, as llama.cpp's tools cut it, for importance matrices and for perplexity."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from localllm.errors import QuantizeError

_MIN_CHUNKS = 2  # as llama.cpp's tools ask


@dataclass(frozen=True)
class Text:
    """A piece of text.

    Attributes:
        text: The text.
        special: It was rendered by a chat template: ``<|im_end|>`` and its like are tokens, not text.
    """

    text: str
    special: bool = False


class Tokenize(Protocol):
    """A model's tokenizer: ``first`` puts BOS before it where the model wants one."""

    def __call__(self, text: str, *, first: bool, special: bool) -> list[int]:
        """Token ids of ``text``."""


def join_tokens(texts: Sequence[Text], tokenize: Tokenize) -> list[int]:
    """The tokens of all texts, one after the other."""
    tokens: list[int] = []
    for index, text in enumerate(texts):
        tokens += tokenize(text.text, first=index == 0, special=text.special)
    return tokens


def cut_chunks(
    tokens: Sequence[int], n_ctx: int, max_chunks: int | None = None, first_token: int | None = None
) -> list[list[int]]:
    """Whole chunks of ``n_ctx`` tokens; what is left over at the end is dropped.

    Args:
        tokens: The text.
        n_ctx: Tokens in a chunk.
        max_chunks: At most so many.
        first_token: Put in the place of each chunk's first token (BOS, for models that want one).

    Raises:
        QuantizeError: The text is too short.
    """
    if len(tokens) < _MIN_CHUNKS * n_ctx:
        raise QuantizeError(
            f"The text is too short: it has {len(tokens)} tokens, and {_MIN_CHUNKS * n_ctx} are needed.",
            "Give more text, or a smaller chunk size.",
        )
    n_chunks = len(tokens) // n_ctx
    if max_chunks is not None:
        n_chunks = min(n_chunks, max_chunks)
    chunks = [list(tokens[index * n_ctx : (index + 1) * n_ctx]) for index in range(n_chunks)]
    if first_token is not None:
        for chunk in chunks:
            chunk[0] = first_token
    return chunks
