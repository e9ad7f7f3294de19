"""The little of llama.cpp's low-level API that the engine needs, with Python's lifetimes and numpy's arrays.

Imported only in an engine's own process: importing ``llama_cpp`` costs about 0.4 s and 60 MB, and a failed assert
inside it ends the process.
"""

import ctypes
import math
import secrets
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

from localllm.errors import EngineLoadError, RequestError
from localllm.native.llama_params import model_params
from serve.engine.types import SamplingParams

_KV_TYPES = {"f16": lib.GGML_TYPE_F16, "q8_0": lib.GGML_TYPE_Q8_0}
# Where top_k is off, the candidates are still cut to this many before top_p sorts them: sorting a vocabulary of
# 150,000 takes 14 ms a token, and what is cut has no weight.
_TOP_K_CEILING = 1024
_BANNED = -100.0  # what the API calls a ban
_RANDOM_SEED = 0xFFFFFFFF  # llama.cpp's "draw one"; every other value is a seed


class LlamaModel:
    """Weights and vocabulary.

    Args:
        path: A GGUF file that has passed :func:`localllm.gguf_header.read_gguf_header`.
        n_gpu_layers: Layers on the GPU; -1 is all.

    Raises:
        EngineLoadError: llama.cpp refuses the file.
    """

    def __init__(self, path: str, n_gpu_layers: int = -1) -> None:
        lib.llama_backend_init()
        params = model_params(lib, n_gpu_layers)
        self.handle = lib.llama_model_load_from_file(path.encode(), params)
        if not self.handle:
            raise EngineLoadError(
                "llama.cpp cannot load this model.",
                "Its architecture may be newer than the installed llama-cpp-python.",
            )
        self.vocab = lib.llama_model_get_vocab(self.handle)
        self.n_vocab: int = lib.llama_vocab_n_tokens(self.vocab)
        self.n_embd_out: int = lib.llama_model_n_embd_out(self.handle)
        self.n_cls_out: int = lib.llama_model_n_cls_out(self.handle)
        self.n_ctx_train: int = lib.llama_model_n_ctx_train(self.handle)
        self.n_swa: int = lib.llama_model_n_swa(self.handle)
        self.add_bos: bool = lib.llama_vocab_get_add_bos(self.vocab)
        self.add_eos: bool = lib.llama_vocab_get_add_eos(self.vocab)
        self.add_sep: bool = lib.llama_vocab_get_add_sep(self.vocab)
        self.bos: int = lib.llama_vocab_bos(self.vocab)
        self.eos: int = lib.llama_vocab_eos(self.vocab)
        self.sep: int = lib.llama_vocab_sep(self.vocab)
        self.is_recurrent: bool = lib.llama_model_is_recurrent(self.handle) or lib.llama_model_is_hybrid(self.handle)
        self.has_decoder: bool = lib.llama_model_has_decoder(self.handle)
        self._pieces: dict[int, bytes] = {}
        self._eog: dict[int, bool] = {}

    def metadata(self, key: str) -> str | None:
        """One string of the file's metadata, or None."""
        buffer = ctypes.create_string_buffer(1 << 16)
        length = lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        if length < 0:
            return None
        if length >= len(buffer):  # the buffer was too small; the true length is known now
            buffer = ctypes.create_string_buffer(length + 1)
            lib.llama_model_meta_val_str(self.handle, key.encode(), buffer, len(buffer))
        return buffer.value.decode("utf-8", errors="replace")

    @property
    def chat_template(self) -> str | None:
        """The Jinja template for chats, or None."""
        return self.metadata("tokenizer.chat_template")

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Any text.
            add_special: Put BOS (or EOS) where the tokenizer is set to.
            parse_special: Read ``<|im_end|>`` and its like as the tokens they name, not as text.
        """
        raw = text.encode("utf-8", errors="replace")
        room = len(raw) + 8
        while True:
            tokens = (ctypes.c_int32 * room)()
            n = lib.llama_tokenize(self.vocab, raw, len(raw), tokens, room, add_special, parse_special)
            if n >= 0:
                return tokens[:n]
            room = -n

    def find_specials(self, text: str) -> list[str]:
        """The texts inside ``text`` that name control tokens, such as ``<|im_end|>``."""
        tokens = set(self.tokenize(text, add_special=False, parse_special=True))
        controls = (token for token in tokens if lib.llama_vocab_is_control(self.vocab, token) or self.is_eog(token))
        return [special for token in controls if (special := self.special_text(token))]

    def piece(self, token: int) -> bytes:
        """The bytes of one token; special tokens give none. May be a part of a character."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._token_text(token, special=False)
        return piece

    def special_text(self, token: int) -> str:
        """The text of a special token (``<s>``), or an empty one when the vocabulary lacks it."""
        return "" if token < 0 else self.token_text(token).decode("utf-8", errors="replace")

    def token_text(self, token: int) -> bytes:
        """The bytes of one token, a special one's too."""
        return self._token_text(token, special=True)

    def is_eog(self, token: int) -> bool:
        """Whether ``token`` ends a generation (end of text, of turn)."""
        found = self._eog.get(token)
        if found is None:
            found = self._eog[token] = bool(lib.llama_vocab_is_eog(self.vocab, token))
        return found

    def _token_text(self, token: int, *, special: bool) -> bytes:
        buffer = ctypes.create_string_buffer(64)
        n = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        if n < 0:
            buffer = ctypes.create_string_buffer(-n)
            n = lib.llama_token_to_piece(self.vocab, token, buffer, len(buffer), 0, special)
        return buffer.raw[:n]

    def close(self) -> None:
        """Free the weights. Contexts on them must be closed before."""
        if self.handle:
            lib.llama_model_free(self.handle)
            self.handle = None


