"""Attention of packed rows, a document at a time, for processors without a fused kernel.

A block-diagonal mask over a packed row computes the square of the row, most of it for nothing; and without a fused
kernel every score is stored for the backward pass. Here each document's scores are computed alone, forgotten, and
computed again in the backward pass (as FlashAttention does, Dao et al. 2022), so a long row costs no more than its
documents do.

mlx-lm's models hand whatever mask their cache has made to ``mx.fast.scaled_dot_product_attention``. While
:func:`document_attention` is entered, that function knows a :class:`DocumentMask` too.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, cast

import mlx.core as mx
import numpy as np

Span = tuple[int, int]


@dataclass(frozen=True)
class DocumentMask:
    """Where the documents are.

    Attributes:
        rows: For each row of the batch, begin and end of its documents.
        length: Positions of a row.
        window: Positions a sliding-window layer sees; None for all.
    """

    rows: tuple[tuple[Span, ...], ...]
    length: int
    window: int | None = None


class DocumentCache:
    """Stands where a layer's cache is expected; see :class:`finetune.attention.PackedCache`.

    Args:
        segments: int32 of shape (rows, length); 0 marks padding.
    """

    offset = 0

    def __init__(self, segments: np.ndarray[Any, np.dtype[np.int32]]) -> None:
        self._rows = tuple(tuple(_spans(row)) for row in segments)
        self._length = segments.shape[1]

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Give back what came: there is no past."""
        return keys, values

    def make_mask(self, n: int, return_array: bool = False, window_size: int | None = None) -> DocumentMask:  # noqa: ARG002  mlx-lm's signature
        """Stands for the mask of a layer."""
        return DocumentMask(self._rows, self._length, window_size)


def _spans(segments: np.ndarray[Any, np.dtype[np.int32]]) -> Iterator[Span]:
    edges = np.flatnonzero(np.diff(segments, prepend=0, append=0))
    for start, end in pairwise(edges):
        if segments[start]:
            yield int(start), int(end)


@contextmanager
def document_attention() -> Iterator[None]:
    """Within it ``mx.fast.scaled_dot_product_attention`` takes a :class:`DocumentMask`."""
    original = mx.fast.scaled_dot_product_attention

    def attend(q: mx.array, k: mx.array, v: mx.array, *, scale: float, mask: Any = None, **more: Any) -> mx.array:
        if isinstance(mask, DocumentMask):
            return _attend_rows(q, k, v, scale, mask)
        return original(q, k, v, scale=scale, mask=mask, **more)

    mx.fast.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        mx.fast.scaled_dot_product_attention = original


def _attend_rows(q: mx.array, k: mx.array, v: mx.array, scale: float, mask: DocumentMask) -> mx.array:
    """(rows, heads, length, width) each; zeros in padding."""
    rows = []
    for number, spans in enumerate(mask.rows):
        row = slice(number, number + 1)
        pieces = [_attend(q[row, :, s:e], k[row, :, s:e], v[row, :, s:e], scale, mask.window) for s, e in spans]
        rest = mask.length - (spans[-1][1] if spans else 0)
        if rest:
            pieces.append(mx.zeros((1, q.shape[1], rest, v.shape[-1]), q.dtype))
        rows.append(mx.concatenate(pieces, axis=2))
    return mx.concatenate(rows, axis=0)


def _attend(q: mx.array, k: mx.array, v: mx.array, scale: float, window: int | None) -> mx.array:
    """Causal attention of one document; keys and values may have fewer heads, each shared by a group of queries."""
    n_heads, n = q.shape[1:3]
    groups = k.shape[1]
    q = (q * scale).reshape(groups, n_heads // groups, n, q.shape[-1])
    out = _attention(n, window)(q, k.reshape(groups, 1, n, -1), v.reshape(groups, 1, n, -1))
    whole: mx.array = out.reshape(1, n_heads, n, -1)
    return whole


@cache
def _attention(n: int, window: int | None) -> Any:
    """softmax(q k^T) v under a causal mask, with the scores recomputed in the backward pass.

    Shapes: q (groups, heads of a group, n, width); k and v (groups, 1, n, width).
    """
    position = np.arange(n)
    distance = position[:, None] - position[None, :]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    bias = mx.array(np.where(hidden, np.float32(-1e9), np.float32(0)))

    def weights(q: mx.array, k: mx.array) -> mx.array:
        scores = q @ k.swapaxes(-1, -2) + bias.astype(q.dtype)
        return mx.softmax(scores, axis=-1, precise=True)

    @mx.custom_function
    def attention(q: mx.array, k: mx.array, v: mx.array) -> mx.array:
        return weights(q, k) @ v

    @attention.vjp
    def attention_vjp(primals: Sequence[mx.array], cotangent: mx.array, output: mx.array) -> tuple[mx.array, ...]:
        q, k, v = primals
        p = weights(q, k)
        slope = cotangent @ v.swapaxes(-1, -2) - (cotangent * output).sum(-1, keepdims=True)
        slope = slope * p
        dk = (slope.swapaxes(-1, -2) @ q).sum(1, keepdims=True)
        dv = (p.swapaxes(-1, -2) @ cotangent).sum(1, keepdims=True)
        return slope @ k, dk, dv

    return cast("Any", attention)
