"""What is parked gives way where many run."""

import pytest

from serve.engine.lookup import Lookup
from serve.engine.parking import Parking
from serve.engine.prefix import Parked, as_tokens
from serve.engine.request import Job, Running
from serve.engine.text import TextStream
from tests.fakes.backend import FakeBackend, FakeChain

OWNER = ("", ())


def running(n, length=100):
    def one(number):
        tokens = [number, *range(length - 1)]
        return Running(
            Job(number, tuple(tokens)), tokens, FakeChain(), TextStream(()), Lookup(), as_tokens(tokens), 0.0
        )

    return [one(number) for number in range(n)]


@pytest.fixture
def parking():
    made = Parking(FakeBackend(n_seq=32), list(range(16, 32)), 16, None)
    for number, length in enumerate([100, 100, 600, 100, 100]):
        tokens = as_tokens([1000 + number, *range(length - 1)])
        made.park(Parked(number, tokens, OWNER, float(number)))
    return made


def test_beside_a_few_everything_stays(parking):
    parking.make_way(running(7))
    assert parking.n_tokens == 1000


def test_beside_many_the_oldest_short_ones_go_and_long_ones_stay(parking):
    parking.make_way(running(8))  # they hold 800 tokens: a quarter of that may be parked in short sequences
    assert parking.n_tokens == 600 + 200
    kept = [sequence.tokens[0] for sequence in parking._parked]
    assert kept == [1002, 1003, 1004]


def test_beside_many_long_ones_everything_stays(parking):
    parking.make_way(running(16))
    assert parking.n_tokens == 1000
