"""Streams of one processor, each with its own documents of a batch.

MLX's CPU backend computes one operation after the other, and only matrix products use several cores. Documents that
are computed on streams of their own keep all cores busy with everything else too. MLX takes the operations of an
evaluation in the order of a search through its graph, and works on a few of them at a time; a search in depth would
come to the second stream when the first is done, so its breadth is made as large as the graph.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from finetune.packing import Batch
from localllm.machine import read_machine, set_blas_threads

_BREADTH = "MLX_BFS_MAX_WIDTH"
_WIDER_THAN_ANY_GRAPH = "1000000"


@dataclass(frozen=True)
class Lanes:
    """The streams.

    Attributes:
        streams: None: everything is computed on the default stream.
        n_threads: Cores that they share; 0 on a GPU.
    """

    streams: tuple[mx.Stream, ...] = ()
    n_threads: int = 0

    @property
    def n_rows(self) -> int:
        """Rows of a batch that give every lane one."""
        return max(1, len(self.streams))

    def first(self, n: int) -> "Lanes":
        """Exactly ``n`` lanes, however many cores there are: other sums would differ in their last bits.

        One is none, the default stream.
        """
        more = (mx.new_stream(mx.cpu) for _ in range(len(self.streams), n))
        return Lanes((*self.streams[:n], *more) if n > 1 else (), self.n_threads)

    def split(self, batch: Batch, *, packed: bool) -> Sequence[tuple[mx.Stream | None, Batch]]:
        """A part of ``batch`` for each lane that gets one. What it is used for is to be computed before the next split.

        Matrix products get the cores that are left for each part.

        Args:
            batch: All of it.
            packed: A row may hold several documents: each lane gets one row, as long as its documents. Else a lane
                gets rows as they are.
        """
        n = len(self.streams)
        parts = [batch]
        if n:
            parts = _documents(batch, n) if packed else [batch.every(i, n) for i in range(min(n, len(batch.inputs)))]
        if self.n_threads:
            set_blas_threads(max(1, self.n_threads // len(parts)))
        return list(zip(self.streams or (None,), parts, strict=False))


def _documents(batch: Batch, n: int) -> list[Batch]:
    """At most ``n`` batches of one row with about as many positions each, and no padding."""
    spans = [
        (row, np.flatnonzero(segments == number))
        for row, segments in enumerate(batch.segments)
        for number in range(1, segments.max() + 1)
    ]
    dealt: list[list[int]] = [[] for _ in range(n)]
    loads = [0] * n
    for index in sorted(range(len(spans)), key=lambda i: (-len(spans[i][1]), i)):
        lightest = loads.index(min(loads))
        dealt[lightest].append(index)
        loads[lightest] += len(spans[index][1])
    return [_one_row(batch, [spans[i] for i in sorted(indices)]) for indices in dealt if indices] or [batch]


def _one_row(batch: Batch, spans: list[tuple[int, Any]]) -> Batch:
    def row(of: Any) -> Any:
        return np.concatenate([of[number][places] for number, places in spans])[None]

    segments = np.concatenate([np.full(len(places), i, np.int32) for i, (_, places) in enumerate(spans, 1)])
    return Batch(row(batch.inputs), row(batch.targets), segments[None], row(batch.supervised))


def open_lanes(n_threads: int) -> Lanes:
    """A lane for each core where MLX computes on the processor; none on a GPU. Call it before MLX computes anything.

    Args:
        n_threads: Cores to use; 0 takes all fast ones.
    """
    if mx.default_device() != mx.cpu:
        return Lanes()
    os.environ[_BREADTH] = _WIDER_THAN_ANY_GRAPH
    n_lanes = n_threads or read_machine().performance_cores
    return Lanes(n_threads=n_lanes).first(n_lanes)
