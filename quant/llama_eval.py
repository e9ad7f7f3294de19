"""A GGUF model that is run over chunks of text: logits, and what its matrices see.

Imported in a child process only: importing ``llama_cpp`` costs 0.4 s and 60 MB, and llama.cpp may end the process.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

from localllm.errors import InvalidModelError, QuantizeError
from localllm.gguf_header import read_gguf_parts
from localllm.native.llama_params import model_params
from quant.llama_choices import source_parts
from quant.llama_types import TENSOR_TYPE_NUMBERS

_UBATCH = 512  # as llama.cpp's own tools: sums depend on it in the last digits

Array = np.ndarray[Any, np.dtype[Any]]


class LlamaEvaluator:
    """Weights and a context of one sequence.

    Args:
        path: The model's first file.
        n_ctx: Tokens in a chunk.
        n_threads: CPU threads.
        on_node: A ``ggml_backend_sched_eval_callback``, called for each node of the graph.
        n_gpu_layers: Layers on the GPU; -1 is all.
        adapter: A LoRA adapter in a GGUF file, put on the model with the scale 1.
        exact_cache: Keep keys and values in F32, and leave fused attention out: F16 alone costs 2e-3 of the largest
            logit.

    Raises:
        InvalidModelError: The file is damaged, or llama.cpp refuses it.
        QuantizeError: There is no memory for the context.
    """

    def __init__(
        self,
        path: Path,
        *,
        n_ctx: int,
        n_threads: int,
        on_node: Any = None,
        n_gpu_layers: int = -1,
        adapter: Path | None = None,
        exact_cache: bool = False,
    ) -> None:
        read_gguf_parts(source_parts(path))
        lib.llama_backend_init()
        params = model_params(lib, n_gpu_layers)
        self._model = lib.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise InvalidModelError(f"llama.cpp cannot load {path.name}.", "It may be newer than llama-cpp-python.")
        self._vocab = lib.llama_model_get_vocab(self._model)
        self.n_vocab = int(lib.llama_vocab_n_tokens(self._vocab))
        context = lib.llama_context_default_params()
        context.n_ctx = context.n_batch = n_ctx
        context.n_ubatch = min(_UBATCH, n_ctx)
        context.n_threads = context.n_threads_batch = n_threads
        context.no_perf = True
        if exact_cache:
            context.type_k = context.type_v = TENSOR_TYPE_NUMBERS["F32"]
            context.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_DISABLED
        self._on_node = on_node  # must live as long as the context
        if on_node is not None:
            context.cb_eval = on_node
        self._context = lib.llama_init_from_model(self._model, context)
        if not self._context:
            raise QuantizeError(f"There is no memory for {n_ctx} tokens of {path.name}.", "Close other programs.")
        self._batch = lib.llama_batch_init(n_ctx, 0, 1)
        if adapter is not None:
            self._adapt(adapter)

    def _adapt(self, path: Path) -> None:
        adapter = lib.llama_adapter_lora_init(self._model, str(path).encode())  # freed with the model
        if not adapter:
            raise InvalidModelError(f"llama.cpp cannot put {path.name} on this model.", "It may be for another one.")
        adapters, scales = (lib.llama_adapter_lora_p_ctypes * 1)(adapter), (ctypes.c_float * 1)(1.0)
        if lib.llama_set_adapters_lora(self._context, adapters, 1, scales):
            raise InvalidModelError(f"llama.cpp cannot use {path.name}.")

    @property
    def first_token(self) -> int | None:
        """What each chunk must start with (BOS), or None."""
        return int(lib.llama_vocab_bos(self._vocab)) if lib.llama_vocab_get_add_bos(self._vocab) else None

    def tokenize(self, text: str, *, first: bool, special: bool) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Any text.
            first: It begins the whole: BOS is put before it where the model wants one.
            special: Read ``<|im_end|>`` and its like as the tokens they name.
        """
        raw = text.encode("utf-8", errors="replace")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = lib.llama_tokenize(self._vocab, raw, len(raw), tokens, room, first, special)
            if n >= 0:
                return tokens[:n]
            room = -n

    def run(self, tokens: Sequence[int], *, position: int = 0, first_logit: int = 0) -> Array:
        """Compute ``tokens``, from an empty cache when ``position`` is 0.

        Args:
            tokens: At most n_ctx token ids.
            position: Of the first of them.
            first_logit: Logits are wanted from this token on.

        Returns:
            Logits, float32 of shape (len(tokens) - first_logit, n_vocab); valid until the next call.

        Raises:
            QuantizeError: llama.cpp could not compute them.
        """
        memory = lib.llama_get_memory(self._context)
        if position == 0 and memory:
            lib.llama_memory_clear(memory, True)
        batch, n = self._batch, len(tokens)
        batch.n_tokens = n
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = position + index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= first_logit
        code = int(lib.llama_decode(self._context, batch))
        if code:
            raise QuantizeError(f"llama.cpp could not compute {n} tokens (code {code}).")
        logits = lib.llama_get_logits(self._context)
        return np.ctypeslib.as_array(logits, shape=(n - first_logit, self.n_vocab))

    def close(self) -> None:
        """Free everything."""
        lib.llama_batch_free(self._batch)
        lib.llama_free(self._context)
        lib.llama_model_free(self._model)
