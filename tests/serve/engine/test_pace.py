"""How long slices of prompts are while others decode."""

import pytest

from serve.engine.costs import StepCosts
from serve.engine.pace import Pace


def settled(fixed, per_row, per_token, n_decoding, n_reading=1, steps=60, pace=None):
    """The slice on a machine whose steps take so many seconds, so many a row that decodes, and a token of a prompt."""
    costs = StepCosts()
    pace = Pace(costs)
    for _ in range(steps):
        for n in (n_decoding, n_decoding + n_reading):
            costs.learn(n, fixed + per_row * n)
        n = pace.slice(n_decoding, n_reading)
        pace.learn(n_decoding, n, fixed + per_row * n_decoding + per_token * n)
    return pace.slice(n_decoding, n_reading)


@pytest.mark.parametrize(
    ("fixed", "per_row", "per_token", "n_decoding", "wanted"),
    [
        (0.030, 0.0038, 0.0038, 4, 17),  # two cores
        (0.020, 0.0002, 0.0002, 4, 156),  # a small GPU
        (0.005, 0.0100, 0.0100, 1, 16),  # a slow core: never less than 16
    ],
)
def test_a_slice_takes_about_as_long_as_the_budget(fixed, per_row, per_token, n_decoding, wanted):
    assert settled(fixed, per_row, per_token, n_decoding) == pytest.approx(wanted, abs=2)


def test_where_many_wait_for_their_next_token_a_slice_is_shorter():
    def longer(n):
        plain = 0.03 + 0.004 * n
        return (plain + 0.001 * settled(0.03, 0.004, 0.001, n)) / plain

    assert longer(4) == pytest.approx(2.5, abs=0.05)
    assert longer(10) == pytest.approx(2.0, abs=0.05)
    assert longer(40) == pytest.approx(1.5, abs=0.05)


def test_where_many_prompts_wait_nobody_is_spared_more_than_all_will_wait():
    alone, crowd = settled(0.03, 0.004, 0.001, 1), settled(0.03, 0.004, 0.001, 1, n_reading=15)
    assert 0.001 * alone == pytest.approx(1.5 * 0.034, abs=0.002)
    assert 0.034 + 0.001 * crowd == pytest.approx(1.25 * (0.03 + 0.004 * 16), abs=0.002)


def test_it_starts_carefully_and_follows_a_change_up_at_once_and_down_slowly():
    costs = StepCosts()
    pace = Pace(costs)
    assert pace.slice(1, 1) == 64
    costs.learn(1, 0.05)
    assert pace.slice(1, 1) == 64, "no slice was measured yet"
    for _ in range(20):
        pace.learn(1, 64, 0.05 + 64 * 0.001)
    cheap = pace.slice(1, 1)
    for _ in range(3):
        pace.learn(1, 64, 0.05 + 64 * 0.004)
    assert pace.slice(1, 1) < cheap / 3
    for _ in range(3):
        pace.learn(1, 64, 0.05 + 64 * 0.001)
    assert pace.slice(1, 1) < cheap / 2


def test_what_many_streams_took_is_not_taken_for_what_one_takes():
    # A step of sixteen took as long as one stream beside a slice does: their difference is no price of a token.
    costs = StepCosts()
    pace = Pace(costs)
    for _ in range(3):
        costs.learn(16, 0.17)
        costs.learn(1, 0.014)
        pace.learn(1, 32, 0.175)
    assert pace.slice(1, 1) <= 40


def test_a_step_that_was_faster_than_thought_teaches_little():
    costs = StepCosts()
    pace = Pace(costs)
    costs.learn(1, 0.05)
    for _ in range(10):
        pace.learn(1, 32, 0.05 + 32 * 0.002)
    before = pace.slice(1, 1)
    pace.learn(1, 32, 0.01)
    assert before <= pace.slice(1, 1) <= 1.2 * before


def test_a_slice_beside_other_work():
    pace = Pace(StepCosts())
    assert pace.tokens_in(0.1) == 64
    pace.learn(0, 100, 0.1)
    assert pace.tokens_in(0.05) == 50
