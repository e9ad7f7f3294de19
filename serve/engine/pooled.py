"""Embeddings and rerank scores beside generation: a queue whose work is cut into slices between the scheduler's steps.

A list of a thousand documents must not hold back the next token of those who read an answer. While anything decodes, a
slice takes about as long as the scheduler's own step, measured while running; one input is never cut, because an
encoder sees all of it at once. Jobs take turns, input by input, so a short one does not wait for a long one.
"""

import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from localllm.errors import RequestError
from serve.engine.costs import StepCosts
from serve.engine.pace import MOST, Pace
from serve.engine.types import Embeddings, Scores

Vector = np.ndarray[Any, np.dtype[np.float32]]
PooledEvent = tuple[int, Embeddings | Scores | RequestError]


class Pool(Protocol):
    """Turns tokenized inputs into one vector each.

    Attributes:
        n_rows: Tokens of one batch, and so of the longest input.
        n_seq: Inputs of one batch.
    """

    n_rows: int
    n_seq: int

    def run(self, inputs: Sequence[Sequence[int]]) -> list[Vector]:
        """The pooled output of each input, float32, as the model gives it; all of them in one batch.

        Raises:
            RequestError: The model refuses them.
        """


@dataclass(frozen=True)
class PooledJob:
    """One request.

    Attributes:
        id: Chosen by whoever asks; unique among the jobs that have not ended.
        inputs: Token ids of each input, none of them empty or longer than the pool's batch.
        finish: Makes the answer of the inputs' vectors.
    """

    id: int
    inputs: Sequence[Sequence[int]]
    finish: Callable[[list[Vector]], Embeddings | Scores]


@dataclass(eq=False)
class _Running:
    job: PooledJob
    vectors: list[Vector] = field(default_factory=list)  # of the inputs before the next one, in their order


class PooledQueue:
    """Runs jobs on a pool, slice by slice. Used by one thread only.

    Args:
        pool: The model.
        clock: Seconds; for tests.
    """

    def __init__(self, pool: Pool, clock: Callable[[], float] = time.perf_counter) -> None:
        self._pool = pool
        self._clock = clock
        self._jobs: deque[_Running] = deque()
        self._empty: list[PooledJob] = []
        self._pace = Pace(StepCosts())

    @property
    def idle(self) -> bool:
        """Nothing waits."""
        return not self._jobs and not self._empty

    def submit(self, job: PooledJob) -> None:
        """Queue a job."""
        if job.inputs:
            self._jobs.append(_Running(job))
        else:
            self._empty.append(job)

    def cancel(self, job_id: int) -> None:
        """Forget a job; one that has ended is no error."""
        self._jobs = deque(running for running in self._jobs if running.job.id != job_id)

    def step(self, beside: float | None = None) -> list[PooledEvent]:
        """Run one slice.

        Args:
            beside: Seconds of the scheduler's step that this slice comes after; None when nobody else is delayed.

        Returns:
            The answers of the jobs that it completes.
        """
        events: list[PooledEvent] = [(job.id, job.finish([])) for job in self._empty]
        self._empty.clear()
        n_tokens = self._pool.n_rows
        if beside is not None:
            n_tokens = min(n_tokens, self._pace.tokens_in(MOST * beside))
        batch = self._next_batch(n_tokens)
        if not batch:
            return events
        inputs = [tokens for _, tokens in batch]
        began = self._clock()
        try:
            vectors = self._pool.run(inputs)
        except RequestError as error:
            failed = {running.job.id for running, _ in batch}
            for job_id in failed:
                self.cancel(job_id)
            return [*events, *((job_id, error) for job_id in sorted(failed))]
        self._pace.learn(0, sum(map(len, inputs)), self._clock() - began)
        for (running, _), vector in zip(batch, vectors, strict=True):
            running.vectors.append(vector)
        for running in dict.fromkeys(running for running, _ in batch):
            if len(running.vectors) == len(running.job.inputs):
                self._jobs.remove(running)
                events.append((running.job.id, running.job.finish(running.vectors)))
        return events

    def _next_batch(self, n_tokens: int) -> list[tuple[_Running, Sequence[int]]]:
        """One input of each job in turn, while they fit; the first one always does."""
        batch: list[tuple[_Running, Sequence[int]]] = []
        turns = deque((running, len(running.vectors)) for running in self._jobs)
        n_rows = 0
        while turns and len(batch) < self._pool.n_seq:
            running, place = turns.popleft()
            tokens = running.job.inputs[place]
            n_rows += len(tokens)
            if batch and n_rows > n_tokens:
                break
            batch.append((running, tokens))
            if place + 1 < len(running.job.inputs):
                turns.append((running, place + 1))
        # Who came first in this batch comes last in the next one.
        self._jobs.rotate(-len({running.job.id for running, _ in batch}))
        return batch
