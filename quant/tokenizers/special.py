"""Special tokens: which they are, and which are added around a prompt."""

from collections.abc import Iterable, Mapping
from typing import Any

from quant.tokenizers.source import SourceTokenizer
from quant.tokenizers.token_types import END_OF_GENERATION, EOM_KEY, EOT_KEY, SPECIAL_KEYS, TokenizerMetadata

ADD_BOS, ADD_EOS = "tokenizer.ggml.add_bos_token", "tokenizer.ggml.add_eos_token"


def special_ids(source: SourceTokenizer, ids: Mapping[str, int]) -> TokenizerMetadata:
    """The ids of special tokens as GGUF keys.

    A model may end its answers with several tokens (generation_config.json); GGUF has room for three: end of sequence,
    of turn and of message. What llama.cpp stops at by its text needs none.

    Args:
        source: Names them.
        ids: Of every token, by text.
    """
    content: TokenizerMetadata = {}
    for role, key in SPECIAL_KEYS.items():
        text = source.special.get(role) or _stand_in(source, role)
        index = ids.get(text) if text else None
        if index is None:
            index = _configured(source, role)
        if index is not None and index >= 0:
            content[key] = index
    ends = _as_ids(source.generation.get("eos_token_id"))
    known = set(content.values()) | {ids[text] for text in END_OF_GENERATION if text in ids}
    extra = [index for index in ends if index not in known]
    content.update(dict(zip((EOT_KEY, EOM_KEY), extra, strict=False)))
    return content


def added_around(source: SourceTokenizer, *, default_bos: bool) -> TokenizerMetadata:
    """Whether a prompt gets a token before it and after it.

    Args:
        source: tokenizer_config.json says it, else the ``post_processor`` of tokenizer.json.
        default_bos: When nothing says it (there is only a SentencePiece model).
    """
    first, last = (False, False) if source.definition else (default_bos, False)
    for part in _processors(source.definition.get("post_processor")):
        if part.get("type") in ("BertProcessing", "RobertaProcessing"):
            first = last = True
        elif part.get("type") == "TemplateProcessing" and part.get("single"):
            first = "SpecialToken" in part["single"][0]
            last = "SpecialToken" in part["single"][-1]
    flags = {ADD_BOS: first, ADD_EOS: last}
    for key, name in ((ADD_BOS, "add_bos_token"), (ADD_EOS, "add_eos_token")):
        if isinstance(source.config.get(name), bool):
            flags[key] = source.config[name]
    return dict(flags)


def post_processor(
    tokens: list[str], ids: Mapping[str, int], add: tuple[int | None, int | None]
) -> dict[str, Any] | None:
    """The ``TemplateProcessing`` that puts ``add`` (ids, or None) around a prompt; None when there is nothing.

    Args:
        tokens: Texts by id.
        ids: Unused rows are not in it.
        add: The token before and the token after.
    """
    around = [index if index is not None and tokens[index] in ids else None for index in add]
    if around == [None, None]:
        return None

    def named(index: int | None, kind: int) -> list[dict[str, Any]]:
        return [] if index is None else [{"SpecialToken": {"id": tokens[index], "type_id": kind}}]

    def template(names: Iterable[tuple[str, int]]) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for name, kind in names:
            rows += [*named(around[0], kind), {"Sequence": {"id": name, "type_id": kind}}, *named(around[1], kind)]
        return rows

    used = {index for index in around if index is not None}
    return {
        "type": "TemplateProcessing",
        "single": template([("A", 0)]),
        "pair": template([("A", 0), ("B", 1)]),
        "special_tokens": {
            tokens[index]: {"id": tokens[index], "ids": [index], "tokens": [tokens[index]]} for index in sorted(used)
        },
    }


def _stand_in(source: SourceTokenizer, role: str) -> str:
    """BERT-like models have no beginning or end of sequence of their own."""
    return source.special.get({"bos": "cls", "eos": "sep"}.get(role, ""), "")


def _configured(source: SourceTokenizer, role: str) -> int | None:
    for config in (source.model_config, source.model_config.get("text_config") or {}, source.generation):
        if role in ("bos", "eos", "pad") and (found := _as_ids(config.get(f"{role}_token_id"))):
            return found[0]
    return None


def _as_ids(value: Any) -> list[int]:
    rows = value if isinstance(value, list) else [value]
    return [row for row in rows if isinstance(row, int) and not isinstance(row, bool)]


def _processors(part: Any) -> list[dict[str, Any]]:
    if not isinstance(part, dict):
        return []
    return list(part.get("processors") or [part])
