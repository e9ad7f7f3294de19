"""WordPiece (``bert`` in GGUF): BERT, MiniLM and other embedders.

GGUF writes the start of a word as a leading ``▁`` ("phantom space") where WordPiece writes its continuation as ``##``.
"""

from collections.abc import Mapping
from typing import Any

from localllm.errors import InvalidModelError
from quant.tokenizers.source import SourceTokenizer
from quant.tokenizers.special import ADD_BOS, ADD_EOS, post_processor, special_ids
from quant.tokenizers.token_types import SPECIAL_KEYS, TokenizerMetadata, TokenType
from quant.tokenizers.vocabulary import Vocabulary, added_token

_WORD, _INSIDE = "▁", "##"
_LOWERCASE = "tokenizer.ggml.normalizer.lowercase"
_STRIP_ACCENTS = "tokenizer.ggml.normalizer.strip_accents"


def to_gguf(source: SourceTokenizer) -> TokenizerMetadata:
    """The GGUF keys of a WordPiece tokenizer, from tokenizer.json or from vocab.txt.

    Raises:
        InvalidModelError: It splits or normalizes text in a way that llama.cpp does not.
    """
    vocabulary = Vocabulary.of(source, _tokens(source))
    special = set(source.special.values())
    for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True)):
        if kind == TokenType.NORMAL and text in special:
            vocabulary.types[index] = int(TokenType.CONTROL)  # vocab.txt does not tell them apart
        elif kind == TokenType.NORMAL:
            inside = text.startswith(_INSIDE) and text != _INSIDE
            vocabulary.tokens[index] = text.removeprefix(_INSIDE) if inside else _WORD + text
    ids = {text.removeprefix(_WORD): index for index, text in enumerate(vocabulary.tokens)}
    content = vocabulary.metadata("bert", "default") | special_ids(source, ids)  # llama.cpp reads no pre-tokenizer here
    return (
        content
        | _normalizer(source)
        | {
            ADD_BOS: True,
            ADD_EOS: True,
            "tokenizer.ggml.token_type_count": int(source.model_config.get("type_vocab_size") or 1),
        }
    )


def from_gguf(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The tokenizer.json of a GGUF file's WordPiece tokenizer."""
    tokens = [_piece(text, kind) for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=False)]
    vocab = {text: index for index, text in enumerate(tokens) if not vocabulary.unused_row(index)}
    first = metadata.get(SPECIAL_KEYS["cls"], metadata.get(SPECIAL_KEYS["bos"], vocab.get("[CLS]")))
    last = metadata.get(SPECIAL_KEYS["sep"], vocab.get("[SEP]"))
    unknown = metadata.get(SPECIAL_KEYS["unk"], vocab.get("[UNK]"))
    if not isinstance(unknown, int) or not 0 <= unknown < len(tokens):
        raise InvalidModelError("The GGUF file's WordPiece vocabulary has no unknown token.", "Pull the model again.")
    around = post_processor(tokens, vocab, (first, last))
    if around and first is not None and last is not None:  # BERT puts the first token before the pair alone
        around["pair"] = [row for row in around["pair"] if row != {"SpecialToken": {"id": tokens[first], "type_id": 1}}]
    return {
        "added_tokens": [
            added_token(index, tokens[index], special=special) for index, _, special in vocabulary.added()
        ],
        "normalizer": {
            "type": "BertNormalizer",
            "clean_text": True,
            "handle_chinese_chars": True,
            "strip_accents": metadata.get(_STRIP_ACCENTS),
            "lowercase": bool(metadata.get(_LOWERCASE, True)),
        },
        "pre_tokenizer": {"type": "BertPreTokenizer"},
        "post_processor": around,
        "decoder": {"type": "WordPiece", "prefix": _INSIDE, "cleanup": True},
        "model": {
            "type": "WordPiece",
            "unk_token": tokens[unknown],
            "continuing_subword_prefix": _INSIDE,
            "max_input_chars_per_word": 100,
            "vocab": vocab,
        },
    }


def _piece(text: str, kind: int) -> str:
    if kind not in (TokenType.NORMAL, TokenType.USER_DEFINED):
        return text
    if text.startswith(_WORD) and text != _WORD:
        return text.removeprefix(_WORD)
    if kind == TokenType.USER_DEFINED:
        return text
    # Files made by older converters leave tokens like [unused0] as they are.
    return text if len(text) > 2 and text.startswith("[") and text.endswith("]") else _INSIDE + text


def _tokens(source: SourceTokenizer) -> dict[int, str]:
    if source.definition:
        return {int(index): text for text, index in source.definition["model"]["vocab"].items()}
    path = source.directory / "vocab.txt"
    try:
        # Not splitlines: line separators of other kinds are tokens of their own.
        lines = path.read_bytes().decode().removesuffix("\n").split("\n")
        return {index: line.removesuffix("\r") for index, line in enumerate(lines)}
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidModelError(f"vocab.txt cannot be read: {error}.") from error


def _normalizer(source: SourceTokenizer) -> TokenizerMetadata:
    """How text is normalized; what llama.cpp always does must be so here too."""
    lowercase, accents = bool(source.config.get("do_lower_case", True)), source.config.get("strip_accents")
    if source.definition:
        part = source.definition.get("normalizer") or {}
        expected = ("BertNormalizer", True, True)
        if (part.get("type"), part.get("clean_text"), part.get("handle_chinese_chars")) != expected:
            raise InvalidModelError("This WordPiece tokenizer does not normalize text as BERT does.")
        if (source.definition.get("pre_tokenizer") or {}).get("type") != "BertPreTokenizer":
            raise InvalidModelError("This WordPiece tokenizer does not split text as BERT does.")
        lowercase, accents = bool(part.get("lowercase")), part.get("strip_accents")
    content: TokenizerMetadata = {_LOWERCASE: lowercase}
    return content if accents is None else content | {_STRIP_ACCENTS: bool(accents)}
