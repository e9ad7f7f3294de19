"""A tiny Llama with a matrix of every kind that llama.cpp packs or has kernels for, and what it computes by NumPy.

Its blocks hold random bits, not rounded weights: every code of every type occurs, and the types need no quantizer. Rows
are 256 and 512 wide and their numbers multiples of 32, so that every packed path (repacked blocks of eight rows, tiles
of AMX) takes them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf.quants import dequantize

Array = np.ndarray[Any, np.dtype[Any]]

N_TOKENS = 64  # of the text that is computed
_N_EMBD, _N_FF, _N_HEAD, _N_HEAD_KV, _N_VOCAB = 256, 512, 4, 2, 320
_HEAD = _N_EMBD // _N_HEAD
_EPSILON, _ROPE_BASE = 1e-5, 10_000.0
_SHAPES = {
    "attn_q": (_N_EMBD, _N_EMBD),
    "attn_k": (_N_HEAD_KV * _HEAD, _N_EMBD),
    "attn_v": (_N_HEAD_KV * _HEAD, _N_EMBD),
    "attn_output": (_N_EMBD, _N_EMBD),
    "ffn_gate": (_N_FF, _N_EMBD),
    "ffn_up": (_N_FF, _N_EMBD),
    "ffn_down": (_N_EMBD, _N_FF),
}
# The types of each layer's matrices, in the order of _SHAPES. Q4_0, Q4_1, Q8_0, Q4_K, Q6_K and F16 stand in a narrow
# and in a wide matrix; the last layer has the rest of the types that some processor packs.
_LAYERS = (
    ("Q4_0", "Q4_1", "Q8_0", "Q4_K", "Q6_K", "F16", "F32"),
    ("Q4_K", "F16", "Q6_K", "Q4_0", "Q4_1", "Q8_0", "Q4_K"),
    ("Q5_0", "Q2_K", "IQ4_NL", "Q5_K", "Q3_K", "Q4_0", "Q6_K"),
)
_EMBEDDING_TYPE, _OUTPUT_TYPE = "Q8_0", "Q6_K"
# Of the standard deviations: so that attention chooses and every matrix reaches the end, yet rounding is not amplified.
_GAINS = {"attn_q": 1.5, "attn_k": 1.5, "attn_v": 1.5, "ffn_down": 1.5}
# Where the 16-bit scales of a block are, as bytes from its beginning: the scale, and what is subtracted, which is so
# many times the scale that the values are around zero.
_SCALES: dict[str, tuple[int, int | None, float]] = {
    "Q4_0": (0, None, 0),
    "Q4_1": (0, 2, -7.5),
    "Q5_0": (0, None, 0),
    "Q8_0": (0, None, 0),
    "IQ4_NL": (0, None, 0),
    "Q2_K": (80, 82, 1.5),
    "Q3_K": (108, None, 0),
    "Q4_K": (0, 2, 7.5),
    "Q5_K": (0, 2, 15.5),
    "Q6_K": (208, None, 0),
}


@dataclass(frozen=True)
class _Matrix:
    """One matrix.

    Attributes:
        kind: Its type.
        raw: As it stands in the file, uint8 of shape (rows, bytes), or floats of shape (rows, columns).
        values: What it means, float64 of shape (rows, columns).
    """

    kind: gguf.GGMLQuantizationType
    raw: Array
    values: Array


class ProbeModel:
    """The model: :meth:`write` makes the file, :meth:`logits` computes it with NumPy in float64.

    Args:
        seed: Of all that is random.

    Attributes:
        matrices: By the tensor's name in the file.
        tokens: The text, int32 of shape (N_TOKENS,).
    """

    def __init__(self, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.tokens: Array = rng.integers(0, _N_VOCAB, N_TOKENS, dtype=np.int32)
        self.matrices: dict[str, _Matrix] = {
            "token_embd.weight": _random_matrix(rng, _EMBEDDING_TYPE, (_N_VOCAB, _N_EMBD), 1.0),
            "output.weight": _random_matrix(rng, _OUTPUT_TYPE, (_N_VOCAB, _N_EMBD), 1 / np.sqrt(_N_EMBD)),
        }
        for layer, kinds in enumerate(_LAYERS):
            for (name, shape), kind in zip(_SHAPES.items(), kinds, strict=True):
                deviation = _GAINS.get(name, 1.0) / np.sqrt(shape[1])
                self.matrices[f"blk.{layer}.{name}.weight"] = _random_matrix(rng, kind, shape, deviation)

    def write(self, path: Path) -> None:
        """Write it as a GGUF file of about 2 MB, without a vocabulary: it computes token ids."""
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_context_length(4 * N_TOKENS)
        writer.add_embedding_length(_N_EMBD)
        writer.add_block_count(len(_LAYERS))
        writer.add_feed_forward_length(_N_FF)
        writer.add_head_count(_N_HEAD)
        writer.add_head_count_kv(_N_HEAD_KV)
        writer.add_layer_norm_rms_eps(_EPSILON)
        writer.add_rope_dimension_count(_HEAD)
        writer.add_rope_freq_base(_ROPE_BASE)
        writer.add_vocab_size(_N_VOCAB)
        writer.add_tokenizer_model("no_vocab")
        ones = np.ones(_N_EMBD, np.float32)
        norms = [f"blk.{layer}.{name}.weight" for layer in range(len(_LAYERS)) for name in ("attn_norm", "ffn_norm")]
        for name in (*norms, "output_norm.weight"):
            writer.add_tensor(name, ones)
        for name, matrix in self.matrices.items():
            writer.add_tensor(name, matrix.raw, raw_dtype=matrix.kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def logits(self) -> Array:
        """The logits of every token of the text, float64 of shape (N_TOKENS, vocabulary)."""
        hidden = self._values("token_embd")[self.tokens]
        causal = np.triu(np.full((N_TOKENS, N_TOKENS), -np.inf), 1)
        for layer in range(len(_LAYERS)):
            hidden = hidden + self._attention(layer, _normalised(hidden), causal)
            x = _normalised(hidden)
            gate = x @ self._values(f"blk.{layer}.ffn_gate").T
            up = x @ self._values(f"blk.{layer}.ffn_up").T
            hidden = hidden + (gate / (1 + np.exp(-gate)) * up) @ self._values(f"blk.{layer}.ffn_down").T
        return np.asarray(_normalised(hidden) @ self._values("output").T)

    def _attention(self, layer: int, x: Array, causal: Array) -> Array:
        def heads(name: str, n_heads: int) -> Array:
            return (x @ self._values(f"blk.{layer}.{name}").T).reshape(N_TOKENS, n_heads, _HEAD).swapaxes(0, 1)

        queries, keys = _rotated(heads("attn_q", _N_HEAD)), _rotated(heads("attn_k", _N_HEAD_KV))
        shared = _N_HEAD // _N_HEAD_KV  # query heads that read one head of keys and values
        keys, values = keys.repeat(shared, 0), heads("attn_v", _N_HEAD_KV).repeat(shared, 0)
        scores = queries @ keys.swapaxes(1, 2) / np.sqrt(_HEAD) + causal
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True)) @ values
        return np.asarray(mixed.swapaxes(0, 1).reshape(N_TOKENS, _N_EMBD) @ self._values(f"blk.{layer}.attn_output").T)

    def _values(self, name: str) -> Array:
        return self.matrices[f"{name}.weight"].values


def _random_matrix(rng: np.random.Generator, kind: str, shape: tuple[int, int], deviation: float) -> _Matrix:
    """A matrix of random codes whose values have about this standard deviation."""
    number = gguf.GGMLQuantizationType[kind]
    if kind in ("F16", "F32"):
        floats = (rng.standard_normal(shape) * deviation).astype(np.float16 if kind == "F16" else np.float32)
        return _Matrix(number, floats, floats.astype(np.float64))
    block, n_bytes = gguf.GGML_QUANT_SIZES[number]
    raw = rng.integers(0, 256, (shape[0], shape[1] // block, n_bytes), dtype=np.uint8)
    if kind == "Q6_K":  # its scales are bytes with a sign; large ones would make the block's own scale denormal
        raw[..., 192:208] = rng.integers(-16, 16, (*raw.shape[:2], 16), dtype=np.int8).view(np.uint8)
    raw = _scaled(raw, kind, np.ones(raw.shape[:2]))
    spread = dequantize(raw.reshape(shape[0], -1), number).std()
    # Each block has a scale of its own, so that a kernel that takes the wrong one is seen.
    raw = _scaled(raw, kind, rng.uniform(0.5, 1.5, raw.shape[:2]) * deviation / spread).reshape(shape[0], -1)
    return _Matrix(number, raw, dequantize(raw, number).astype(np.float64))


def _scaled(raw: Array, kind: str, scales: Array) -> Array:
    """``raw`` (rows, blocks, bytes) with these scales (rows, blocks) in its blocks."""
    at, minimum_at, ratio = _SCALES[kind]
    scaled = raw.copy()
    scaled[..., at : at + 2] = _half_bytes(scales)
    if minimum_at is not None:
        scaled[..., minimum_at : minimum_at + 2] = _half_bytes(scales * ratio)
    return scaled


def _half_bytes(values: Array) -> Array:
    return np.ascontiguousarray(values.astype("<f2")[..., None]).view(np.uint8)


def _normalised(x: Array) -> Array:
    """RMS norm with weights of one."""
    return np.asarray(x / np.sqrt((x * x).mean(-1, keepdims=True) + _EPSILON))


def _rotated(x: Array) -> Array:
    """Rotary positions as Llama's GGUF files have them: neighbours are pairs. ``x`` is (heads, tokens, width)."""
    angles = np.arange(x.shape[1])[:, None] * _ROPE_BASE ** (-np.arange(0, _HEAD, 2) / _HEAD)
    even, odd = x[..., 0::2], x[..., 1::2]
    pairs = (even * np.cos(angles) - odd * np.sin(angles), even * np.sin(angles) + odd * np.cos(angles))
    return np.stack(pairs, -1).reshape(x.shape)


def deviation(logits: Array, reference: Array) -> float:
    """How far ``logits`` are from ``reference``: the root of the mean square, as a share of the reference's.

    Args:
        logits: Of shape (tokens, vocabulary).
        reference: As :meth:`ProbeModel.logits` gives them.

    Returns:
        0 for equal ones; infinity where there are no numbers.
    """
    error = float(np.sqrt(np.mean((np.asarray(logits, np.float64) - reference) ** 2) / np.mean(reference**2)))
    return error if np.isfinite(error) else float("inf")


def kinds() -> Sequence[str]:
    """The types that occur, sorted."""
    return sorted({kind for layer in _LAYERS for kind in layer} | {_EMBEDDING_TYPE, _OUTPUT_TYPE})
