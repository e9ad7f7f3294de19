"""How long slices of prompts are while others decode."""

import pytest

from serve.engine.pace import Pace


def settle(pace, decode, rate, steps=60):
    for _ in range(steps):
        pace.learn(4, 0, decode)
        n = pace.slice()
        pace.learn(4, n, decode + n / rate)
    return pace.slice()


@pytest.mark.parametrize(("decode", "rate", "wanted"), [(0.045, 264, 17), (0.02, 5000, 150), (0.01, 100, 16)])
def test_a_slice_takes_about_as_long_as_the_budget(decode, rate, wanted):
    assert settle(Pace(), decode, rate) == pytest.approx(wanted, abs=1)


def test_it_starts_carefully_and_follows_a_change():
    pace = Pace()
    assert pace.slice() == 64
    slow = settle(pace, 0.04, 250)
    assert settle(pace, 0.04, 4000) > 10 * slow


def test_a_step_that_was_faster_than_thought_teaches_nothing_wrong():
    pace = Pace()
    pace.learn(1, 0, 0.05)
    pace.learn(1, 32, 0.04)
    assert pace.slice() == 64
