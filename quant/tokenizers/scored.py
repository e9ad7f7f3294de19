"""SentencePiece-like BPE (``llama`` in GGUF): Llama 2, Mistral, Mixtral, Phi-3, Gemma.

GGUF holds a score for each token, and llama.cpp joins the neighbours whose joined text has the highest score.
tokenizer.json holds merges in order. One is made from the other: the order in which merges first make a token gives its
score, and a token's score orders all the ways to make it.
"""

import re
from collections.abc import Mapping
from typing import Any

from localllm.errors import InvalidModelError
from quant.tokenizers.sentencepiece_model import PieceModel
from quant.tokenizers.source import SourceTokenizer
from quant.tokenizers.special import ADD_BOS, ADD_EOS, added_around, post_processor, special_ids
from quant.tokenizers.token_types import SPECIAL_KEYS, TokenizerMetadata, TokenType
from quant.tokenizers.vocabulary import Vocabulary, added_token, merge_pairs

_SPACE = "▁"
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE_PREFIX = "tokenizer.ggml.add_space_prefix"
_PHI3_KEPT = frozenset({"<unk>", "<s>", "<|endoftext|>"})


def to_gguf(source: SourceTokenizer) -> TokenizerMetadata:
    """The GGUF keys of a SentencePiece-like tokenizer, from tokenizer.model where it is there, else tokenizer.json.

    Raises:
        InvalidModelError: The two files disagree, or the model is of another kind.
    """
    path = source.directory / "tokenizer.model"
    pieces = PieceModel.read(path) if path.is_file() else None
    vocabulary = _from_pieces(source, pieces) if pieces else _from_merges(source)
    unknown = source.special.get("unk") or (source.definition.get("model") or {}).get("unk_token")
    for index, text in enumerate(vocabulary.tokens):
        kind = vocabulary.types[index]
        if kind == TokenType.NORMAL and _BYTE.fullmatch(text):
            vocabulary.types[index] = int(TokenType.BYTE)
        elif kind == TokenType.CONTROL and text == unknown:
            vocabulary.types[index] = int(TokenType.UNKNOWN)
        elif kind == TokenType.USER_DEFINED:
            # llama.cpp looks for these in the text as it is written.
            vocabulary.tokens[index] = text.replace(_SPACE, " ")
    content = vocabulary.metadata("llama", "default")
    content[_SPACE_PREFIX] = _space_prefix(source, pieces)
    ids = {text.replace(" ", _SPACE): index for text, index in vocabulary.ids().items()}
    return content | special_ids(source, vocabulary.ids() | ids) | added_around(source, default_bos=True)


def from_gguf(metadata: Mapping[str, Any], vocabulary: Vocabulary, architecture: str) -> dict[str, Any]:
    """The tokenizer.json of a GGUF file's SentencePiece-like tokenizer.

    Args:
        metadata: Of the file.
        vocabulary: Its tokens.
        architecture: Phi-3's special tokens swallow the white space after them, which GGUF does not say.

    Raises:
        InvalidModelError: The vocabulary has no scores.
    """
    if not vocabulary.scores:
        raise InvalidModelError("The GGUF file has no scores for its vocabulary.", "Pull the model again.")
    prefix = bool(metadata.get(_SPACE_PREFIX, True))
    tokens = _shown(vocabulary, prefix)
    ids = {text: index for index, text in enumerate(tokens) if not vocabulary.unused_row(index)}
    strips = {text for _, text, _ in vocabulary.added() if architecture == "phi3"} - _PHI3_KEPT
    unknown = metadata.get(SPECIAL_KEYS["unk"], 0)
    add = (
        metadata.get(SPECIAL_KEYS["bos"], 1) if metadata.get(ADD_BOS, True) else None,
        metadata.get(SPECIAL_KEYS["eos"], 2) if metadata.get(ADD_EOS) else None,
    )
    replace = {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE}
    decoders: list[dict[str, Any]] = [
        {"type": "Replace", "pattern": {"String": _SPACE}, "content": " "},
        {"type": "ByteFallback"},
        {"type": "Fuse"},
    ]
    prepend = {"type": "Prepend", "prepend": _SPACE}
    return {
        "added_tokens": [
            # In tokens that stand for several spaces those are already replaced: they are looked for after that.
            added_token(
                index,
                tokens[index],
                special=special,
                normalized=_SPACE in tokens[index] and not special,
                rstrip=text in strips,
            )
            for index, text, special in vocabulary.added()
        ],
        "normalizer": {"type": "Sequence", "normalizers": [prepend, replace]} if prefix else replace,
        "pre_tokenizer": None,
        "post_processor": post_processor(tokens, ids, add),
        "decoder": {
            "type": "Sequence",
            "decoders": [*decoders, {"type": "Strip", "content": " ", "start": 1, "stop": 0}] if prefix else decoders,
        },
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": tokens[unknown] if isinstance(unknown, int) and 0 <= unknown < len(tokens) else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": any(kind == TokenType.BYTE for kind in vocabulary.types),
            "ignore_merges": False,
            "vocab": ids,
            "merges": merges_from_scores(tokens, vocabulary),
        },
    }