class TokenBatch:
    """A ``llama_batch`` over numpy arrays: filled by slices in 1 us, where Python loops take 390 us per 512 tokens.

    Attributes:
        capacity: Rows that fit; one more in ``llama_decode`` would end the process.
        n_tokens: Rows in use.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.n_tokens = 0
        self._token = np.zeros(capacity, np.int32)
        self._pos = np.zeros(capacity, np.int32)
        self._seq = np.zeros(capacity, np.int32)
        self._logits = np.zeros(capacity, np.int8)
        self._n_seq = np.ones(capacity, np.int32)
        # Each row belongs to one sequence: its list of sequences is a pointer to its own cell of _seq.
        self._seq_pointers = self._seq.ctypes.data + 4 * np.arange(capacity, dtype=np.uintp)
        self.struct = lib.llama_batch(
            n_tokens=0,
            token=self._token.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            embd=None,
            pos=self._pos.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            n_seq_id=self._n_seq.ctypes.data_as(ctypes.POINTER(ctypes.c_int32)),
            seq_id=self._seq_pointers.ctypes.data_as(ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
            logits=self._logits.ctypes.data_as(ctypes.POINTER(ctypes.c_int8)),
        )

    def clear(self) -> None:
        """Forget all rows."""
        self.n_tokens = 0

    def add(self, tokens: Sequence[int], pos: int, seq: int, *, logits: int) -> int:
        """Append rows for ``tokens`` at positions ``pos…`` of sequence ``seq``.

        Args:
            tokens: Token ids, as many as there is room for.
            pos: Position of the first one.
            seq: Sequence id.
            logits: Compute logits for this many of them, from the end.

        Returns:
            The row of the last token.
        """
        first, last = self.n_tokens, self.n_tokens + len(tokens)
        if last > self.capacity:
            raise ValueError(f"batch of {self.capacity} rows cannot take {last}")
        if len(tokens) == 1:  # most rows: a quarter of the time of slices
            self._token[first], self._pos[first], self._seq[first], self._logits[first] = tokens[0], pos, seq, logits
            self.n_tokens = last
            return first
        self._token[first:last] = tokens
        self._pos[first:last] = np.arange(pos, pos + len(tokens))
        self._seq[first:last] = seq
        self._logits[first:last] = 0
        self._logits[last - logits : last] = 1
        self.n_tokens = last
        return last - 1


class LlamaContext:
    """One KV cache, one batch.

    Args:
        model: The weights.
        n_ctx: Tokens in the cache, shared by all sequences (unified); 0 takes the model's.
        n_batch: Rows of a batch.
        n_seq: Sequences.
        n_threads: CPU threads.
        flash_attn: Fused attention; None lets llama.cpp decide.
        kv_type: ``f16`` or ``q8_0``.
        pooling: None for generation; else a context for embeddings with this llama.cpp pooling type.

    Raises:
        EngineLoadError: No memory for the cache, or the model cannot be used so.
    """

    def __init__(
        self,
        model: LlamaModel,
        *,
        n_ctx: int,
        n_batch: int,
        n_seq: int,
        n_threads: int,
        flash_attn: bool | None = None,
        kv_type: str = "f16",
        pooling: int | None = None,
    ) -> None:
        params = lib.llama_context_default_params()
        params.n_ctx = n_ctx
        params.n_batch = n_batch
        params.n_ubatch = n_batch
        params.n_seq_max = n_seq
        params.n_threads = params.n_threads_batch = n_threads
        params.flash_attn_type = lib.LLAMA_FLASH_ATTN_TYPE_AUTO if flash_attn is None else int(flash_attn)
        # Without it the cache is divided among the sequences, and a partial copy between them ends the process.
        params.kv_unified = True
        params.no_perf = True
        params.type_k = params.type_v = _KV_TYPES[kv_type]
        if pooling is not None:
            params.embeddings = True
            params.pooling_type = pooling
        self.handle = lib.llama_init_from_model(model.handle, params)
        if not self.handle:
            where = "" if kv_type == "f16" else f", or this model cannot keep its KV cache in {kv_type}"
            raise EngineLoadError(
                f"There is not enough memory for a context of {n_ctx or model.n_ctx_train} tokens{where}.",
                "Load the model with a smaller --ctx." if kv_type == "f16" else "Try --kv-type f16 or a smaller --ctx.",
            )
        self._memory: Any = lib.llama_get_memory(self.handle)
        self.n_ctx: int = lib.llama_n_ctx_seq(self.handle)
        self.batch = TokenBatch(n_batch)

    def decode(self) -> int:
        """Run the batch; llama.cpp's code: 0 done, 1 no room in the cache (nothing changed), below 0 fatal."""
        self.batch.struct.n_tokens = self.batch.n_tokens
        return int(lib.llama_decode(self.handle, self.batch.struct))

    def share(self, source: int, target: int, n: int) -> None:
        """Let ``target`` hold the first ``n`` positions of ``source``; no data is copied."""
        lib.llama_memory_seq_cp(self._memory, source, target, 0, n)

    def drop(self, seq: int, start: int = 0) -> bool:
        """Forget positions ``start…`` of ``seq``; False where this memory cannot drop a tail."""
        return bool(lib.llama_memory_seq_rm(self._memory, seq, start, -1))

    def state(self, seq: int) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
        """The cells of ``seq``, for :meth:`restore` of a context of the same model and kind."""
        size = lib.llama_state_seq_get_size(self.handle, seq)
        data = np.empty(size, np.uint8)
        pointer = data.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return data[: lib.llama_state_seq_get_data(self.handle, pointer, size, seq)]

    def restore(self, seq: int, state: np.ndarray[tuple[int], np.dtype[np.uint8]]) -> bool:
        """Fill the empty ``seq``; False where there is no room, or llama.cpp refuses the state."""
        pointer = state.ctypes.data_as(ctypes.POINTER(ctypes.c_uint8))
        return bool(lib.llama_state_seq_set_data(self.handle, pointer, len(state), seq))

    def logits(self, row: int, n_vocab: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The logits of ``row`` of the last batch, float32 of shape (n_vocab,); valid until the next batch."""
        return np.ctypeslib.as_array(lib.llama_get_logits_ith(self.handle, row), shape=(n_vocab,))

    def first_position(self, seq: int) -> int:
        """The smallest position that ``seq`` still holds; -1 when it holds none."""
        return int(lib.llama_memory_seq_pos_min(self._memory, seq))

    def pooled(self, seq: int, n_out: int) -> np.ndarray[Any, np.dtype[np.float32]]:
        """The pooled output of ``seq`` as the model gives it, float32 of shape (n_out,).

        Args:
            seq: A sequence of the last batch.
            n_out: Width of an embedding; for pooling by rank the number of the model's classes.
        """
        pointer = lib.llama_get_embeddings_seq(self.handle, seq)
        if not pointer:
            raise RequestError("This model gives no embeddings.", param="model")
        return np.ctypeslib.as_array(pointer, shape=(n_out,)).astype(np.float32)

    def clear(self) -> None:
        """Empty the cache."""
        if self._memory:
            lib.llama_memory_clear(self._memory, False)

    def close(self) -> None:
        """Free the cache."""
        if self.handle:
            lib.llama_free(self.handle)
            self.handle = None


class SamplerChain:
    """One request's sampler: penalties, top_k, top_p, min_p, temperature, draw; greedy at temperature 0.

    Args:
        params: How tokens are chosen.
        n_vocab: Size of the vocabulary.
        n_ctx: What a penalty window of -1 stands for.
        prompt: The prompt's token ids: the penalties count its tail too, as llama.cpp's own server does.

    Raises:
        RequestError: A bias for a token that the vocabulary does not have.
    """

    def __init__(self, params: SamplingParams, n_vocab: int, n_ctx: int, prompt: Sequence[int]) -> None:
        for token, _ in params.logit_bias:
            if not 0 <= token < n_vocab:
                raise RequestError(f"Token {token} is not in the vocabulary of {n_vocab}.", param="logit_bias")
        chain_params = lib.llama_sampler_chain_default_params()
        chain_params.no_perf = True
        self.handle = lib.llama_sampler_chain_init(chain_params)
        # llama.cpp allocates the window, so it is never longer than what it could hold.
        window = n_ctx if params.repeat_last_n < 0 else min(params.repeat_last_n, n_ctx)
        penalised = window > 0 and (params.repeat_penalty, params.frequency_penalty, params.presence_penalty) != (
            1,
            0,
            0,
        )
        if penalised:
            self._add(
                lib.llama_sampler_init_penalties(
                    n_vocab, window, params.repeat_penalty, params.frequency_penalty, params.presence_penalty
                )
            )
        if params.logit_bias:
            self._add_bias(params.logit_bias, n_vocab)
        if params.temperature <= 0:
            self._add(lib.llama_sampler_init_greedy())
        else:
            self._add_draw(params)
        if penalised:
            for token in prompt[-window:]:
                lib.llama_sampler_accept(self.handle, token)

    def _add_bias(self, bias: Sequence[tuple[int, float]], n_vocab: int) -> None:
        array = (lib.llama_logit_bias * len(bias))(
            *((token, value if value > _BANNED else -math.inf) for token, value in bias)
        )
        self._add(lib.llama_sampler_init_logit_bias(n_vocab, len(bias), array))

    def _add_draw(self, params: SamplingParams) -> None:
        top_k = params.top_k or (_TOP_K_CEILING if params.top_p < 1 else 0)
        if top_k > 0:
            self._add(lib.llama_sampler_init_top_k(top_k))
        if params.top_p < 1:
            self._add(lib.llama_sampler_init_top_p(params.top_p, 1))
        if params.min_p > 0:
            self._add(lib.llama_sampler_init_min_p(params.min_p, 1))
        self._add(lib.llama_sampler_init_temp(params.temperature))
        seed = secrets.randbelow(_RANDOM_SEED) if params.seed is None else params.seed
        self._add(lib.llama_sampler_init_dist(seed))

    def _add(self, sampler: Any) -> None:
        lib.llama_sampler_chain_add(self.handle, sampler)

    def sample(self, context: LlamaContext, row: int) -> int:
        """Choose a token from the logits of ``row`` of the last batch, and remember it for the penalties."""
        return int(lib.llama_sampler_sample(self.handle, context.handle, row))

    def close(self) -> None:
        """Free the chain."""
        if self.handle:
            lib.llama_sampler_free(self.handle)
            self.handle = None
