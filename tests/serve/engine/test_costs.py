"""What a step costs, by its rows."""

import pytest

from serve.engine.costs import StepCosts


def test_what_was_measured_what_lies_between_and_what_lies_beyond():
    costs = StepCosts()
    assert costs.seconds(1) == 0
    costs.learn(1, 1.0)
    assert costs.seconds(1) == 1
    assert 1 < costs.seconds(17) < 5, "wide batches are hoped to be cheap until they are tried"
    costs.learn(17, 9.0)
    assert costs.seconds(9) == pytest.approx(5)
    assert costs.seconds(25) > 9
    costs.learn(5, 5.0)
    assert costs.seconds(3) == pytest.approx(3)
    assert costs.seconds(11) == pytest.approx(7)


def test_steps_narrower_than_any_measured_are_hoped_to_be_cheap():
    costs = StepCosts()
    costs.learn(5, 10.0)
    assert costs.seconds(1) == pytest.approx(2)


def test_a_hiccup_is_forgiven():
    costs = StepCosts()
    for seconds in (1.0, 50.0, 1.1, 0.9, 1.0):
        costs.learn(4, seconds)
    assert costs.seconds(4) == 1


def test_what_is_not_renewed_is_forgotten():
    costs = StepCosts()
    costs.learn(16, 100.0)
    for _ in range(4000):
        costs.learn(1, 1.0)
    assert costs.seconds(16) < 10
    assert costs.seconds(1) == 1
