"""Several processes that train one model together, started by MLX's own ``mlx.launch``.

All make the same batches and each computes its own rows of them; losses and gradients are summed once an update. What
only one can decide (the layout, where to begin) is decided by rank 0 and told to the others.
"""

import json
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten, tree_unflatten

from finetune.packing import Batch

_MESSAGE_BYTES = 32 << 20
_IDLE = 32  # positions of the padding that a rank without a row computes


@dataclass
class Ranks:
    """This process among those that train together.

    Attributes:
        rank: Its number; 0 leads.
        size: How many there are; 1 alone.
    """

    rank: int = 0
    size: int = 1
    _turn: int = field(default=0, init=False, repr=False)

    @classmethod
    def join(cls) -> "Ranks":
        """The group that this process was started in by ``mlx.launch``."""
        group = mx.distributed.init(strict=True)
        return cls(group.rank(), group.size())

    @property
    def leads(self) -> bool:
        """Whether it is the one that tells, saves and decides."""
        return self.rank == 0

    def share(self, batch: Batch) -> Batch:
        """This rank's rows of a batch that all ranks have made alike. A rank without a row gets a bit of padding.

        Rows are dealt out in turn through all batches of an update, so that batches of one row keep all busy too.
        """
        if self.size == 1:
            return batch
        first = (self.rank - self._turn) % self.size
        self._turn += len(batch.inputs)
        if first < len(batch.inputs):
            return batch.every(first, self.size)
        nothing = np.zeros_like(batch.inputs[:1, :_IDLE])
        return Batch(nothing, nothing, nothing, nothing.astype(np.bool_))

    def sum(self, tree: Any) -> Any:
        """Every array of ``tree`` summed over the ranks. It ends an update: the next deals out from rank 0 on."""
        if self.size == 1:
            return tree
        self._turn = 0  # a run that goes on must share its rows as it would have, to the last bit
        parts = tree_flatten(tree)
        return tree_unflatten(list(zip([name for name, _ in parts], _sums([part for _, part in parts]), strict=True)))

    def least(self, number: int) -> int:
        """The smallest of every rank's ``number``."""
        if self.size == 1:
            return number
        return min(int(part) for part in _gather(np.array([number], np.int64)))

    def told(self, record: dict[str, Any] | None) -> dict[str, Any]:
        """What rank 0 gave, as it comes back from JSON; what others give is not looked at."""
        if self.size == 1:
            assert record is not None
            return record
        text = json.dumps(record).encode() if self.leads else b""
        length = max(int(n) for n in _gather(np.array([len(text)], np.int64)))
        padded = np.frombuffer(text.ljust(length), np.uint8)
        found: dict[str, Any] = json.loads(_gather(padded)[:length].tobytes())
        return found

    def spread(self, tree: Any) -> Any:
        """``tree`` as rank 0 has it, to the last bit; all have arrays of the same names, shapes and types."""
        if self.size == 1:
            return tree
        found = []
        for name, value in sorted(tree_flatten(tree)):
            of_all = mx.distributed.all_gather(value.reshape(-1))
            found.append((name, of_all[: value.size].reshape(value.shape)))
            mx.eval(found[-1][1])
        return tree_unflatten(found)


def _sums(parts: list[mx.array]) -> list[mx.array]:
    """Each summed over the ranks, many in one message: an adapter is hundreds of small matrices."""
    found: list[mx.array] = []
    group: list[mx.array] = []
    for part in [*parts, None]:
        if part is not None and (not group or part.dtype == group[0].dtype) and _n_bytes(group) < _MESSAGE_BYTES:
            group.append(part)
            continue
        whole = mx.distributed.all_sum(mx.concatenate([one.reshape(-1) for one in group]))
        pieces = mx.split(whole, list(accumulate(one.size for one in group))[:-1])
        found += [piece.reshape(one.shape) for piece, one in zip(pieces, group, strict=True)]
        group = [part] if part is not None else []
    return found


def _n_bytes(parts: list[mx.array]) -> int:
    return sum(part.nbytes for part in parts)


def _gather(part: np.ndarray[Any, np.dtype[Any]]) -> np.ndarray[Any, np.dtype[Any]]:
    """The parts of all ranks, one after another."""
    return np.array(mx.distributed.all_gather(mx.array(part)))
