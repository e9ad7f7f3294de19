"""The starter model, its rows padded by zeros to a multiple of 256, so that every type can be tried on a real model.

    python -m benchmarks.padded_starter STARTER.gguf padded.gguf [--type f16|f32]

SmolLM2-135M has rows of 576, which K- and IQ-quants cannot take: llama.cpp falls back to other types. Padded to 768
(12 heads and 4 KV heads instead of 9 and 3) the model computes the same: RMS norm divides by the mean over 768 instead
of 576 numbers, so its weights are multiplied by sqrt(576 / 768) and its epsilon by 576 / 768.
"""

import argparse
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.rewrite import Array, rewrite

WIDTH, PADDED = 576, 768
HEAD = 64
_SHARE = WIDTH / PADDED
# Metadata that changes; what is not named here is copied.
_CHANGED = {
    "llama.embedding_length": PADDED,
    "llama.attention.head_count": PADDED // HEAD,
    "llama.attention.head_count_kv": 4,
}
_EPSILON = "llama.attention.layer_norm_rms_epsilon"
_KV_ROWS, _PADDED_KV_ROWS = 3 * HEAD, 4 * HEAD


def padded(name: str, weights: Array) -> Array:
    """One tensor with zeros where the model grows, float32 in numpy's order (rows, columns)."""
    if weights.ndim == 1:
        return np.pad(weights * math.sqrt(_SHARE), (0, PADDED - WIDTH))
    sizes = {WIDTH: PADDED}
    if ".attn_k." in name or ".attn_v." in name:
        sizes[_KV_ROWS] = _PADDED_KV_ROWS
    return np.pad(weights, [(0, sizes.get(size, size) - size) for size in weights.shape])


def pad_starter(source: Path, target: Path, tensor_type: str = "f16") -> None:
    """Write the padded model; matrices in ``tensor_type``, the rest in F32."""

    def metadata(key: str, value: Any) -> Any:
        return value * _SHARE if key == _EPSILON else _CHANGED.get(key, value)

    rewrite(source, target, padded, metadata=metadata, tensor_type=tensor_type)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--type", choices=("f16", "f32"), default="f16")
    args = parser.parse_args()
    pad_starter(args.source, args.target, args.type)


if __name__ == "__main__":
    main()
