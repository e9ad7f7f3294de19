"""Sequences of ended requests, kept for the next request that begins like them; the oldest go first."""

from collections.abc import Sequence

from serve.engine.backend import Backend
from serve.engine.prefix import Parked, adds_nothing, longest_prefix
from serve.engine.request import Owner, Running, State, Tokens
from serve.engine.snapshots import Snapshot, Snapshots

# A snapshot is read from the disk when it saves at least so many tokens.
_WORTH_READING = 128
# So many requests run together that each token in the cache is felt; what is read again within a second, on two cores;
# and what such sequences may hold, of what the running ones hold.
_MANY, _SHORT, _SHARE = 8, 256, 0.25


class Parking:
    """The parked sequences.

    Args:
        backend: Holds their KV.
        free: Sequence ids that nobody uses; shared with the scheduler.
        n_most: Sequences that may be parked together.
        snapshots: Where they go from memory; None where they are forgotten.
    """

    def __init__(self, backend: Backend, free: list[int], n_most: int, snapshots: Snapshots | None) -> None:
        self._backend = backend
        self._free = free
        self._n_most = n_most
        self._snapshots = snapshots
        self._parked: list[Parked] = []

    def find(
        self, wanted: Tokens, owner: Owner, running: Sequence[Running], now: float
    ) -> tuple[Parked | Running | None, int]:
        """Whoever holds the longest beginning of ``wanted`` for ``owner``, and its length; from the disk too."""
        source, n_shared = longest_prefix(wanted, owner, self._parked, running)
        if self._snapshots is not None and self._n_most > 0:
            found = self._snapshots.find(wanted, owner, n_shared + _WORTH_READING)
            if found is not None:
                self._restore(self._snapshots, *found, owner, now)
                return longest_prefix(wanted, owner, self._parked, running)
        return source, n_shared

    def park(self, new: Parked) -> None:
        """Keep a sequence; those that it begins with go, and the oldest where there are too many."""
        for old in [parked for parked in self._parked if adds_nothing(parked, new)]:
            self._drop(old)
        self._parked.append(new)
        while len(self._parked) > self._n_most:
            self.evict()

    @property
    def n_tokens(self) -> int:
        """Tokens of all parked sequences."""
        return sum(len(parked.tokens) for parked in self._parked)

    def make_way(self, running: Sequence[Running]) -> None:
        """Let short sequences go where many requests run, beyond a share of what these hold themselves.

        All that decode attend to all cells of the cache, also to those that are masked for them: on two cores a step of
        sixteen takes an eighth longer beside as many parked sequences as long. What is short is soon read again.
        """
        if len(running) < _MANY:
            return
        short = [parked for parked in self._parked if len(parked.tokens) <= _SHORT]
        excess = sum(len(parked.tokens) for parked in short) - _SHARE * sum(len(request.tokens) for request in running)
        for parked in sorted(short, key=lambda parked: parked.last_used):
            if excess <= 0:
                return
            excess -= len(parked.tokens)
            self._let_go(parked)

    def evict(self) -> bool:
        """Let the oldest sequence go; False where none is left."""
        if not self._parked:
            return False
        self._let_go(min(self._parked, key=lambda parked: parked.last_used))
        return True

    def save(self) -> None:
        """Keep all sequences on the disk, the last used first: the process is about to end."""
        for parked in sorted(self._parked, key=lambda parked: -parked.last_used):
            self._save(parked)

    def _restore(self, snapshots: Snapshots, snapshot: Snapshot, state: State, owner: Owner, now: float) -> None:
        """Park a sequence from the disk, if there is room for it in the cache."""
        while len(self._parked) >= self._n_most:
            self.evict()
        seq = self._free.pop()
        while not self._backend.restore(seq, state):
            self._backend.drop(seq)
            if not self.evict():
                self._free.append(seq)
                snapshots.skip(snapshot)
                return
        self._parked.append(Parked(seq, snapshot.tokens, owner, now))

    def _let_go(self, parked: Parked) -> None:
        self._save(parked)
        self._drop(parked)

    def _save(self, parked: Parked) -> None:
        if self._snapshots is not None:
            self._snapshots.save(parked, self._backend.state)

    def _drop(self, parked: Parked) -> None:
        self._parked.remove(parked)
        self._backend.drop(parked.seq)
        self._free.append(parked.seq)
