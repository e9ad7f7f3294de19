"""Whose KV can be used again: the sequences of ended requests, and of running ones.

With a unified cache a sequence may begin with the cells of another at no cost, and at any length, so no tree is
needed: comparing a prompt with each of some dozen sequences takes microseconds.
"""

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from serve.engine.request import Owner, Running, Tokens

# Shorter matches are not worth a sequence of their own.
MIN_SHARED = 4


@dataclass(eq=False)
class Parked:
    """A sequence that nobody runs, kept for its beginning.

    Attributes:
        seq: The sequence.
        tokens: What its cells hold.
        owner: Whose request it was, with which adapters; nobody else's begins with it.
        last_used: When it was last of use, by the scheduler's clock.
        born: When it was parked, in seconds since the epoch.
    """

    seq: int
    tokens: Tokens
    owner: Owner
    last_used: float
    born: float = field(default_factory=time.time)


def as_tokens(tokens: Sequence[int]) -> Tokens:
    """Token ids as an array."""
    return np.asarray(tokens, np.int32)


def n_common(a: Tokens, b: Tokens) -> int:
    """How many tokens ``a`` and ``b`` have in common from the beginning."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n


def longest_prefix(
    wanted: Tokens, owner: Owner, parked: Iterable[Parked], running: Iterable[Running]
) -> tuple[Parked | Running | None, int]:
    """Whoever holds the longest beginning of ``wanted`` for ``owner``, and its length."""
    candidates: list[tuple[int, Parked | Running]] = [
        *((n_common(wanted, other.tokens), other) for other in parked if other.owner == owner),
        *((n_common(wanted, other.prompt[: other.n_past]), other) for other in running if other.job.owner == owner),
    ]
    length, best = max(candidates, key=lambda candidate: candidate[0], default=(0, None))
    return (best, length) if length >= MIN_SHARED else (None, 0)


def about_to_hold(wanted: Tokens, owner: Owner, running: Iterable[Running]) -> int:
    """The longest beginning of ``wanted`` that a request whose prompt is still being read will hold soon."""
    return max(
        (
            n_common(wanted, other.prompt)
            for other in running
            if other.job.owner == owner and not other.decoding and other.n_generated == 0
        ),
        default=0,
    )


def adds_nothing(old: Parked, new: Parked) -> bool:
    """Whether ``new`` begins with all of ``old``."""
    return old.owner == new.owner and n_common(old.tokens, new.tokens) == len(old.tokens)
