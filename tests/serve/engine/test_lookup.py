"""Guessing tokens from the text so far."""

from serve.engine.lookup import Lookup


def test_what_followed_before_is_guessed():
    lookup = Lookup(8)
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3], 8) == [4, 5, 6, 7]
    assert lookup.guess([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9], 8) == []


def test_the_latest_place_counts():
    assert Lookup(8).guess([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3], 1) == [5]


def test_limits():
    tokens = [1, 2, 3, 4, 5, 6, 7, 1, 2, 3]
    assert Lookup(8).guess(tokens, 2) == [4, 5]
    assert Lookup(8).guess(tokens, 0) == []
    assert Lookup(0).guess(tokens, 8) == []
    assert Lookup(8).guess([1, 2], 8) == []


def test_luck_lengthens_a_guess_and_bad_luck_silences_it():
    tokens = [*range(40), 0, 1, 2]
    lookup = Lookup(16)
    for wanted in (4, 8, 16, 16):
        guess = lookup.guess(tokens, 99)
        assert len(guess) == wanted
        lookup.learn(len(guess), len(guess))
    silent = 0
    for _ in range(60):
        guess = lookup.guess(tokens, 99)
        silent += not guess
        lookup.learn(len(guess), 0)
    assert silent > 30
    assert lookup.guess(tokens, 99) or silent < 60, "it tries again"
