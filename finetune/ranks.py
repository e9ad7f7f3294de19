"""Several processes that train one model together, started by MLX's own ``mlx.launch``."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_map

from finetune.packing import Batch


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number.
        size: How many there are; 1 alone.
    """

    rank: int = 0
    size: int = 1

    @classmethod
    def join(cls) -> "Ranks":
        """The group that this process was started in."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size())

    def share(self, batch: Batch) -> Batch:
        """This rank's rows of a batch that all ranks have made alike. A rank without a row gets one of padding."""
        if self.size == 1:
            return batch
        rows = slice(self.rank, None, self.size)
        if self.rank < len(batch.inputs):
            return Batch(batch.inputs[rows], batch.targets[rows], batch.segments[rows], batch.supervised[rows])
        nothing = np.zeros_like(batch.inputs[:1])
        return Batch(nothing, nothing, nothing, nothing.astype(np.bool_))

    def sum(self, tree: Any) -> Any:
        """Every array of ``tree`` summed over the ranks."""
        if self.size == 1:
            return tree
        return tree_map(mx.distributed.all_sum, tree)
