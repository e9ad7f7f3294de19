"""The exact choice: never worse than trying everything."""

import itertools

import numpy as np
import pytest

from localllm.errors import MemoryFitError
from quant.fit.solver import Option, solve


def _random_items(rng, n_items, unit):
    return [
        [
            Option(int(size) * unit, float(cost))
            for size, cost in zip(rng.integers(1, 40, n_options), rng.integers(0, 1000, n_options) / 64, strict=True)
        ]
        for n_options in rng.integers(1, 5, n_items)
    ]


def _brute_force(items, budget):
    costs = [
        sum(option.cost for option in choice)
        for choice in itertools.product(*items)
        if sum(option.n_bytes for option in choice) <= budget
    ]
    return min(costs, default=None)


@pytest.mark.parametrize("unit", [1, 96])
def test_it_is_the_best_of_all_choices(unit):
    rng = np.random.default_rng(7)
    n_impossible = 0
    for _ in range(150):
        items = _random_items(rng, int(rng.integers(1, 7)), unit)
        budget = int(rng.integers(1, 160)) * unit
        best = _brute_force(items, budget)
        if best is None:
            n_impossible += 1
            with pytest.raises(MemoryFitError):
                solve(items, budget)
            continue
        found = solve(items, budget)
        picked = [options[index] for options, index in zip(items, found.chosen, strict=True)]
        assert found.cost == best == found.lower_bound == sum(option.cost for option in picked)
        assert found.n_bytes == sum(option.n_bytes for option in picked) <= budget
    assert 0 < n_impossible < 100


def test_rounded_it_still_fits_and_the_bound_holds():
    rng = np.random.default_rng(8)
    n_gaps = 0
    for _ in range(100):
        items = [*_random_items(rng, 5, 997), [Option(1, 5.0), Option(2, 0.0)]]
        budget = int(rng.integers(60, 140)) * 997
        best = _brute_force(items, budget)
        if best is None:
            continue
        found = solve(items, budget, max_units=50)
        assert found.n_bytes <= budget
        assert found.lower_bound <= best <= found.cost
        n_gaps += found.lower_bound < found.cost
    assert n_gaps


def test_more_than_enough_takes_the_best_of_each():
    items = [[Option(10, 3.0), Option(100, 0.5)], [Option(7, 1.0), Option(70, 0.0)]]
    assert solve(items, 10**12).chosen == (1, 1)
    with pytest.raises(MemoryFitError, match="17 bytes"):
        solve(items, 16)
