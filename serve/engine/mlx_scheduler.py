"""Continuous batching on mlx-lm's ``BatchGenerator``: requests join and leave between its steps.

mlx-lm keeps a batch as one array padded to its longest row, so a batch of n requests takes n times the longest. That
product is what admission reckons with; when answers have grown past it, the youngest of the least important
requests gives way and comes back later. What finished requests leave is kept, as far as there is room, for the next one
that begins alike.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.generate import BatchGenerator, StopSequences
from mlx_lm.models.cache import can_trim_prompt_cache, make_prompt_cache

from localllm.errors import ContextLengthError, EngineBusyError
from serve.engine.costs import StepCosts
from serve.engine.logprobs import token_logprob
from serve.engine.mlx_prefix import Kept, PrefixCache, Shared, cut
from serve.engine.mlx_request import Running
from serve.engine.mlx_sampler import TokenSampler
from serve.engine.mlx_vocabulary import Vocabulary
from serve.engine.mlx_weights import Weights
from serve.engine.order import due, giving_way, in_turn, too_late
from serve.engine.pace import Pace
from serve.engine.prefix import MIN_SHARED, as_tokens, n_common
from serve.engine.request import Job, JobEvent
from serve.engine.step_meter import StepMeter
from serve.engine.text import TextStream
from serve.engine.types import FinishReason, PromptLogprobs, Started, TokenLogprob

log = logging.getLogger(__name__)

# A request is admitted only when this much more than its prompt is free: answers grow.
_HEADROOM = 32
# A request waits for another one's prompt when at least this many tokens more can then be shared.
_WORTH_WAITING = 64
# Prompts that are read together.
_N_PROMPTS = 8
# Prefixes kept at most; their bytes are bounded too.
_N_KEPT = 32


class MLXScheduler:
    """Runs jobs on a model. Used by one thread only; :meth:`step` gives each running job one token.

    Args:
        weights: The model.
        vocabulary: Its tokens.
        n_ctx: Tokens that one request may use, and all together, padding included.
        n_batch: Tokens of prompts that enter in one step at most.
        n_parallel: Jobs that run together at most.
        max_waiting: Jobs that wait at most; one more is refused.
        clock: Seconds; for tests.
    """

    def __init__(
        self,
        weights: Weights,
        vocabulary: Vocabulary,
        *,
        n_ctx: int,
        n_batch: int,
        n_parallel: int,
        max_waiting: int = 256,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._weights = weights
        self._vocabulary = vocabulary
        self._n_ctx = n_ctx
        self._n_batch = n_batch
        self._n_parallel = n_parallel
        self._max_waiting = max_waiting
        self._clock = clock
        self.meter = StepMeter(clock)
        self._costs = StepCosts()
        self._pace = Pace(self._costs)
        self._waiting: deque[Running] = deque()
        self._running: dict[int, Running] = {}  # by mlx-lm's uid, in order of admission
        self._kept = PrefixCache(_N_KEPT, clock)
        self._can_trim = can_trim_prompt_cache(make_prompt_cache(weights.model))
        self._generator: Any = BatchGenerator(
            weights.model,
            completion_batch_size=n_parallel,
            prefill_batch_size=min(_N_PROMPTS, n_parallel),
            prefill_step_size=n_batch,
        )
        self._stop = StopSequences([(token,) for token in sorted(vocabulary.end_tokens)])
        self._never_stop = StopSequences()
        self._next_due = math.inf  # the next deadline of anybody
        self._hold = False  # after a request had to give way, none is admitted until another has ended

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._waiting

    @property
    def kv(self) -> tuple[int, int]:
        """Tokens of KV that the running requests take, padding included, and how many may be taken."""
        return self._cells(), self._n_ctx

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ContextLengthError: Its prompt leaves no room for one token of answer.
            EngineBusyError: Too many wait.
            RequestError: A sampling option does not suit the model.
        """
        if len(job.prompt) >= self._n_ctx:
            raise ContextLengthError(len(job.prompt), self._n_ctx)
        if len(self._waiting) >= self._max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} requests are waiting already.", "Try again in a moment.")
        TokenSampler(job.sampling, self._weights.n_vocab)  # refuses now what it would refuse later
        request = Running(job, list(job.prompt), TextStream(job.stop), self._clock())
        self._waiting.append(request)
        self._next_due = min(self._next_due, due(request))

    def cancel(self, job_id: int) -> None:
        """Forget a job, running or waiting; one that has ended is no error."""
        for request in self._waiting:
            if request.job.id == job_id:
                self._waiting.remove(request)
                return
        for uid, request in self._running.items():
            if request.job.id == job_id:
                self._leave(uid, request)
                return

    def step(self) -> list[JobEvent]:
        """Admit, decode one token for each, read a slice of the prompts; the events of all jobs it touched."""
        events: list[JobEvent] = []
        if self._clock() >= self._next_due:
            self._end_overdue(events)
        self._admit(events)
        self._make_room()
        if not self._running:
            return events
        for answer in self._next_answers():
            self._advance(answer, events)
        return events

    # --- admission -------------------------------------------------------------------------------------------------

    def _admit(self, events: list[JobEvent]) -> None:
        # A look at many would cost more than it can win: some dozen comparisons each.
        for request in in_turn(self._waiting, list(self._running.values()), self._clock())[: 2 * self._n_parallel]:
            if len(self._running) >= self._n_parallel:
                return
            if self._running and (self._hold or self._cells(request) > self._n_ctx):
                return
            n_shared, holder = self._find_holder(request)
            if not self._should_wait(request, n_shared):
                self._waiting.remove(request)
                self._start(request, self._share(n_shared, holder), events)

    def _find_holder(self, request: Running) -> tuple[int, Kept | int | None]:
        """The longest beginning of a prompt that is there: its length, and what holds it, kept or running (a uid)."""
        if request.scores_prompt:
            return 0, None  # all of it is computed: its logits are wanted
        # The last token is always computed anew: its logits are needed.
        wanted, client = as_tokens(request.tokens[:-1]), request.job.client
        best: tuple[int, Kept | int | None] = self._kept.find(wanted, client)
        if not self._can_trim:
            return best
        for uid, other in self._running.items():
            if other.job.client == client and not other.reading:
                n = n_common(wanted, as_tokens(other.tokens))
                if n >= MIN_SHARED and n > best[0]:
                    best = n, uid
        return best

    def _share(self, n: int, holder: Kept | int | None) -> Shared:
        match holder:
            case None:
                return Shared()
            case Kept():
                return self._kept.take(holder, n)
        cache, tokens = self._generator.extract_cache([holder])[holder]
        # A sliding window that has moved on cannot be taken back.
        return Shared(n, cut(cache, len(tokens) - n)) if can_trim_prompt_cache(cache) else Shared()

    def _should_wait(self, request: Running, n_shared: int) -> bool:
        """Whether somebody is just reading what this request begins with."""
        if request.scores_prompt or not self._can_trim:
            return False
        wanted, client = as_tokens(request.tokens[:-1]), request.job.client
        return any(
            n_common(wanted, as_tokens(other.tokens)) - n_shared >= _WORTH_WAITING
            for other in self._running.values()
            if other.job.client == client and other.reading
        )

    def _cells(self, another: Running | None = None) -> int:
        """Tokens of KV that the running requests and ``another`` take: rows, each as long as the longest."""
        lengths = [len(request.tokens) + 1 for request in self._running.values()]
        if another is not None:
            lengths.append(len(another.tokens) + _HEADROOM)
        return len(lengths) * max(lengths, default=0)

    def _start(self, request: Running, shared: Shared, events: list[JobEvent]) -> None:
        """Hand a request to mlx-lm, with the beginning of its prompt whose KV is there."""
        job = request.job
        known: list[TokenLogprob] | None = None
        n_cached = shared.n
        if request.scores_prompt:
            known, shared = self._score_prompt(job)
        if not request.started:
            request.started, request.n_cached = True, n_cached
            events.append((job.id, Started(len(job.prompt), request.n_cached)))
        if known is not None:
            events.append((job.id, PromptLogprobs(tuple(known))))
            if job.max_tokens == 0:
                events += request.end("length", self._clock())
                return
        sampler = TokenSampler(job.sampling, self._weights.n_vocab, request.n_generated, job.matcher)
        [uid] = self._generator.insert(
            [request.tokens[shared.n :]],
            max_tokens=[self._n_left(request)],
            caches=[shared.cache],
            all_tokens=[request.tokens[: shared.n]],
            # None is mlx-lm's own greedy sampler, which takes a whole batch at once.
            samplers=[None if sampler.plain_greedy else sampler],
            logits_processors=[[sampler.observe] if sampler.observes else None],
            stop_sequences=[self._never_stop if job.ignore_eos else self._stop],
        )
        request.reading, request.sampler = True, sampler
        self._running[uid] = request

    def _n_left(self, request: Running) -> int:
        n_left = self._n_ctx - len(request.tokens)
        return n_left if request.n_left is None else min(n_left, request.n_left)

    def _score_prompt(self, job: Job) -> tuple[list[TokenLogprob], Shared]:
        """The prompt's own log-probabilities, and the KV of all but its last token.

        All in one go: the others wait, which is right for what this is for (evaluation) and for nothing else.
        """
        text, n_top = self._vocabulary.token_text, job.n_logprobs or 0
        known = [TokenLogprob(job.prompt[0], text(job.prompt[0]), None)]
        if len(job.prompt) == 1:
            return known, Shared()
        cache = make_prompt_cache(self._weights.model)
        with mx.stream(self._generator.stream):
            for start in range(0, len(job.prompt) - 1, self._n_batch):
                piece = job.prompt[start : min(start + self._n_batch, len(job.prompt) - 1)]
                logits = self._weights.model(mx.array([piece]), cache=cache)[0].astype(mx.float32)
                mx.eval(logits, [layer.state for layer in cache])
                following = job.prompt[start + 1 : start + 1 + len(piece)]
                known += [
                    token_logprob(row, token, n_top, text)
                    for row, token in zip(np.array(logits), following, strict=True)
                ]
        return known, Shared(len(job.prompt) - 1, cache)

    def _make_room(self) -> None:
        """Let some give way until the others have room; forget what is kept but has none."""
        while len(self._running) > 1 and self._cells() > self._n_ctx:
            request = giving_way(self._running.values())
            uid = next(uid for uid, other in self._running.items() if other is request)
            del self._running[uid]
            log.info("the cache is full: request %d gives way after %d tokens", request.job.id, len(request.tokens))
            self._generator.remove([uid])
            self.meter.n_preempted += 1
            self._waiting.appendleft(request)
            self._hold = True
        self._kept.trim((self._n_ctx - self._cells()) * self._weights.kv_bytes)

    def _next_answers(self) -> list[Any]:
        """One step of mlx-lm: its responses for the requests that got a token."""
        n_reading = sum(request.reading for request in self._running.values())
        n_decoding = len(self._running) - n_reading
        # With nobody to keep waiting a slice of the prompts may be long. mlx-lm reads this size at every step.
        limit = min(self._n_batch, self._pace.slice(n_decoding, n_reading)) if n_decoding else self._n_batch
        self._generator.prefill_step_size = max(1, limit // max(1, n_reading))
        began = self._clock()
        with self._generator.stats() as done:
            _, answers = self._generator.next()
        seconds = self._clock() - began
        self.meter.native += seconds
        self.meter.batch(n_decoding + done.prompt_tokens, done.prompt_tokens)
        if done.prompt_tokens:
            self._pace.learn(n_decoding, done.prompt_tokens, seconds)
        else:
            self._costs.learn(n_decoding, seconds)
        return list(answers)

    # --- what a step gave ------------------------------------------------------------------------------------------

    def _advance(self, answer: Any, events: list[JobEvent]) -> None:
        request = self._running[answer.uid]
        request.reading = False
        if request.sampler is not None and request.sampler.error is not None:
            self._end(answer, request)
            events.append((request.job.id, request.sampler.error))
            return
        if request.n_generated == 0:
            request.first_token = self._clock()
        request.tokens.append(answer.token)
        if request.job.n_logprobs is not None:
            row = np.array(answer.logprobs.astype(mx.float32))
            n_top = request.job.n_logprobs
            request.logprobs.append(token_logprob(row, answer.token, n_top, self._vocabulary.token_text))
        reason: FinishReason | None = answer.finish_reason
        if reason != "stop":
            shown = answer.token in request.job.shown
            piece = self._vocabulary.token_text if shown else self._vocabulary.piece
            events += request.feed(piece(answer.token))
            # The matcher knows of this token: mlx-lm has asked for the next one already.
            if request.text.stopped or (request.job.matcher is not None and request.job.matcher.is_finished):
                reason = "stop"
        if reason is not None:
            self._end(answer, request)
            events += request.end(reason, self._clock())

    def _end(self, answer: Any, request: Running) -> None:
        if answer.finish_reason is None:  # of a stop string or a grammar mlx-lm knows nothing
            self._leave(answer.uid, request)
            return
        self._keep(request, answer.prompt_cache, answer.all_tokens)
        del self._running[answer.uid]
        self._hold = False

    def _end_overdue(self, events: list[JobEvent]) -> None:
        now = self._clock()
        late = [request for request in (*self._waiting, *self._running.values()) if now >= due(request)]
        for request in late:
            self.cancel(request.job.id)
            if request.n_generated:
                events += request.end("length", now)
            else:
                events.append((request.job.id, too_late(request)))
        self._next_due = min(map(due, (*self._waiting, *self._running.values())), default=math.inf)

    def _leave(self, uid: int, request: Running) -> None:
        """Take a request that has not ended out of the batch, and keep what it leaves if all of its prompt was read."""
        if not request.reading:
            caches = self._generator.remove([uid], return_prompt_caches=True)
            self._keep(request, *caches[uid])
        else:
            self._generator.remove([uid])
        del self._running[uid]
        self._hold = False

    def _keep(self, request: Running, cache: Any, tokens: list[int]) -> None:
        self._kept.keep(as_tokens(tokens), request.job.client, cache)
