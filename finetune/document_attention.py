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

from finetune.exponentials import exp

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
    """Attention of whole rows; keys and values may have fewer heads, each shared by a group of queries.

    One function with one gradient for all documents: the gradient of every slice would be as long as the row.

    Args:
        q: (rows, heads, length, width).
        k: (rows, groups, length, width).
        v: As ``k``.
        scale: Of the scores.
        mask: The documents.

    Returns:
        (rows, heads, length, width); zeros in padding.
    """
    n_rows, n_heads, length, _ = q.shape
    groups = k.shape[1]
    places = [(row, span) for row in range(n_rows) for span in mask.rows[row]]

    def pieces(x: mx.array) -> list[mx.array]:
        """Each document's part of ``x``, (groups, heads of a group x n, width)."""
        return [x[row, :, start:end].reshape(groups, -1, x.shape[-1]) for row, (start, end) in places]

    def whole(parts: Sequence[mx.array], n: int) -> mx.array:
        """The opposite of :func:`pieces`, for ``n`` heads."""
        left = iter(parts)
        rows = []
        for spans in mask.rows[:n_rows]:
            row = [next(left).reshape(1, n, end - start, -1) for start, end in spans]
            if rest := length - (spans[-1][1] if spans else 0):
                row.append(mx.zeros((1, n, rest, q.shape[-1] if n == n_heads else v.shape[-1]), q.dtype))
            rows.append(mx.concatenate(row, axis=2))
        return mx.concatenate(rows, axis=0)

    @mx.custom_function
    def attend(q: mx.array, k: mx.array, v: mx.array) -> list[mx.array]:
        found = [_forward(*parts, mask.window) for parts in zip(pieces(q * scale), pieces(k), pieces(v), strict=True)]
        return [whole([out for out, _ in found], n_heads), *(totals for _, totals in found)]

    @attend.vjp
    def attend_vjp(
        primals: Sequence[mx.array], cotangents: Sequence[mx.array], outputs: Sequence[mx.array]
    ) -> tuple[mx.array, ...]:
        q, k, v = primals
        slope = cotangents[0]
        # What each score's weight must be measured against: the mean slope of its query.
        means = (slope * outputs[0]).sum(axis=-1, keepdims=True)
        parts = zip(pieces(q * scale), pieces(k), pieces(v), outputs[1:], pieces(slope), pieces(means), strict=True)
        found = [_backward(*each, window=mask.window) for each in parts]
        dq, dk, dv = ([each[i] for each in found] for i in range(3))
        return whole(dq, n_heads) * scale, whole(dk, groups), whole(dv, groups)

    return cast("list[mx.array]", attend(q, k, v))[0]


# Of a longer document the scores above the diagonal are mostly left out, a block of queries at a time.
_BLOCK = 256


def _blocks(n: int, window: int | None) -> list[tuple[int, int, int]]:
    """Queries ``[start, end)`` see keys ``[first, end)``."""
    step = _BLOCK if n > _BLOCK * 3 // 2 else n
    starts = range(0, n, step)
    return [(s, min(s + step, n), max(0, s - window + 1) if window is not None else 0) for s in starts]


def _queries(x: mx.array, n: int, start: int, end: int) -> mx.array:
    """Some queries of (groups, heads of a group x n, width), all heads of them."""
    if (start, end) == (0, n):
        return x
    return x.reshape(x.shape[0], -1, n, x.shape[-1])[:, :, start:end].reshape(x.shape[0], -1, x.shape[-1])


def _scores(q: mx.array, k: mx.array, start: int, end: int, first: int, window: int | None) -> mx.array:
    """fp32 (groups, heads of a group x queries, keys), masked."""
    scores = (q @ k[:, first:end].swapaxes(-1, -2)).astype(mx.float32)
    n = end - start
    shape = scores.shape
    return (scores.reshape(shape[0], -1, n, shape[-1]) + _bias(n, shape[-1], window)).reshape(shape)


@cache
def _bias(n_queries: int, n_keys: int, window: int | None) -> mx.array:
    """0 where the last ``n_queries`` of ``n_keys`` positions see a key, else so little that its weight is 0."""
    distance = np.arange(n_keys - n_queries, n_keys)[:, None] - np.arange(n_keys)[None, :]
    hidden = (distance < 0) if window is None else (distance < 0) | (distance >= window)
    return mx.array(np.where(hidden, np.float32(-1e9), np.float32(0)))


def _forward(q: mx.array, k: mx.array, v: mx.array, window: int | None) -> tuple[mx.array, mx.array]:
    """One document: what its queries get, and the logarithm of the sum of each one's weights (fp32)."""
    n = k.shape[1]
    outs, totals = [], []
    for start, end, first in _blocks(n, window):
        scores = _scores(_queries(q, n, start, end), k, start, end, first, window)
        highest = scores.max(axis=-1, keepdims=True)
        weights = exp(scores - highest)
        sums = weights.sum(axis=-1, keepdims=True)
        outs.append((weights.astype(v.dtype) @ v[:, first:end]) / sums.astype(v.dtype))
        totals.append(highest + mx.log(sums))
    return _joined(outs, k.shape[0], n), _joined(totals, k.shape[0], n)


def _backward(
    q: mx.array, k: mx.array, v: mx.array, totals: mx.array, slope: mx.array, means: mx.array, *, window: int | None
) -> tuple[mx.array, mx.array, mx.array]:
    """One document's gradients; its weights are computed again (as FlashAttention does)."""
    n = k.shape[1]
    dq: list[mx.array] = []
    dk, dv = mx.zeros_like(k), mx.zeros_like(v)
    blocks = _blocks(n, window)
    for start, end, first in blocks:
        queries, cotangent = _queries(q, n, start, end), _queries(slope, n, start, end)
        scores = _scores(queries, k, start, end, first, window)
        weights = exp(scores - _queries(totals, n, start, end)).astype(v.dtype)
        values_slope = cotangent @ v[:, first:end].swapaxes(-1, -2)
        scores_slope = weights * (values_slope - _queries(means, n, start, end))
        dq.append(scores_slope @ k[:, first:end])
        key_slope = scores_slope.swapaxes(-1, -2) @ queries
        value_slope = weights.swapaxes(-1, -2) @ cotangent
        if len(blocks) == 1:
            dk, dv = key_slope, value_slope
        else:
            dk = dk.at[:, first:end].add(key_slope)
            dv = dv.at[:, first:end].add(value_slope)
    return _joined(dq, k.shape[0], n), dk, dv


def _joined(blocks: list[mx.array], groups: int, n: int) -> mx.array:
    """Blocks of queries as one document again: (groups, heads of a group x n, width)."""
    if len(blocks) == 1:
        return blocks[0]
    width = blocks[0].shape[-1]
    heads = sum(block.shape[1] for block in blocks) // n
    return mx.concatenate([block.reshape(groups, heads, -1, width) for block in blocks], axis=2).reshape(
        groups, heads * n, width
    )
