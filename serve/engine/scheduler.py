"""Continuous batching: every step decodes one token of each running request and a slice of the waiting prompts.

One KV cache holds all sequences. A finished sequence is parked: the next request that begins with the same tokens
starts from it, and it is the first to go when room is needed. When nothing parked is left, the youngest running
request gives way, keeps its text, and comes back later.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from localllm.errors import ContextLengthError, EngineBusyError, EngineError, LocalLLMError
from serve.engine.backend import Backend, Chain
from serve.engine.text import TextStream
from serve.engine.types import Delta, Finished, FinishReason, SamplingParams, Started, Usage

log = logging.getLogger(__name__)

# While others decode, a prompt enters in slices of at most this many tokens, so that they never wait long.
_SLICE_WHILE_DECODING = 256
# A prompt is admitted only when this much more than itself is free: answers grow.
_HEADROOM = 32
# Shorter matches are not worth a sequence of their own.
_MIN_SHARED = 4


@dataclass(frozen=True)
class Job:
    """One tokenized request.

    Attributes:
        id: Chosen by whoever asks; unique among the jobs that have not ended.
        prompt: Token ids, at least one.
        sampling: How tokens are chosen.
        max_tokens: Longest answer, or None.
        stop: Stop strings.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams
    max_tokens: int | None
    stop: tuple[str, ...]


JobEvent = tuple[int, Started | Delta | Finished | LocalLLMError]


@dataclass(eq=False)
class _Running:
    """A request that holds a sequence, or waits to hold one again."""

    job: Job
    tokens: list[int]  # the prompt, then what was generated
    chain: Chain
    text: TextStream
    arrived: float
    seq: int = -1
    n_past: int = 0  # tokens whose KV is in the cache
    n_cached: int = 0
    started: bool = False
    first_token: float = 0.0
    n_batched: int = 0  # its rows in this step's batch
    row: int = -1  # the one of them that has logits
    n_reported: int = 0  # generated tokens that a Delta has told of

    @property
    def n_generated(self) -> int:
        return len(self.tokens) - len(self.job.prompt)

    @property
    def n_pending(self) -> int:
        return len(self.tokens) - self.n_past

    @property
    def decoding(self) -> bool:
        return self.n_pending == 1 and self.n_generated > 0


@dataclass(eq=False)
class _Parked:
    """A sequence nobody runs, kept for its prefix."""

    seq: int
    tokens: np.ndarray[tuple[int], np.dtype[np.int32]]
    last_used: float


