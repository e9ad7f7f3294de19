"""A vocabulary as GGUF holds it: texts, types and, for SentencePiece-like models, scores, by row of the embedding."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.tokenizers.source import SourceTokenizer
from quant.tokenizers.token_types import TokenizerMetadata, TokenType, looks_special, padding_token

# What llama.cpp's converter gives to tokens that no merge makes, and to rows without a token.
ADDED_SCORE = -1000.0
PADDING_SCORE = -10000.0
_MOST_TOKENS = 1 << 22  # sixteen times Gemma's: a row for each is laid out before the embedding is looked at


@dataclass
class Vocabulary:
    """Tokens by id.

    Attributes:
        tokens: Texts.
        types: :class:`~quant.tokenizers.token_types.TokenType` numbers.
        scores: Empty where the model has none.
    """

    tokens: list[str]
    types: list[int]
    scores: list[float] = field(default_factory=list)

    @classmethod
    def of(
        cls, source: SourceTokenizer, normal: Mapping[int, str], *, scores: Mapping[int, float] | None = None
    ) -> "Vocabulary":
        """Lay out the model's own tokens and the added ones; rows without a token are filled up.

        Args:
            source: Gives the added tokens and the number of rows.
            normal: The model's tokens by id.
            scores: Theirs, for a SentencePiece-like model.

        Raises:
            InvalidModelError: There are impossibly many, an id is negative, or one of the model's own tokens has no row
                in the embedding.
        """
        highest = max([*normal, *source.added], default=-1)
        n_vocab = source.n_vocab or highest + 1
        if n_vocab > _MOST_TOKENS:
            raise InvalidModelError(f"The model claims {n_vocab} tokens.", "Its config.json or tokenizer is damaged.")
        # Added tokens past the embedding (Gemma 3's image token) cannot be used by the model: left out.
        if not 0 <= max(normal, default=-1) < n_vocab or min([*normal, *source.added]) < 0:
            raise InvalidModelError(
                f"The tokenizer has {max(normal, default=-1) + 1} tokens, but the model has room for {n_vocab}.",
                "tokenizer.json and config.json are not of the same model.",
            )
        made = cls(
            [padding_token(index) for index in range(n_vocab)],
            [int(TokenType.UNUSED)] * n_vocab,
            [PADDING_SCORE] * n_vocab if scores is not None else [],
        )
        for index, text in normal.items():
            made.tokens[index], made.types[index] = text, int(TokenType.NORMAL)
            if scores is not None:
                made.scores[index] = scores.get(index, 0.0)
        for index, token in source.added.items():
            if index < n_vocab:
                control = token.special or looks_special(token.content)
                made.tokens[index] = token.content
                made.types[index] = int(TokenType.CONTROL if control else TokenType.USER_DEFINED)
                if scores is not None:
                    made.scores[index] = ADDED_SCORE
        return made

    def metadata(self, model: str, pre: str) -> TokenizerMetadata:
        """The keys of this vocabulary.

        Raises:
            InvalidModelError: Two tokens have one text: llama.cpp would end its process over it.
        """
        seen: dict[str, int] = {}
        for index, text in enumerate(self.tokens):
            if not text or seen.setdefault(text, index) != index:
                raise InvalidModelError(
                    f"Tokens {seen.get(text, index)} and {index} are both {one_line(text, 40)!r}."
                    if text
                    else f"Token {index} is empty.",
                    "llama.cpp cannot hold such a vocabulary.",
                )
        content: TokenizerMetadata = {
            "tokenizer.ggml.model": model,
            "tokenizer.ggml.pre": pre,
            "tokenizer.ggml.tokens": self.tokens,
            "tokenizer.ggml.token_type": self.types,
        }
        if self.scores:
            content["tokenizer.ggml.scores"] = self.scores
        return content

    @classmethod
    def read(cls, metadata: Mapping[str, Any]) -> "Vocabulary":
        """The vocabulary of a GGUF file.

        Raises:
            InvalidModelError: It has none, or its lists differ in length.
        """
        tokens = _list(metadata, "tokenizer.ggml.tokens")
        types = _list(metadata, "tokenizer.ggml.token_type") or [int(TokenType.NORMAL)] * len(tokens)
        scores = _list(metadata, "tokenizer.ggml.scores")
        if not tokens or len(types) < len(tokens) or (scores and len(scores) < len(tokens)):
            raise InvalidModelError("The GGUF file has no complete vocabulary.", "Pull the model again.")
        return cls([str(token) for token in tokens], [int(kind) for kind in types], [float(score) for score in scores])

    def unused_row(self, index: int) -> bool:
        """Whether a row only fills up the embedding."""
        return self.types[index] == TokenType.UNUSED and self.tokens[index] == padding_token(index)

    def ids(self) -> dict[str, int]:
        """Ids by text, without the rows that only fill up."""
        return {text: index for index, text in enumerate(self.tokens) if not self.unused_row(index)}

    def added(self) -> list[tuple[int, str, bool]]:
        """Id, text and whether it is special, of every token that is matched before the text is split."""
        matched = (TokenType.CONTROL, TokenType.USER_DEFINED, TokenType.UNKNOWN)
        return [
            (index, text, kind != TokenType.USER_DEFINED)
            for index, (text, kind) in enumerate(zip(self.tokens, self.types, strict=False))
            if kind in matched
        ]


def added_token(
    index: int, content: str, *, special: bool, normalized: bool = False, rstrip: bool = False
) -> dict[str, Any]:
    """One entry of tokenizer.json's ``added_tokens``."""
    return {
        "id": index,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": rstrip,
        "normalized": normalized,
        "special": special,
    }


def merge_pairs(merges: Sequence[Any]) -> list[tuple[str, str]]:
    """Merges as pairs; older files write them as one string.

    Raises:
        InvalidModelError: They are of another form.
    """
    pairs: list[tuple[str, str]] = []
    for merge in merges:
        # A part may begin with a space, never hold one later: llama.cpp cuts at the first one past the first character.
        parts = _cut(merge) if isinstance(merge, str) else merge
        if len(parts) != 2 or not all(isinstance(part, str) for part in parts):
            raise InvalidModelError(f"The tokenizer's merge {one_line(str(merge), 40)!r} is not a pair.")
        pairs.append((parts[0], parts[1]))
    return pairs


def _cut(merge: str) -> list[str]:
    at = merge.find(" ", 1)
    return [merge[:at], merge[at + 1 :]] if at > 0 else [merge]


def _list(metadata: Mapping[str, Any], key: str) -> list[Any]:
    value = metadata.get(key, [])
    return list(value) if isinstance(value, list | tuple) else []
