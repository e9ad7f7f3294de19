"""How many tokens are guessed for whom."""

import pytest

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


def taught(seconds, max_guess=16):
    speculation = Speculation(max_guess)
    for n_rows in range(1, 70):
        speculation.learn(n_rows, seconds(n_rows))
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
    for _ in range(3):
        speculation.learn(1, 0.01)  # a single row has become cheap
    assert guessed(speculation, request()) == [0]