class Scheduler:
    """Runs jobs on a backend. Used by one thread only; :meth:`step` does one batch.

    Args:
        backend: The model.
        n_parallel: Jobs that run together at most.
        max_waiting: Jobs that wait at most; one more is refused.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        n_parallel: int,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._backend = backend
        self._n_parallel = n_parallel
        self._max_waiting = max_waiting
        self._clock = clock
        self._waiting: deque[_Running] = deque()
        self._running: list[_Running] = []
        self._parked: list[_Parked] = []
        self._free = list(range(backend.n_seq - 1, -1, -1))
        self._hold = False  # after a request had to give way, none is admitted until another has ended

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._waiting

    @property
    def n_free(self) -> int:
        """Sequence ids that neither run nor are parked."""
        return len(self._free)

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ContextLengthError: Its prompt leaves no room for one token of answer.
            EngineBusyError: Too many wait.
        """
        if len(job.prompt) >= self._backend.n_ctx:
            raise ContextLengthError(len(job.prompt), self._backend.n_ctx)
        if len(self._waiting) >= self._max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} requests are waiting already.", "Try again in a moment.")
        chain = self._backend.chain(job.sampling, job.prompt)
        self._waiting.append(_Running(job, list(job.prompt), chain, TextStream(job.stop), self._clock()))

    def cancel(self, job_id: int) -> None:
        """Forget a job, running or waiting; one that has ended is no error."""
        for request in self._waiting:
            if request.job.id == job_id:
                self._waiting.remove(request)
                request.chain.close()
                return
        for request in self._running:
            if request.job.id == job_id:
                self._retire(request)
                return

    def step(self) -> list[JobEvent]:
        """Admit, decode one batch, sample; the events of all jobs it touched.

        Raises:
            EngineError: llama.cpp failed in a way that leaves the cache unknown.
        """
        events: list[JobEvent] = []
        self._admit(events)
        if not self._running:
            return events
        self._fill_batch()
        while (code := self._backend.decode()) == 1:
            if not self._make_room():
                # The only one left fills the cache by itself.
                self._finish(self._running[0], "length", events)
                return events
            self._fill_batch()
        if code != 0:
            raise EngineError(f"llama.cpp could not decode a batch (code {code}).")
        self._advance(events)
        return events

    # --- admission -------------------------------------------------------------------------------------------------

    def _admit(self, events: list[JobEvent]) -> None:
        while self._waiting and len(self._running) < self._n_parallel:
            request = self._waiting[0]
            if self._running and (self._hold or not self._has_room(request)):
                return
            self._waiting.popleft()
            self._take_sequence(request)
            self._running.append(request)
            if not request.started:
                request.started = True
                request.n_cached = request.n_past
                events.append((request.job.id, Started(len(request.job.prompt), request.n_cached)))

    def _has_room(self, request: _Running) -> bool:
        # An estimate: shared prefixes make the true need smaller, and decode() answering 1 has the last word.
        used = sum(len(other.tokens) - other.n_cached for other in self._running)
        return used + len(request.tokens) + _HEADROOM <= self._backend.n_ctx

    def _take_sequence(self, request: _Running) -> None:
        source, n_shared = self._longest_prefix(request.tokens)
        # There is one: at most n_seq - n_parallel are parked, and fewer than n_parallel run.
        request.seq = self._free.pop()
        request.n_past = 0
        if source is not None and self._backend.share(source.seq, request.seq, n_shared):
            request.n_past = n_shared
            if isinstance(source, _Parked):
                source.last_used = self._clock()

    def _longest_prefix(self, tokens: Sequence[int]) -> tuple[_Parked | _Running | None, int]:
        """Whoever holds the longest beginning of ``tokens``, and how long; the last token is always computed anew."""
        if not self._backend.can_share:
            return None, 0
        wanted = np.asarray(tokens[:-1], np.int32)
        best: _Parked | _Running | None = None
        best_length = _MIN_SHARED - 1
        for parked in self._parked:
            length = _common_prefix(wanted, parked.tokens)
            if length > best_length:
                best, best_length = parked, length
        for running in self._running:
            length = _common_prefix(wanted, np.asarray(running.tokens[: running.n_past], np.int32))
            if length > best_length:
                best, best_length = running, length
        return (best, best_length) if best is not None else (None, 0)

    # --- one batch -------------------------------------------------------------------------------------------------

    def _fill_batch(self) -> None:
        """Decoding requests first, one row each; then slices of prompts, in order of arrival."""
        self._backend.clear_batch()
        room = self._backend.n_batch
        for request in self._running:
            request.n_batched, request.row = 0, -1
            if request.decoding:
                self._add_rows(request, 1)
                room -= 1
        if room < self._backend.n_batch:
            room = min(room, _SLICE_WHILE_DECODING)
        for request in self._running:
            if room and not request.decoding:
                self._add_rows(request, min(room, request.n_pending))
                room -= request.n_batched

    def _add_rows(self, request: _Running, n: int) -> None:
        piece = request.tokens[request.n_past : request.n_past + n]
        complete = n == request.n_pending
        row = self._backend.add(piece, request.n_past, request.seq, logits=complete)
        request.n_batched = n
        request.row = row if complete else -1

    def _make_room(self) -> bool:
        """Free some of the cache: the oldest parked sequence, else the youngest request but one."""
        if self._parked:
            self._evict(min(self._parked, key=lambda p: p.last_used))
            return True
        if len(self._running) < 2:
            return False
        victim = max(self._running, key=lambda r: r.arrived)
        log.info("the cache is full: request %d gives way after %d tokens", victim.job.id, len(victim.tokens))
        self._running.remove(victim)
        self._backend.drop(victim.seq)
        self._free.append(victim.seq)
        victim.seq, victim.n_past = -1, 0
        self._waiting.appendleft(victim)
        self._hold = True
        return True

    def _advance(self, events: list[JobEvent]) -> None:
        """Sample for every request whose logits were computed."""
        for request in list(self._running):
            request.n_past += request.n_batched
            if request.row < 0:
                continue
            token = self._backend.sample(request.chain, request.row)
            if request.n_generated == 0:
                request.first_token = self._clock()
            request.tokens.append(token)
            reason = self._take_token(request, token, events)
            if reason is not None:
                self._finish(request, reason, events)

    def _take_token(self, request: _Running, token: int, events: list[JobEvent]) -> FinishReason | None:
        if self._backend.is_eog(token):
            return "stop"
        self._tell(request, request.text.feed(self._backend.piece(token)), events)
        if request.text.stopped:
            return "stop"
        limit = request.job.max_tokens
        if (limit is not None and request.n_generated >= limit) or len(request.tokens) >= self._backend.n_ctx:
            return "length"
        return None

    def _tell(self, request: _Running, text: str, events: list[JobEvent]) -> None:
        if text:
            events.append((request.job.id, Delta(text, request.n_generated - request.n_reported)))
            request.n_reported = request.n_generated

    # --- the end of a request --------------------------------------------------------------------------------------

    def _finish(self, request: _Running, reason: FinishReason, events: list[JobEvent]) -> None:
        self._tell(request, request.text.finish(), events)
        now = self._clock()
        first = request.first_token or now
        usage = Usage(
            n_prompt=len(request.job.prompt),
            n_cached=request.n_cached,
            n_completion=request.n_generated,
            prompt_seconds=first - request.arrived,
            decode_seconds=now - first,
        )
        self._retire(request)
        events.append((request.job.id, Finished(reason, usage)))

    def _retire(self, request: _Running) -> None:
        """Take a request out of the running ones and park what it leaves in the cache."""
        self._running.remove(request)
        self._hold = False
        request.chain.close()
        if not self._backend.can_share or request.n_past < _MIN_SHARED:
            self._backend.drop(request.seq)
            self._free.append(request.seq)
            return
        tokens = np.asarray(request.tokens[: request.n_past], np.int32)
        for parked in list(self._parked):  # those that the new one begins with add nothing
            if len(parked.tokens) <= len(tokens) and _common_prefix(parked.tokens, tokens) == len(parked.tokens):
                self._evict(parked)
        self._parked.append(_Parked(request.seq, tokens, self._clock()))
        while len(self._parked) > self._backend.n_seq - self._n_parallel:
            self._evict(min(self._parked, key=lambda p: p.last_used))

    def _evict(self, parked: _Parked) -> None:
        self._parked.remove(parked)
        self._backend.drop(parked.seq)
        self._free.append(parked.seq)


def _common_prefix(a: np.ndarray[tuple[int], np.dtype[np.int32]], b: np.ndarray[tuple[int], np.dtype[np.int32]]) -> int:
    """How many tokens ``a`` and ``b`` have in common from the beginning."""
    n = min(len(a), len(b))
    differ = np.flatnonzero(a[:n] != b[:n])
    return int(differ[0]) if differ.size else n
