"""A tensor put together from rows of others: what every conversion here comes down to.

Rotary halves, stacked experts, fused projections: each only reorders whole rows, so they work on packed weights
too, and a piece of any tensor can be made without the rest of it.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from quant.tensors.dtypes import recode
from quant.tensors.source import Array, TensorInfo, TensorSource

_CHUNK = 4 << 20  # bytes read at once: large enough for the disk, small enough for the processor's cache


@dataclass(frozen=True)
class Piece:
    """Consecutive rows of a tensor.

    Attributes:
        source: The tensor's name.
        start: First row; see :attr:`.source.TensorInfo.n_rows`.
        stop: One past the last.
        head_rows: Rows of an attention head whose rotary halves change places; 0 where rows stay as they are.
        interleave: Halves become pairs (``[0, d/2, 1, d/2 + 1, …]``, as llama.cpp rotates Llama); else the reverse.
    """

    source: str
    start: int
    stop: int
    head_rows: int = 0
    interleave: bool = True


@dataclass(frozen=True)
class TensorPlan:
    """How a tensor is made.

    Attributes:
        name: In the target.
        shape: In numpy's order.
        pieces: Their rows, one after the other, are the tensor's.
        shift: Added to every weight.
        keep_f32: The target needs it in F32 whatever type the model gets.
    """

    name: str
    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    shift: float = 0.0
    keep_f32: bool = False


def read_plan(plan: TensorPlan, source: TensorSource) -> Iterator[tuple[Array, str]]:
    """The rows of a planned tensor in their own type, some at a time, before the shift.

    Yields:
        Rows as :meth:`TensorSource.read_rows` gives them (good until the next), and the name of their type.
    """
    for piece in plan.pieces:
        tensor = source.tensors[piece.source]
        step = max(1, _CHUNK // max(1, tensor.row_bytes))
        if piece.head_rows:
            step = max(1, step // piece.head_rows) * piece.head_rows
        for start in range(piece.start, piece.stop, step):
            rows = source.read_rows(piece.source, start, min(start + step, piece.stop))
            yield _rotated(rows, piece) if piece.head_rows else rows, tensor.type_name


def _rotated(rows: Array, piece: Piece) -> Array:
    half = piece.head_rows // 2
    outer, inner = (2, half) if piece.interleave else (half, 2)
    heads = rows.reshape(-1, outer, inner, rows.shape[1]).swapaxes(1, 2)
    return np.ascontiguousarray(heads).reshape(rows.shape)


@dataclass(frozen=True)
class OutTensor:
    """A tensor to be written.

    Attributes:
        info: Name, type and shape.
        chunks: Its data from the start, some rows at a time; each is good until the next is taken.
    """

    info: TensorInfo
    chunks: Callable[[], Iterator[Array]]


def planned_tensor(plan: TensorPlan, source: TensorSource, type_name: str) -> OutTensor:
    """A planned tensor in the type ``type_name``."""

    def chunks() -> Iterator[Array]:
        for rows, own_type in read_plan(plan, source):
            yield recode(rows, own_type, type_name, plan.shift)

    return OutTensor(TensorInfo(plan.name, type_name, plan.shape), chunks)


def array_tensor(name: str, array: Array) -> OutTensor:
    """A small tensor that is in memory, in F32."""
    values = np.ascontiguousarray(array, np.float32)
    return OutTensor(TensorInfo(name, "F32", values.shape), lambda: iter([values]))
