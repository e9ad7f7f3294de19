"""Fills in what a recipe leaves open, from the data."""

import math
from collections.abc import Sequence

from finetune.examples import Example
from finetune.packing import pack, row_capacity
from finetune.recipe import Recipe
from finetune.trainer import Schedule

_FEW_UPDATES = 100  # fewer teach a small data set badly
_MOST_EPOCHS = 10
_DEFAULT_EPOCHS = 3
_BATCH_TOKENS = (512, 8192)


def batch_tokens(recipe: Recipe, examples: Sequence[Example]) -> int:
    """Positions of an update: as many as leave some hundred updates in three epochs, within bounds."""
    if recipe.batch_tokens is not None:
        return recipe.batch_tokens
    total = sum(len(example.tokens) for example in examples)
    smallest, largest = _BATCH_TOKENS
    return int(min(largest, max(smallest, _DEFAULT_EPOCHS * total / _FEW_UPDATES)))


def capacity_of(recipe: Recipe, examples: Sequence[Example], *, packed: bool) -> int:
    """Positions of a row."""
    lengths = [len(example.tokens) - 1 for example in examples]
    if not packed:
        return -(-max(lengths) // 64) * 64
    return row_capacity(lengths, recipe.max_length)


def schedule_of(
    recipe: Recipe, examples: Sequence[Example], *, capacity: int, rows: int, wanted: int, packed: bool, has_valid: bool
) -> Schedule:
    """When things happen.

    Args:
        recipe: Says what it wants.
        examples: Of training.
        capacity: Positions of a row.
        rows: Of a batch.
        wanted: Positions of an update.
        packed: Several documents share a row.
        has_valid: There are held-out rows.
    """
    lengths = [len(example.tokens) - 1 for example in examples]
    n_rows = len(pack(lengths, capacity)) if packed else len(lengths)
    n_batches = -(-n_rows // rows)
    accumulate = max(1, round(wanted / (rows * capacity)))
    per_epoch = max(1, n_batches / accumulate)
    if recipe.steps is not None:
        n_steps = recipe.steps
    else:
        epochs = recipe.epochs or min(_MOST_EPOCHS, max(_DEFAULT_EPOCHS, math.ceil(_FEW_UPDATES / per_epoch)))
        n_steps = max(1, math.ceil(epochs * per_epoch))
    every = max(1, n_steps // 10)
    return Schedule(
        n_steps=n_steps,
        accumulate=accumulate,
        eval_every=(recipe.eval_every or every) if has_valid else 0,
        save_every=recipe.save_every or every,
        patience=recipe.patience,
    )
