"""Byte-level BPE (``gpt2`` in GGUF): Llama 3, SmolLM, Qwen, OLMo, Falcon and Phi-2 among others."""

from collections.abc import Mapping
from typing import Any

from localllm.errors import InvalidModelError
from quant.tokenizers.pretokenizers import named, pre_tokenizer_json, recognise
from quant.tokenizers.source import SourceTokenizer, load_tokenizer
from quant.tokenizers.special import ADD_BOS, ADD_EOS, added_around, post_processor, special_ids
from quant.tokenizers.token_types import SPECIAL_KEYS, TokenizerMetadata
from quant.tokenizers.vocabulary import Vocabulary, added_token, merge_pairs

_SPACE = "\u0120"  # how byte-level BPE writes a space


def to_gguf(source: SourceTokenizer) -> TokenizerMetadata:
    """The GGUF keys of a byte-level tokenizer.json.

    Raises:
        InvalidModelError: Its pre-tokenizer is unknown, or its model has parts that GGUF cannot hold.
    """
    model = source.definition["model"]
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if model.get(name):
            raise InvalidModelError(f"This tokenizer's BPE model uses {name}, which GGUF cannot hold.")
    pre = recognise(load_tokenizer(source.directory), source.definition)
    vocabulary = Vocabulary.of(source, {int(index): text for text, index in model["vocab"].items()})
    content = vocabulary.metadata("gpt2", pre.name)
    # GGUF writes a pair with a space between: spaces inside, which only raw added tokens have, are written as bytes.
    pairs = merge_pairs(model["merges"])
    content["tokenizer.ggml.merges"] = [f"{a.replace(' ', _SPACE)} {b.replace(' ', _SPACE)}" for a, b in pairs]
    return content | special_ids(source, vocabulary.ids()) | added_around(source, default_bos=False)


def from_gguf(metadata: Mapping[str, Any], vocabulary: Vocabulary) -> dict[str, Any]:
    """The tokenizer.json of a GGUF file's byte-level tokenizer.

    Raises:
        InvalidModelError: Its pre-tokenizer is unknown, or it has no merges.
    """
    pre = named(str(metadata.get("tokenizer.ggml.pre", "")))
    merges = metadata.get("tokenizer.ggml.merges")
    if not isinstance(merges, list | tuple) or not merges:
        raise InvalidModelError("The GGUF file has no merges for its vocabulary.", "Pull the model again.")
    ids = vocabulary.ids()
    pairs = [
        list(pair) for pair in merge_pairs(merges) if pair[0] in ids and pair[1] in ids and pair[0] + pair[1] in ids
    ]
    add = (
        metadata.get(SPECIAL_KEYS["bos"]) if metadata.get(ADD_BOS, pre.adds_bos) else None,
        metadata.get(SPECIAL_KEYS["eos"]) if metadata.get(ADD_EOS) else None,
    )
    around = post_processor(vocabulary.tokens, ids, add)
    by_bytes = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    return {
        "added_tokens": [added_token(index, text, special=special) for index, text, special in vocabulary.added()],
        "normalizer": {"type": "NFC"} if pre.nfc else None,
        "pre_tokenizer": pre_tokenizer_json(pre),
        "post_processor": {"type": "Sequence", "processors": [by_bytes, around]} if around else by_bytes,
        "decoder": by_bytes,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": pre.ignore_merges,
            "vocab": ids,
            "merges": pairs,
        },
    }
