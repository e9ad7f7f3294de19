"""What llama.cpp computes with a GGUF file, in F32 from end to end, as the reference for conversions."""

import ctypes
from collections.abc import Sequence
from pathlib import Path

import llama_cpp
import numpy as np

_F32 = 0  # ggml_type: the KV cache is F16 otherwise, which alone costs 2e-3 of the largest logit


def llama_logits(path: Path, tokens: Sequence[int], n_ctx: int = 256, adapter: Path | None = None) -> np.ndarray:
    """Logits of every position, shape (tokens, n_vocab); with a LoRA adapter on the model where one is given."""
    model = llama_cpp.Llama(
        str(path), n_ctx=n_ctx, logits_all=True, type_k=_F32, type_v=_F32, n_threads=1, verbose=False
    )
    try:
        if adapter is not None:
            lora = llama_cpp.llama_adapter_lora_init(model.model, str(adapter).encode())
            assert lora
            loras, scales = (llama_cpp.llama_adapter_lora_p_ctypes * 1)(lora), (ctypes.c_float * 1)(1.0)
            assert llama_cpp.llama_set_adapters_lora(model.ctx, loras, 1, scales) == 0
        model.eval(list(tokens))
        return np.array(model.scores[: len(tokens)])
    finally:
        model.close()


def llama_embedding(path: Path, tokens: Sequence[int], n_ctx: int = 256) -> np.ndarray:
    """The pooled embedding, not normalised, shape (n_embd,)."""
    model = llama_cpp.Llama(str(path), n_ctx=n_ctx, embedding=True, n_threads=1, verbose=False)
    batch = llama_cpp.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for position, token in enumerate(tokens):
            batch.token[position] = token
            batch.pos[position] = position
            batch.n_seq_id[position] = 1
            batch.seq_id[position][0] = 0
            batch.logits[position] = 1
        assert llama_cpp.llama_decode(model.ctx, batch) == 0
        return np.array(llama_cpp.llama_get_embeddings_seq(model.ctx, 0)[: model.n_embd()])
    finally:
        llama_cpp.llama_batch_free(batch)
        model.close()
