"""Sequences of ended requests, kept for the next request that begins like them; the oldest go first."""

from collections.abc import Sequence

from serve.engine.backend import Backend
from serve.engine.prefix import Parked, adds_nothing, longest_prefix
from serve.engine.request import Owner, Running, State, Tokens
from serve.engine.snapshots import Snapshot, Snapshots

# A snapshot is read from the disk when it saves at least so many tokens.
_WORTH_READING = 128


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

    def evict(self) -> bool:
        """Let the oldest sequence go; False where none is left."""
        if not self._parked:
            return False
        oldest = min(self._parked, key=lambda parked: parked.last_used)
        self._save(oldest)
        self._drop(oldest)
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

    def _save(self, parked: Parked) -> None:
        if self._snapshots is not None:
            self._snapshots.save(parked, self._backend.state)

    def _drop(self, parked: Parked) -> None:
        self._parked.remove(parked)
        self._backend.drop(parked.seq)
        self._free.append(parked.seq)
