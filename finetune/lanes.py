"""Streams of one processor, each with its own rows of a batch.

MLX's CPU backend computes one operation after the other, and only matrix products use several cores. Rows that are
computed on streams of their own keep all cores busy with everything else too. MLX takes the operations of an
evaluation in the order of a search through its graph, and works on a few of them at a time; a search in depth would
come to the second stream when the first is done, so its breadth is made as large as the graph.
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

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

        One is none, the default stream. Each lane's matrix products get its share of the cores.
        """
        if self.n_threads:
            set_blas_threads(max(1, self.n_threads // n))
        more = (mx.new_stream(mx.cpu) for _ in range(len(self.streams), n))
        return Lanes((*self.streams[:n], *more) if n > 1 else (), self.n_threads)

    def split(self, batch: Batch) -> Sequence[tuple[mx.Stream | None, Batch]]:
        """The rows of ``batch`` for each lane; lanes without a row are left out."""
        if not self.streams:
            return [(None, batch)]
        n = len(self.streams)
        return [(stream, batch.every(i, n)) for i, stream in enumerate(self.streams) if i < len(batch.inputs)]


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
