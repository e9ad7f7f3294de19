"""BERT in numpy, with either GELU, as the reference for an embedder: no other library is at hand that computes it."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

Gelu = Callable[[np.ndarray], np.ndarray]

_ERF = np.vectorize(math.erf, otypes=[np.float64])


def exact_gelu(x: np.ndarray) -> np.ndarray:
    """As BERT was trained: x times the normal distribution's cumulative probability."""
    return (0.5 * x * (1 + _ERF(x / math.sqrt(2)))).astype(np.float32)


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    """The usual approximation, in full precision."""
    wide = x.astype(np.float64)
    return (0.5 * wide * (1 + np.tanh(math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)))).astype(np.float32)


def table_gelu(x: np.ndarray) -> np.ndarray:
    """As llama.cpp computes it: the tanh form from a table, so argument and result are rounded to F16."""
    looked_up = tanh_gelu(x.astype(np.float16).astype(np.float32)).astype(np.float16).astype(np.float32)
    return np.where(x <= -10, 0, np.where(x >= 10, x, looked_up)).astype(np.float32)


def bert_embedding(directory: Path, tokens: Sequence[int], gelu: Gelu) -> np.ndarray:
    """The mean of the last hidden states, not normalised, shape (n_embd,)."""
    config = json.loads((directory / "config.json").read_text())
    weights = load_file(directory / "model.safetensors")
    n_head, eps = config["num_attention_heads"], config["layer_norm_eps"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        scaled = centred / np.sqrt(np.square(centred).mean(-1, keepdims=True) + eps)
        return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    def heads(x: np.ndarray) -> np.ndarray:
        return x.reshape(len(x), n_head, -1).swapaxes(0, 1)

    x = weights["embeddings.word_embeddings.weight"][list(tokens)]
    x = x + weights["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x + weights["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
    for layer in range(config["num_hidden_layers"]):
        block = f"encoder.layer.{layer}"
        query, key, value = (heads(dense(x, f"{block}.attention.self.{name}")) for name in ("query", "key", "value"))
        scores = query @ key.swapaxes(1, 2) / math.sqrt(query.shape[-1])
        attention = np.exp(scores - scores.max(-1, keepdims=True))
        attention /= attention.sum(-1, keepdims=True)
        mixed = (attention @ value).swapaxes(0, 1).reshape(x.shape)
        x = norm(x + dense(mixed, f"{block}.attention.output.dense"), f"{block}.attention.output.LayerNorm")
        up = gelu(dense(x, f"{block}.intermediate.dense"))
        x = norm(x + dense(up, f"{block}.output.dense"), f"{block}.output.LayerNorm")
    return x.mean(0)
