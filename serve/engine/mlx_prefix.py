"""What ended requests leave in the MLX engine's caches, for those that begin alike."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx_lm.models.cache import can_trim_prompt_cache, trim_prompt_cache

from serve.engine.prefix import MIN_SHARED, n_common
from serve.engine.request import Tokens


@dataclass(frozen=True)
class Shared:
    """The beginning of a prompt whose KV is there already.

    Attributes:
        n: Its length in tokens.
        cache: mlx-lm's caches, one a layer, that hold just these tokens; None when ``n`` is 0.
    """

    n: int = 0
    cache: Any = None


@dataclass(eq=False)
class Kept:
    """One cache, kept for its beginning.

    Attributes:
        tokens: What it holds.
        client: Whose request it was; nobody else's begins with it.
        cache: mlx-lm's caches, one a layer.
        n_bytes: Their size.
        last_used: When it was last of use.
    """

    tokens: Tokens
    client: str
    cache: Any
    n_bytes: int
    last_used: float


class PrefixCache:
    """Caches by the tokens that they hold.

    Args:
        n_max: Kept at most.
        clock: Seconds.
    """

    def __init__(self, n_max: int, clock: Callable[[], float]) -> None:
        self._n_max = n_max
        self._clock = clock
        self._kept: list[Kept] = []

    @property
    def n_bytes(self) -> int:
        """Bytes of all that is kept."""
        return sum(kept.n_bytes for kept in self._kept)

    def find(self, wanted: Tokens, client: str) -> tuple[int, Kept | None]:
        """The longest beginning of ``wanted`` that a request of ``client`` has left: its length, and what holds it."""
        best, length = None, MIN_SHARED - 1
        for kept in self._kept:
            if kept.client != client:
                continue
            n = n_common(wanted, kept.tokens)
            if n > length and (n == len(kept.tokens) or can_trim_prompt_cache(kept.cache)):
                best, length = kept, n
        return (0, None) if best is None else (length, best)

    def take(self, kept: Kept, n: int) -> Shared:
        """The first ``n`` tokens of what :meth:`find` found."""
        kept.last_used = self._clock()
        return Shared(n, cut(kept.cache, len(kept.tokens) - n))

    def keep(self, tokens: Tokens, client: str, cache: Any) -> None:
        """Keep a cache that holds ``tokens``; what it begins with need not be kept beside it."""
        # Computed now: a row not yet cut out of its batch would keep the whole batch in memory.
        mx.eval([layer.state for layer in cache])
        can_trim = can_trim_prompt_cache(cache)
        self._kept = [
            kept
            for kept in self._kept
            if kept.client != client
            or n_common(kept.tokens, tokens) < len(kept.tokens)
            or not (can_trim or len(kept.tokens) == len(tokens))
        ]
        n_bytes = sum(layer.nbytes for layer in cache)
        self._kept.append(Kept(tokens, client, cache, n_bytes, self._clock()))
        if len(self._kept) > self._n_max:
            self._forget_oldest()

    def trim(self, n_bytes: int) -> None:
        """Forget what was used longest ago until the rest takes ``n_bytes`` at most."""
        while self._kept and self.n_bytes > n_bytes:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        self._kept.remove(min(self._kept, key=lambda kept: kept.last_used))


def cut(cache: Any, n: int) -> Any:
    """A copy of ``cache`` without its last ``n`` tokens. The data is shared: MLX copies what is written to."""
    shorter = copy.deepcopy(cache)
    if n:
        trim_prompt_cache(shorter, n)
    return shorter
