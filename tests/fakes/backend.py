"""A model without weights: the next token is a checksum of everything its sequence holds.

Any mistake in positions, sharing, batching or resuming therefore changes the text.
"""

import json
import zlib
from collections.abc import Collection, Sequence
from dataclasses import astuple

import numpy as np

from serve.engine.constraint_types import TokenMatcher
from serve.engine.request import Adapter, AdapterSet
from serve.engine.types import SamplingParams

EOG = 256


def next_token(tokens: Sequence[int], repetitive: bool = False, adapters: AdapterSet = ()) -> int:
    """What the fake model says after ``tokens``: a letter, or now and then the end.

    A repetitive one forgets all but the last three tokens and knows few letters: it soon goes round in circles.
    """
    tokens = [*tokens, *(zlib.crc32(repr(adapter).encode()) for adapter in adapters)]
    if repetitive:
        number = zlib.crc32(bytes(str(list(tokens[-3:])), "ascii"))
        return EOG if number % 97 == 0 else number % 3
    return min(zlib.crc32(bytes(str(list(tokens)), "ascii")) % 262, EOG)


def reference(
    prompt: Sequence[int], max_tokens: int | None, n_ctx: int, repetitive: bool = False, adapters: AdapterSet = ()
) -> tuple[list[int], str]:
    """What a request must get when it runs alone: its tokens, and why it ended."""
    tokens = list(prompt)
    while True:
        tokens.append(next_token(tokens, repetitive, adapters))
        n = len(tokens) - len(prompt)
        if tokens[-1] == EOG:
            return tokens[len(prompt) :], "stop"
        if (max_tokens is not None and n >= max_tokens) or len(tokens) >= n_ctx:
            return tokens[len(prompt) :], "length"


class FakeChain:
    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class FakeBackend:
    """A unified cache of ``n_ctx`` cells, counted exactly; a cell shared by several sequences counts once."""

    def __init__(
        self, *, n_ctx: int = 64, n_batch: int = 16, n_seq: int = 8, can_share: bool = True, repetitive: bool = False
    ) -> None:
        self.n_ctx, self.n_batch, self.n_seq, self.can_share = n_ctx, n_batch, n_seq, can_share
        self.cells: dict[int, list[tuple[int, int, AdapterSet]]] = {}  # seq -> (cell id, token, computed with)
        self.rows: list[tuple[int, int, int, bool]] = []  # token, position, seq, logits
        self.repetitive = repetitive
        self.outputs: dict[int, int] = {}
        self.chains: list[FakeChain] = []
        self.n_decodes = 0
        self.widest = 0
        self._next_cell = 0
        self.adapters: AdapterSet = ()
        self.loaded: set[Adapter] = set()
        self.n_changes = 0

    def load_adapters(self, adapters: AdapterSet, in_use: Collection[Adapter]) -> None:
        self.loaded.intersection_update(in_use)
        self.loaded.update(adapters)

    def use_adapters(self, adapters: AdapterSet) -> None:
        assert self.loaded.issuperset(adapters), "not in memory"
        self.n_changes += adapters != self.adapters
        self.adapters = adapters

    def clear_batch(self) -> None:
        self.rows = []

    def add(self, tokens: Sequence[int], pos: int, seq: int, *, logits: int) -> int:
        assert tokens
        assert 0 <= logits <= len(tokens)
        assert 0 <= seq < self.n_seq
        assert len(self.rows) + len(tokens) <= self.n_batch, "llama.cpp would end the process"
        for offset, token in enumerate(tokens):
            self.rows.append((token, pos + offset, seq, offset >= len(tokens) - logits))
        return len(self.rows) - 1

    def decode(self) -> int:
        assert self.rows, "an empty batch"
        self.outputs = {}
        used = len({cell for cells in self.cells.values() for cell, _, _ in cells})
        if used + len(self.rows) > self.n_ctx:
            return 1
        self.n_decodes += 1
        self.widest = max(self.widest, len({seq for _, _, seq, _ in self.rows}))
        for row, (token, pos, seq, logits) in enumerate(self.rows):
            cells = self.cells.setdefault(seq, [])
            assert pos == len(cells), f"sequence {seq} holds {len(cells)} tokens, position {pos} was given"
            assert all(adapters == self.adapters for _, _, adapters in cells), "computed with other adapters"
            cells.append((self._next_cell, token, self.adapters))
            self._next_cell += 1
            if logits:
                self.outputs[row] = next_token([token for _, token, _ in cells], self.repetitive, self.adapters)
        return 0

    def share(self, source: int, target: int, n: int) -> bool:
        assert not self.cells.get(target), "the target must be empty"
        assert n <= len(self.cells[source])
        self.cells[target] = self.cells[source][:n]
        return True

    def drop(self, seq: int, start: int = 0) -> None:
        if start == 0:
            self.cells.pop(seq, None)
        else:
            assert self.can_share, "this memory cannot drop a tail"
            assert start < len(self.cells[seq])
            self.cells[seq] = self.cells[seq][:start]

    def state(self, seq: int) -> np.ndarray:
        held = [[token, [astuple(adapter) for adapter in adapters]] for _, token, adapters in self.cells[seq]]
        return np.frombuffer(json.dumps(held).encode(), np.uint8)

    def restore(self, seq: int, state: np.ndarray) -> bool:
        assert not self.cells.get(seq), "the sequence must be empty"
        held = json.loads(bytes(state))
        if len({cell for cells in self.cells.values() for cell, _, _ in cells}) + len(held) > self.n_ctx:
            return False
        self.cells[seq] = [
            (self._next_cell + i, token, tuple(Adapter(*adapter) for adapter in adapters))
            for i, (token, adapters) in enumerate(held)
        ]
        self._next_cell += len(held)
        return True

    def chain(self, params: SamplingParams, prompt: Sequence[int]) -> FakeChain:
        self.chains.append(FakeChain())
        return self.chains[-1]

    def sample(self, chain: FakeChain, row: int, matcher: TokenMatcher | None = None) -> int:
        assert not chain.closed
        token = self.outputs[row]
        return token if matcher is None or matcher.allows(token) else int(matcher.allowed()[0])

    def logits(self, row: int) -> np.ndarray:
        logits = np.zeros(EOG + 1, np.float32)
        logits[self.outputs[row]] = 2.0
        return logits

    def token_text(self, token: int) -> bytes:
        return self.piece(token) if token != EOG else b"<end>"

    def piece(self, token: int) -> bytes:
        return chr(token).encode()

    def is_eog(self, token: int) -> bool:
        return token == EOG
