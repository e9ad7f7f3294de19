"""Guessing tokens from the text so far."""

import random

from serve.engine.lookup import Lookup


def after(tokens):
    lookup = Lookup()
    lookup.follow(tokens)
    return lookup


def test_what_followed_before_is_guessed():
    lookup = after([1, 2, 3, 4, 5, 6, 7, 1, 2, 3])
    assert lookup.guess(4) == [4, 5, 6, 7]
    assert len(lookup.chances(4)) == 4
    other = after([1, 2, 3, 4, 5, 6, 7, 1, 2, 3, 9])
    assert other.guess(4) == other.chances(4) == []


def test_the_longest_match_counts_and_of_equals_the_latest():
    assert after([9, 1, 2, 3, 4, 8, 1, 2, 3, 5, 7, 9, 1, 2, 3]).guess(1) == [4]
    assert after([1, 2, 3, 4, 1, 2, 3, 5, 1, 2, 3]).guess(1) == [5]


def test_text_that_goes_round_in_circles():
    assert after([7, 7, 7, 7]).guess(3) == [7, 7, 7]
    assert after([1, 2, 3, 4, 1, 2, 3]).guess(6) == [4, 1, 2, 3, 4, 1]


def test_too_little_text():
    assert after([1, 2]).guess(3) == []
    assert after([1]).chances(3) == []


def test_agreement_raises_the_chances_and_its_end_lowers_them():
    text = list(range(100))
    tokens = [*text, 0, 1, 2]
    lookup = after(tokens)
    before = lookup.chances(8)
    assert before == sorted(before, reverse=True)
    for token in range(3, 40):
        tokens.append(token)
        lookup.follow(tokens)
    assert lookup.guess(3) == [40, 41, 42]
    assert lookup.chances(8)[-1] > before[-1] + 0.3


def test_matches_by_chance_are_found_out_without_guessing():
    rng = random.Random(0)
    tokens = [rng.randrange(3) for _ in range(50)]
    lookup = after(tokens)
    for _ in range(400):
        tokens.append(rng.randrange(3))
        lookup.follow(tokens)
    while not lookup.chances(1):
        tokens.append(rng.randrange(3))
        lookup.follow(tokens)
    assert lookup.chances(4)[-1] < 0.1


def test_after_a_replaced_word_the_text_goes_on():
    text = list(range(30))
    tokens = [*text, *range(10), 99]
    lookup = after(tokens)
    assert lookup.guess(2) == [], "99 was never seen"
    tokens = [*text, *range(10)]
    lookup = after(tokens)
    for token in (99, 98, 11):
        tokens.append(token)
        lookup.follow(tokens)
    assert lookup.guess(3) == [12, 13, 14]
    tokens += [50] * 9
    lookup.follow(tokens)
    tokens.append(14)
    lookup.follow(tokens)
    assert lookup.guess(1) == [], "too long ago"


def test_a_step_may_bring_many_tokens():
    tokens = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3]
    one, all_at_once = after(tokens), after(tokens)
    for token in (4, 5, 6, 50, 51):
        tokens.append(token)
        one.follow(list(tokens))
    all_at_once.follow(tokens)
    tokens += [4, 5, 6]
    one.follow(tokens)
    all_at_once.follow(tokens)
    assert one.guess(3) == all_at_once.guess(3) == [50, 51, 4]
    assert one.chances(3) == all_at_once.chances(3)


def test_guesses_that_disappoint_are_trusted_less():
    tokens = list(range(50)) * 3
    lookup, other = after(tokens), after(tokens)
    for _ in range(6):
        lookup.guess(8)
        tokens = [*tokens, tokens[-50], 99, *tokens[-50:]]  # one of eight is right
        lookup.follow(tokens)
        other.follow(tokens)
    assert lookup.chances(8)[0] < other.chances(8)[0]
