"""The types of tokens and the keys that the tokenizer metadata of GGUF files uses.

The format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md.
"""

import re
from enum import IntEnum

from quant.tensors.metadata import MetadataValue

TokenizerMetadata = dict[str, MetadataValue]
"""``tokenizer.*`` keys: whole numbers are u32 (i32 in arrays), fractions f32."""


class TokenType(IntEnum):
    """What a token of the vocabulary is, as ``tokenizer.ggml.token_type`` numbers it (SentencePiece's numbers)."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


# Role of a special token in tokenizer_config.json -> its key in GGUF ("seperator" is the format's own word).
SPECIAL_KEYS = {
    "bos": "tokenizer.ggml.bos_token_id",
    "eos": "tokenizer.ggml.eos_token_id",
    "unk": "tokenizer.ggml.unknown_token_id",
    "sep": "tokenizer.ggml.seperator_token_id",
    "pad": "tokenizer.ggml.padding_token_id",
    "cls": "tokenizer.ggml.cls_token_id",
    "mask": "tokenizer.ggml.mask_token_id",
}
EOT_KEY = "tokenizer.ggml.eot_token_id"
EOM_KEY = "tokenizer.ggml.eom_token_id"

# llama.cpp ends an answer at these texts, whatever the metadata says.
END_OF_GENERATION = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<｜end▁of▁sentence｜>",  # noqa: RUF001  # DeepSeek writes it with full-width bars
    }
)

_LOOKS_SPECIAL = re.compile(r"<\|.*\|>|<｜.*｜>|<unused.*>|<pad>|<mask>|<2mass>|\[@BOS@\]", re.DOTALL)  # noqa: RUF001


def looks_special(text: str) -> bool:
    """Whether an added token is a control token although its model does not mark it so (Command R, DeepSeek, Gemma)."""
    return _LOOKS_SPECIAL.fullmatch(text) is not None


def padding_token(index: int) -> str:
    """The text of a token that only fills the vocabulary up to the rows of the embedding."""
    return f"[PAD{index}]"
