"""A llama.cpp model's tokens for :mod:`serve.engine.constraints`."""

import ctypes
from typing import Any, cast

import llama_cpp as lib
from llguidance import LLTokenizer

from serve.engine.constraints import GrammarVocabulary
from serve.engine.llama import LlamaModel

# Sequences that llguidance reads as special tokens begin with this byte, which no UTF-8 text holds.
_SPECIAL = b"\xff"


def llama_grammar_vocabulary(model: LlamaModel) -> GrammarVocabulary:
    """The model's tokens as llguidance wants them; takes 0.3 s for 50,000 tokens.

    Args:
        model: Must outlive what is returned.
    """
    eog = [token for token in range(model.n_vocab) if model.is_eog(token)]
    specials = frozenset(eog)
    pieces = [
        (b"" if token in specials else model.piece(token)) or _SPECIAL + model.special_text(token).encode()
        for token in range(model.n_vocab)
    ]
    tokenize = ctypes.cast(lib.llama_cpp._lib.llama_tokenize, ctypes.c_void_p).value
    # Missing from llguidance's type stubs.
    build = cast("Any", LLTokenizer).from_llamacpp
    tokenizer: LLTokenizer = build(
        tokens=pieces, vocab_ptr=model.vocab, tokenize_fptr=tokenize, eos_token=eog or [model.eos], slices=None
    )
    return GrammarVocabulary(tokenizer, model.n_vocab)
