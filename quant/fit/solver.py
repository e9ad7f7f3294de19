"""The multiple-choice knapsack: one option for each item, the least cost within a budget, exactly.

Dynamic programming over bytes (Dudziński and Walukiewicz, 1987), in units of the greatest common divisor of all sizes.
The sizes of tensors share a large one (whole rows of whole blocks), so the table is small and nothing is rounded. Where
it would be too large all the same, sizes are rounded up to a coarser unit: the choice still fits, and a second solution
with sizes rounded down bounds from below what any choice can cost.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localllm.errors import MemoryFitError

_MAX_UNITS = 1 << 18

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Option:
    """One way to store an item.

    Attributes:
        n_bytes: What it takes.
        cost: What it costs in quality; at least 0.
    """

    n_bytes: int
    cost: float


@dataclass(frozen=True)
class Solution:
    """A choice.

    Attributes:
        chosen: For each item the index of its option.
        n_bytes: Together.
        cost: Together.
        lower_bound: No choice within the budget costs less; equal to ``cost`` where nothing was rounded.
    """

    chosen: tuple[int, ...]
    n_bytes: int
    cost: float
    lower_bound: float


def solve(items: Sequence[Sequence[Option]], budget: int, *, max_units: int = _MAX_UNITS) -> Solution:
    """Choose one option for each item so that the bytes are at most ``budget`` and the cost is least.

    Args:
        items: The options of each, at least one.
        budget: Bytes.
        max_units: The most columns of the table; with fewer than needed, sizes are rounded.

    Raises:
        MemoryFitError: Not even the smallest options fit.
    """
    least = sum(min(option.n_bytes for option in options) for options in items)
    if least > budget:
        raise MemoryFitError(
            f"At its smallest the model takes {least:,} bytes, and {budget:,} are left for it.",
            "Give it more memory, a shorter context (--ctx), or take a smaller model.",
        )
    # Each item's smallest is spent in any case: the table is over what is left.
    floors = [min(option.n_bytes for option in options) for options in items]
    spare = min(budget, sum(max(option.n_bytes for option in options) for options in items)) - least
    unit = math.gcd(*(option.n_bytes - low for low, options in zip(floors, items, strict=True) for option in options))
    unit = max(unit, 1)
    if spare // unit <= max_units:
        chosen, _ = _table(items, floors, spare // unit, unit, round_up=True)
        bound = None
    else:
        unit = -(-spare // max_units)
        chosen, _ = _table(items, floors, spare // unit, unit, round_up=True)
        _, bound = _table(items, floors, -(-spare // unit), unit, round_up=False)
    picked = [options[index] for options, index in zip(items, chosen, strict=True)]
    cost = math.fsum(option.cost for option in picked)
    n_bytes = sum(option.n_bytes for option in picked)
    return Solution(tuple(chosen), n_bytes, cost, cost if bound is None else min(bound, cost))


def _table(
    items: Sequence[Sequence[Option]], floors: Sequence[int], n_units: int, unit: int, *, round_up: bool
) -> tuple[list[int], float]:
    """Fill the table and read the choice back; also the least cost."""
    best = np.zeros(n_units + 1)  # by units spent at most
    rows: list[Array] = []
    for options, floor in zip(items, floors, strict=True):
        reached = np.full(n_units + 1, np.inf)
        picked = np.zeros(n_units + 1, np.uint8)
        for index, option in enumerate(options):
            extra = option.n_bytes - floor
            weight = -(-extra // unit) if round_up else extra // unit
            if weight > n_units:
                continue
            costs = best[: n_units + 1 - weight] + option.cost
            better = costs < reached[weight:]
            reached[weight:][better] = costs[better]
            picked[weight:][better] = index
        best = reached
        rows.append(picked)
    chosen = []
    left = n_units
    for options, floor, picked in zip(reversed(items), reversed(floors), reversed(rows), strict=True):
        index = int(picked[left])
        extra = options[index].n_bytes - floor
        left -= -(-extra // unit) if round_up else extra // unit
        chosen.append(index)
    return chosen[::-1], float(best[-1])
