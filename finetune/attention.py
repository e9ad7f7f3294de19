"""Keeps attention inside each document of a packed row, without touching the model's code.

mlx-lm's models ask the cache of each layer for their mask and hand it their keys and values. The stand-in here keeps
nothing and answers with a block-diagonal causal mask. Rotary positions run on through the row: only differences of
positions count in them, so a document in the middle of a row sees what it would see alone.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx


class PackedCache:
    """Stands where a layer's cache is expected.

    Args:
        segments: int32 of shape (rows, length); 0 marks padding.
    """

    offset = 0

    def __init__(self, segments: mx.array) -> None:
        self._segments = segments
        self._masks: dict[int | None, mx.array] = {}

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give back what came: there is no past."""
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> mx.array:  # noqa: ARG002  mlx-lm's signature
        """Bool of shape (rows, 1, n, n): same document, not later, and within the layer's window."""
        mask = self._masks.get(window_size)
        if mask is None:
            mask = self._masks[window_size] = block_diagonal(self._segments, window_size)
        return mask


def block_diagonal(segments: mx.array, window: int | None = None) -> mx.array:
    """The mask of packed rows.

    Args:
        segments: int32 of shape (rows, n).
        window: Positions a sliding-window layer sees, its own included; None for all.

    Returns:
        bool of shape (rows, 1, n, n). Padding sees itself, so that no row of a softmax is empty.
    """
    n = segments.shape[1]
    positions = mx.arange(n)
    distance = positions[:, None] - positions[None, :]
    seen = distance >= 0
    if window is not None:
        seen = seen & (distance < window)
    same: mx.array = segments[:, :, None] == segments[:, None, :]
    return mx.expand_dims(same & seen, 1)


def packed_caches(segments: mx.array, n_layers: int) -> Sequence[Any]:
    """A stand-in for each layer; they share their masks."""
    cache = PackedCache(segments)
    return [cache] * n_layers
