"""Gradient checkpointing for some of a model's blocks, while a step runs and no longer.

A checkpointed block keeps its input only and is computed again in the backward pass. Every second block saves half of
the memory for half of the extra work.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import mlx.core as mx
import mlx.nn as nn


def chosen(blocks: Sequence[nn.Module], which: str) -> list[nn.Module]:
    """The blocks to compute again: ``none``, ``alternate`` or ``all``."""
    return {"none": [], "alternate": list(blocks[::2]), "all": list(blocks)}[which]


@contextmanager
def recomputed(blocks: Sequence[nn.Module]) -> Iterator[None]:
    """Within it these blocks, and no others of their class, are checkpointed."""
    ids = {id(block) for block in blocks}
    classes = {type(block) for block in blocks}
    originals = {cls: cls.__call__ for cls in classes}
    for cls in classes:
        cls.__call__ = _checkpointing(originals[cls], ids)
    try:
        yield
    finally:
        for cls, call in originals.items():
            cls.__call__ = call


def _checkpointing(call: Any, ids: set[int]) -> Any:
    def forward(block: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if id(block) not in ids:
            return call(block, *args, **kwargs)

        # Trainable weights must be arguments: what a checkpointed function closes over gets no gradient. Arguments that
        # are no arrays (a mask that is a description) have no gradient, and mx.checkpoint takes none.
        def inner(parameters: Any, arrays: list[mx.array]) -> Any:
            block.update(parameters)
            left = iter(arrays)
            return call(block, *(next(left) if isinstance(arg, mx.array) else arg for arg in args), **kwargs)

        arrays = [arg for arg in args if isinstance(arg, mx.array)]
        return mx.checkpoint(inner)(block.trainable_parameters(), arrays)

    return forward
