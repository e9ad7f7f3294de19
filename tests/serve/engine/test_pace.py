"""How long slices of prompts are while others decode."""

import pytest

from serve.engine.costs import StepCosts
from serve.engine.pace import Pace, longest_slice


def settled(fixed, per_row, n_decoding, n_reading=1, steps=60):
    """The slice on a machine whose steps take so many seconds, and so many a row."""
    costs = StepCosts()
    pace = Pace(costs)
    for _ in range(steps):
        for n_rows in (n_decoding, n_decoding + pace.slice(n_decoding, n_reading)):
            costs.learn(n_rows, fixed + per_row * n_rows)
    return pace.slice(n_decoding, n_reading)


@pytest.mark.parametrize(
    ("fixed", "per_row", "n_decoding", "wanted"),
    [
        (0.030, 0.0038, 4, 16),  # two cores: a step of four takes 45 ms, a slice of 1.5 times that has 17 rows
        (0.020, 0.0002, 4, 140),  # a small GPU
        (0.005, 0.0100, 1, 16),  # a processor of one slow core: never less than 16
    ],
)
def test_a_slice_takes_about_as_long_as_the_budget(fixed, per_row, n_decoding, wanted):
    assert settled(fixed, per_row, n_decoding) == pytest.approx(wanted, abs=16)


def test_where_many_wait_for_their_next_token_a_slice_is_shorter():
    steps = {n: (0.03 + 0.004 * (n + settled(0.03, 0.004, n))) / (0.03 + 0.004 * n) for n in (4, 15)}
    assert steps[4] == pytest.approx(2.5, abs=0.3)
    assert steps[15] == pytest.approx(1.8, abs=0.3)


def test_where_many_prompts_wait_nobody_is_spared_more_than_all_will_wait():
    alone, crowd = settled(0.03, 0.004, 1), settled(0.03, 0.004, 1, n_reading=15)
    plain, of_all = 0.03 + 0.004, 0.03 + 0.004 * 16
    assert 0.03 + 0.004 * (1 + alone) <= 2.5 * plain + 0.004 * 16
    assert 0.03 + 0.004 * (1 + crowd) == pytest.approx(1.5 * of_all, abs=0.033)


def test_it_starts_carefully_and_follows_a_change():
    costs = StepCosts()
    pace = Pace(costs)
    assert pace.slice(1, 1) == 64
    costs.learn(1, 0.05)
    assert pace.slice(1, 1) == 64, "nothing wider is known"
    for _ in range(3):
        costs.learn(65, 0.3)
    slow = pace.slice(1, 1)
    for _ in range(3):
        costs.learn(65, 0.06)
    assert pace.slice(1, 1) > 4 * slow


def test_what_many_streams_took_is_not_taken_for_what_one_takes():
    # A step of sixteen, then one stream beside a slice: the difference of the two is no price of a row.
    costs = StepCosts()
    for _ in range(3):
        costs.learn(16, 0.17)
        costs.learn(1, 0.014)
        costs.learn(33, 0.175)
    assert Pace(costs).slice(1, 1) <= 24


def test_a_slice_beside_other_work():
    costs = StepCosts()
    assert longest_slice(costs, 0, 0.1) == 64
    costs.learn(100, 0.1)
    assert longest_slice(costs, 0, 0.05) == pytest.approx(50, abs=8)
