"""Caches that ended requests leave behind."""

from itertools import count

import mlx.core as mx
import pytest
from mlx_lm.models.cache import ArraysCache, KVCache

from serve.engine.mlx_prefix import PrefixCache
from serve.engine.prefix import as_tokens


def cache_of(n):
    """One layer that holds ``n`` tokens."""
    layer = KVCache()
    layer.update_and_fetch(mx.ones((1, 1, n, 4)), mx.ones((1, 1, n, 4)))
    return [layer]


def recurrent():
    """A state that has no positions."""
    layer = ArraysCache(1)
    layer[0] = mx.ones((1, 4))
    return [layer]


@pytest.fixture
def prefixes():
    return PrefixCache(3, count().__next__)


def shared(prefixes, wanted, client=""):
    n, kept = prefixes.find(as_tokens(wanted), client)
    return prefixes.take(kept, n) if kept is not None else None


def test_the_longest_beginning_is_found_and_cut_out(prefixes):
    prefixes.keep(as_tokens(range(10)), "", cache_of(10))
    prefixes.keep(as_tokens([*range(6), 50, 51]), "", cache_of(8))
    found = shared(prefixes, [*range(8), 99])
    assert found.n == 8
    assert found.cache[0].size() == 8
    assert shared(prefixes, range(10)).cache[0].size() == 10, "what was kept is as it was"
    assert shared(prefixes, [0, 1, 2, 99]) is None, "too short"
    assert shared(prefixes, range(10), client="another") is None


def test_writing_into_what_was_taken_changes_nothing_else(prefixes):
    prefixes.keep(as_tokens(range(10)), "", cache_of(10))
    taken = shared(prefixes, range(10)).cache[0]
    taken.update_and_fetch(mx.zeros((1, 1, 2, 4)), mx.zeros((1, 1, 2, 4)))
    taken.keys[..., 0, :] = 7
    assert shared(prefixes, range(10)).cache[0].keys[..., :10, :].min().item() == 1


def test_the_beginning_of_another_is_not_kept_beside_it(prefixes):
    prefixes.keep(as_tokens(range(6)), "", cache_of(6))
    one = prefixes.n_bytes
    prefixes.keep(as_tokens(range(10)), "", cache_of(10))
    assert prefixes.n_bytes == one, "caches grow by 256 tokens, and there is one"
    prefixes.keep(as_tokens(range(10)), "another", cache_of(10))
    assert prefixes.n_bytes == 2 * one


def test_a_state_that_cannot_be_cut_serves_whole_only(prefixes):
    prefixes.keep(as_tokens(range(6)), "", recurrent())
    prefixes.keep(as_tokens(range(10)), "", recurrent())
    assert shared(prefixes, range(8)).n == 6
    assert shared(prefixes, range(12)).n == 10
    assert shared(prefixes, range(5)) is None


def test_those_of_no_use_for_longest_go_first(prefixes):
    for start in (0, 100, 200):
        prefixes.keep(as_tokens(range(start, start + 8)), "", cache_of(8))
    one = prefixes.n_bytes // 3
    shared(prefixes, range(8))
    prefixes.keep(as_tokens(range(300, 308)), "", cache_of(8))
    assert shared(prefixes, range(100, 108)) is None
    prefixes.trim(one)
    assert prefixes.n_bytes == one
    assert shared(prefixes, range(300, 308)) is not None
    prefixes.trim(-5)
    assert prefixes.n_bytes == 0