def merges_from_scores(tokens: list[str], vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Every pair of tokens whose joined text is a token too, in the order in which llama.cpp prefers them.

    Linear in the characters of the vocabulary: 1.5 s for Gemma's 262,144 tokens. Ways to make one token follow each
    other in the order of transformers' own converter: the longer left part first.

    Args:
        tokens: As tokenizer.json writes them.
        vocabulary: Gives types and scores.
    """
    mergeable = (TokenType.NORMAL, TokenType.USER_DEFINED, TokenType.UNUSED)
    rank: dict[str, float] = {}
    for index, (text, kind) in enumerate(zip(tokens, vocabulary.types, strict=False)):
        if kind in mergeable and not vocabulary.unused_row(index):
            # What the person defined is found before anything is merged, whatever score a converter gave it.
            rank[text] = float("inf") if kind == TokenType.USER_DEFINED else vocabulary.scores[index]
    found = [
        (-score, -at, text)
        for text, score in rank.items()
        for at in range(1, len(text))
        if text[:at] in rank and text[at:] in rank
    ]
    found.sort(key=lambda row: row[:2])
    return [(text[:-negative], text[-negative:]) for _, negative, text in found]


def _shown(vocabulary: Vocabulary, prefix: bool) -> list[str]:
    """Texts as tokenizer.json writes them: with ``▁`` for the spaces of tokens that a person defined.

    Where a space is put before the text they keep their spaces: such a token is looked for before that happens.
    """
    if prefix:
        return vocabulary.tokens
    return [
        text.replace(" ", _SPACE) if kind == TokenType.USER_DEFINED else text
        for text, kind in zip(vocabulary.tokens, vocabulary.types, strict=False)
    ]


def _from_pieces(source: SourceTokenizer, pieces: PieceModel) -> Vocabulary:
    written = (source.definition.get("model") or {}).get("vocab") or {}
    wrong = [text for index, text in enumerate(pieces.pieces) if written and written.get(text, index) != index]
    if wrong:
        raise InvalidModelError(
            f"tokenizer.model and tokenizer.json disagree about {len(wrong)} tokens.", "They are not of the same model."
        )
    scores = dict(enumerate(pieces.scores))
    vocabulary = Vocabulary.of(source, dict(enumerate(pieces.pieces)), scores=scores)
    for index, kind in enumerate(pieces.types):
        if index not in source.added:
            vocabulary.types[index] = kind
    return vocabulary


def _from_merges(source: SourceTokenizer) -> Vocabulary:
    model = source.definition["model"]
    scores: dict[str, float] = {}
    for left, right in merge_pairs(model["merges"]):
        scores.setdefault(left + right, -float(len(scores)))
    vocab = {int(index): text for text, index in model["vocab"].items()}
    # What no merge makes (bytes, special tokens) comes after everything that one does.
    unmade = -float(len(scores)) - 1
    own = {index: scores.get(text, unmade) for index, text in vocab.items()}
    return Vocabulary.of(source, vocab, scores=own)


def _space_prefix(source: SourceTokenizer, pieces: PieceModel | None) -> bool:
    """Whether a space is put before the text, as the file that transformers uses says it."""
    parts = [source.definition.get("normalizer"), source.definition.get("pre_tokenizer")]
    if not source.definition:
        return pieces.space_prefix if pieces else True
    while parts:
        match parts.pop():
            case {"type": "Prepend"}:
                return True
            case {"type": "Metaspace", **rest}:
                return rest.get("prepend_scheme", "always") != "never"
            case {"type": "Sequence", "normalizers": list(inner)} | {"type": "Sequence", "pretokenizers": list(inner)}:
                parts += inner
    return False
