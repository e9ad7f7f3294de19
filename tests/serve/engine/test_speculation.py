"""How many tokens are guessed for whom."""

import pytest

from serve.engine.costs import StepCosts
from serve.engine.lookup import Lookup
from serve.engine.prefix import as_tokens
from serve.engine.request import Job, Running
from serve.engine.speculation import MAX_GUESSING, Speculation
from serve.engine.text import TextStream
from tests.fakes.backend import FakeChain

QUOTING = (*range(100), *range(40))


def request(tokens=QUOTING, **more):
    job = Job(1, tuple(tokens[:-1]), **more)
    running = Running(job, list(tokens), FakeChain(), TextStream(()), Lookup(), as_tokens(job.prompt), 0.0)
    running.n_past = len(tokens) - 1
    return running


def taught(seconds, max_guess=16, n_steps=2000):
    """What has seen steps of every width, and so many plain ones of each number of streams."""
    costs = StepCosts()
    for n_rows in range(1, 70):
        costs.learn(n_rows, seconds(n_rows))
    speculation = Speculation(max_guess, costs=costs)
    for n_streams in range(1, MAX_GUESSING + 1):
        for _ in range(n_steps):
            speculation.learn(n_streams, n_streams, 0, seconds(n_streams))
    return speculation


def guessed(speculation, *requests, room=500, n_ctx=4096):
    speculation.guess(requests, room, n_ctx)
    return [len(request.guesses) for request in requests]


def test_rows_that_cost_nothing_are_all_used():
    assert guessed(taught(lambda rows: 1.0), request()) == [16]


def test_rows_that_cost_a_step_each_are_not_used():
    assert guessed(taught(lambda rows: float(rows)), request()) == [0]


def test_the_length_follows_the_cost():
    # From eight rows on a better kernel takes over: two to seven rows never pay.
    speculation = taught(lambda rows: float(rows) if rows < 8 else 5.0 if rows <= 12 else 50.0)
    assert guessed(speculation, request()) == [11]


def test_streams_share_what_pays():
    speculation = taught(lambda rows: 1.0 if rows <= 20 else 100.0)
    assert guessed(speculation, request(), request()) == [16, 2]


def test_nothing_is_guessed_for_many_or_before_a_step_was_measured():
    speculation = taught(lambda rows: 1.0)
    assert guessed(speculation, *(request() for _ in range(MAX_GUESSING + 1))) == [0] * (MAX_GUESSING + 1)
    assert guessed(Speculation(16), request()) == [0]
    assert guessed(taught(lambda rows: 1.0, max_guess=0), request()) == [0]


@pytest.mark.parametrize(
    ("room", "n_ctx", "max_tokens", "wanted"),
    [(5, 4096, None, 5), (500, len(QUOTING) + 4, None, 3), (500, 4096, 6, 4), (500, 4096, 1, 0), (0, 4096, None, 0)],
)
def test_limits(room, n_ctx, max_tokens, wanted):
    asked = request(max_tokens=max_tokens)
    assert guessed(taught(lambda rows: 1.0), asked, room=room, n_ctx=n_ctx) == [wanted]
    assert asked.guesses == list(range(40, 40 + wanted))


def test_where_a_grammar_speaks_the_text_is_not_asked():
    class Forcing:
        def forced(self):
            return [7] * 50

    asked = request(matcher=Forcing())
    assert guessed(taught(lambda rows: 1.0), asked) == [32]
    assert guessed(taught(lambda rows: 1.0), request(matcher=Forcing(), max_tokens=5)) == [3]


def test_now_and_then_a_step_without_guesses_renews_what_they_are_compared_with():
    speculation = taught(lambda rows: 1.0)
    lengths = [guessed(speculation, request()) for _ in range(40)]
    assert 1 <= lengths.count([0]) <= 3


def test_nothing_is_guessed_before_it_was_earned():
    # A wide step costs five plain ones more: it is tried once a hundred times that was spent without guesses.
    def step(rows):
        return 1.0 if rows == 1 else 6.0

    assert guessed(taught(step, n_steps=400), request(QUOTING)) == [0]
    assert guessed(taught(step, n_steps=600), request(QUOTING)) == [16]


def drive(step, right, n_steps, n_streams=1):
    """Seconds of all steps, and what the same tokens would have taken without guesses.

    ``right`` tells of a step how many of its guesses are right.
    """
    costs = StepCosts()
    speculation = Speculation(16, costs=costs)
    spent, tokens = 0.0, 0
    for number in range(n_steps):
        n_rows = n_streams + sum(guessed(speculation, *(request() for _ in range(n_streams))))
        n_right = min(right(number), n_rows - n_streams)
        seconds = step(n_rows)
        spent += seconds
        tokens += n_streams + n_right
        speculation.learn(n_streams, n_rows, n_right, seconds)
        costs.learn(n_rows, seconds)
    return spent, tokens * step(n_streams) / n_streams


def two_cores(rows):
    """Milliseconds of the starter model on two cores: two to six rows cost a step each (docs/LOG.md)."""
    return {1: 7.8, 2: 15.8, 3: 24.0, 4: 33.0, 5: 41.0, 6: 48.0}.get(rows, 30.0 + 2.6 * (rows - 6))


@pytest.mark.parametrize("n_streams", [1, 2, 3, 4])
@pytest.mark.parametrize("step", [two_cores, lambda rows: 5.0 + 0.2 * rows, float])
def test_guesses_that_are_always_wrong_cost_one_in_a_hundred_at_most(n_streams, step):
    spent, plain = drive(step, lambda number: 0, 3000, n_streams)
    assert spent <= 1.01 * plain


def test_guesses_that_turn_wrong_are_given_up():
    good, plain_of_good = drive(two_cores, lambda number: 16, 500)
    assert good < plain_of_good / 1.3, "while they are right they pay"
    spent, plain = drive(two_cores, lambda number: 16 if number < 500 else 0, 4000)
    saved_up = 9 * two_cores(1)
    assert spent - good <= 1.01 * (plain - plain_of_good) + saved_up


def test_guesses_that_are_right_pay_where_wide_steps_are_cheap():
    spent, plain = drive(lambda rows: 5.0 + 0.2 * rows, lambda number: 16, 2000)
    assert spent < plain / 4
