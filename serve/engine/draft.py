"""Guessing the next tokens with a second, smaller model.

The draft model has a KV cache of its own. What it holds is compared with a request's tokens only when the request is
drafted for again: what was accepted stays, the rest is dropped, and what the draft has not seen is read first. So
nothing has to tell it of rejected guesses, cancelled requests or pauses.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from localllm.errors import EngineError
from serve.engine.backend import Backend
from serve.engine.request import Running
from serve.engine.types import SamplingParams

# Tokens of text that the draft reads in one step at most; meanwhile the requests decode without it.
_CATCH_UP = 256


@dataclass(eq=False)
class _Held:
    """What a sequence of the draft's cache holds.

    Attributes:
        seq: The sequence.
        request: For whom; it may have ended.
        tokens: Its tokens.
        n_same: Of them, those that were compared with the request's own, which only grow.
    """

    seq: int
    request: Running | None = None
    tokens: list[int] = field(default_factory=list)
    n_same: int = 0


class Drafter:
    """Greedy drafts for a few requests together. Used by the engine's thread only.

    Args:
        backend: The draft model; it has as many sequences as requests are drafted for together.
        n_vocab: Tokens that both models have; those beyond are never drafted and never fed.
        clock: Seconds; for tests.

    Attributes:
        seconds: What a token of the last draft took, for all its requests together; 0 when there was none.
        total_seconds: What the whole of it took, reading included.
    """

    def __init__(self, backend: Backend, n_vocab: int, clock: Callable[[], float] = time.perf_counter) -> None:
        self._backend = backend
        self._n_vocab = n_vocab
        self._clock = clock
        self._chain = backend.chain(SamplingParams(temperature=0), ())
        self._held = [_Held(seq) for seq in range(backend.n_seq)]  # the last used last
        self.seconds = self.total_seconds = 0.0

    def draft(self, requests: Sequence[Running], n: int) -> list[list[int]]:
        """Up to ``n`` tokens for each of ``requests``, at most as many as there are sequences.

        None for a request whose text the draft has still to read, or cannot read.

        Raises:
            EngineError: llama.cpp failed in a way that leaves the cache unknown.
        """
        start = self._clock()
        drafts: dict[int, list[int]] = {id(request): [] for request in requests}
        fitting = [request for request in requests if len(request.tokens) + n <= self._backend.n_ctx]
        holders = [self._hold(request, fitting) for request in fitting]
        going = self._read(holders, drafts)
        began, n_rounds = self._clock(), 0
        for _ in range(n - 1):
            if not going:
                break
            self._backend.clear_batch()
            rows = []
            for held in going:
                token = drafts[id(held.request)][-1]
                rows.append(self._backend.add([token], len(held.tokens), held.seq, logits=1))
                held.tokens.append(token)
            if not self._decoded(going):
                break
            going = [held for held, row in zip(going, rows, strict=True) if self._take(held, row, drafts)]
            n_rounds += 1
        now = self._clock()
        self.seconds = (now - began) / n_rounds if n_rounds else 0.0
        self.total_seconds = now - start
        return list(drafts.values())

    def _read(self, holders: list[_Held], drafts: dict[int, list[int]]) -> list[_Held]:
        """Read what is new in the requests' texts; return those that have their first drafted token now."""
        self._backend.clear_batch()
        room = min(_CATCH_UP, self._backend.n_batch)
        rows, read = [], []
        for held in holders:
            assert held.request is not None
            tokens = held.request.tokens
            new = tokens[len(held.tokens) : len(held.tokens) + room]
            if not new or max(new) >= self._n_vocab:
                continue
            ends = len(held.tokens) + len(new) == len(tokens)
            row = self._backend.add(new, len(held.tokens), held.seq, logits=int(ends))
            held.tokens += new
            held.n_same = len(held.tokens)
            room -= len(new)
            read.append(held)
            if ends:
                rows.append((held, row))
        if not read or not self._decoded(read):
            return []
        return [held for held, row in rows if self._take(held, row, drafts)]

    def _take(self, held: _Held, row: int, drafts: dict[int, list[int]]) -> bool:
        """Add the likeliest token to the draft; False where the target model does not have it."""
        token = self._backend.sample(self._chain, row)
        if token >= self._n_vocab:
            return False
        drafts[id(held.request)].append(token)
        return True

    def _decoded(self, users: Sequence[_Held]) -> bool:
        """Run the batch; where the cache is full, forget the others, and if that is not enough, all."""
        code = self._backend.decode()
        if code == 1:
            for held in self._held:
                if held not in users:
                    self._forget(held)
            code = self._backend.decode()
        if code == 1:
            for held in users:
                self._forget(held)
            return False
        if code != 0:
            raise EngineError(f"llama.cpp could not decode a batch of the draft model (code {code}).")
        return True

    def _hold(self, request: Running, others: Sequence[Running]) -> _Held:
        """The sequence for ``request``, holding nothing but a beginning of its tokens, and not all of them.

        One that is new takes over the sequence of an earlier request of its owner (a chat's last turn), the one that
        begins most like it, else the one that was not used for longest.
        """
        found = next((held for held in self._held if held.request is request), None)
        if found is None:
            free = [held for held in self._held if held.request not in others]
            alike = [held for held in free if held.request and held.request.job.owner == request.job.owner]
            found = max(alike, key=lambda held: _n_same(held.tokens, request.tokens, 0), default=free[0])
            found.request, found.n_same = request, 0
        self._held.remove(found)
        self._held.append(found)
        same = min(_n_same(found.tokens, request.tokens, found.n_same), len(request.tokens) - 1)
        if same < len(found.tokens):
            self._backend.drop(found.seq, same)
            del found.tokens[same:]
        found.n_same = same
        return found

    def _forget(self, held: _Held) -> None:
        self._backend.drop(held.seq)
        held.request, held.n_same = None, 0
        held.tokens.clear()


def _n_same(held: Sequence[int], tokens: Sequence[int], start: int) -> int:
    """How many tokens two texts have in common, of which ``start`` are known."""
    n = min(len(held), len(tokens))
    return next((i for i in range(start, n) if held[i] != tokens[i]), n)
