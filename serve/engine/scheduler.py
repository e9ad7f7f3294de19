"""Continuous batching: every step decodes one token of each running request and a slice of the waiting prompts.

One KV cache holds all sequences. A finished sequence is parked: the next request of the same client that begins with
the same tokens starts from it, and it is the first to go when room is needed. When nothing parked is left, the
youngest of the least important running requests gives way, keeps its text, and comes back later.
"""

import logging
import math
import time
from collections import deque
from collections.abc import Callable

from localllm.errors import ContextLengthError, EngineBusyError, EngineError, RequestError
from serve.engine.backend import Backend
from serve.engine.costs import StepCosts
from serve.engine.draft import Drafter
from serve.engine.groups import AdapterTurns
from serve.engine.logprobs import token_logprob
from serve.engine.lookup import Lookup
from serve.engine.order import due, giving_way, in_turn, too_late
from serve.engine.pace import Pace
from serve.engine.parking import Parking
from serve.engine.prefix import MIN_SHARED, Parked, about_to_hold, as_tokens
from serve.engine.request import Job, JobEvent, Running
from serve.engine.snapshots import Snapshots
from serve.engine.speculation import MAX_LOSS, Speculation
from serve.engine.step_meter import StepMeter
from serve.engine.text import TextStream
from serve.engine.types import Delta, Finished, FinishReason, PromptLogprobs, Started, TokenLogprob, Usage

log = logging.getLogger(__name__)

_HEADROOM = 32  # tokens that must be free beyond a prompt before it is admitted: answers grow
_WORTH_WAITING = 64  # tokens that a request must gain by waiting for another one's prompt


class Scheduler:
    """Runs jobs on a backend. Used by one thread only; :meth:`step` does one batch.

    Args:
        backend: The model.
        n_parallel: Jobs that run together at most.
        max_waiting: Jobs that wait at most; one more is refused.
        max_guess: Tokens guessed from the text so far at once; 0 never guesses.
        drafter: A second model that guesses too.
        snapshots: Where prefixes go that have no room in memory; None where they are forgotten.
        clock: Seconds; for tests.
        meter: Adds up what the steps do; the one that the backend counts its time in.
        max_loss: What wrong guesses may cost, as a share of the time spent decoding.
    """

    def __init__(
        self,
        backend: Backend,
        *,
        n_parallel: int,
        max_waiting: int = 256,
        max_guess: int = 0,
        drafter: Drafter | None = None,
        snapshots: Snapshots | None = None,
        clock: Callable[[], float] = time.perf_counter,
        meter: StepMeter | None = None,
        max_loss: float = MAX_LOSS,
    ) -> None:
        self.meter = meter or StepMeter(clock)
        self._backend = backend
        self._n_parallel = n_parallel
        self._max_waiting = max_waiting
        # A state that cannot drop its tail cannot take a wrong guess back.
        n_guess, drafter = (max_guess, drafter) if backend.can_share else (0, None)
        self._costs = StepCosts()
        self._speculation = Speculation(n_guess, drafter, self._costs, max_loss)
        self._clock = clock
        self._waiting: deque[Running] = deque()
        self._running: list[Running] = []
        self._free = list(range(backend.n_seq - 1, -1, -1))
        self._parking = Parking(backend, self._free, backend.n_seq - n_parallel, snapshots)
        self._hold = False  # after a request had to give way, none is admitted until another has ended
        self._pace = Pace(self._costs)
        self._turns = AdapterTurns(backend.use_adapters)
        self._next_due = math.inf  # the next deadline of anybody

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""
        return not self._running and not self._waiting

    @property
    def n_free(self) -> int:
        """Sequence ids that neither run nor are parked."""
        return len(self._free)

    @property
    def kv(self) -> tuple[int, int]:
        """Tokens in the KV cache (a beginning that several share counts for each), and its size."""
        used = sum(request.n_past for request in self._running)
        return used + self._parking.n_tokens, self._backend.n_ctx

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ContextLengthError: Its prompt leaves no room for one token of answer.
            EngineBusyError: Too many wait, or too many adapters are in use.
            RequestError: An adapter cannot be loaded.
        """
        if len(job.prompt) >= self._backend.n_ctx:
            raise ContextLengthError(len(job.prompt), self._backend.n_ctx)
        if len(self._waiting) >= self._max_waiting:
            raise EngineBusyError(f"{len(self._waiting)} requests are waiting already.", "Try again in a moment.")
        if job.adapters:
            others = (*self._waiting, *self._running)
            self._backend.load_adapters(job.adapters, {used for other in others for used in other.job.adapters})
        chain = self._backend.chain(job.sampling, job.prompt)
        text, lookup = TextStream(job.stop), Lookup()
        prompt = as_tokens(job.prompt)
        request = Running(job, list(job.prompt), chain, text, lookup, prompt, self._clock())
        self._waiting.append(request)
        self._next_due = min(self._next_due, due(request))

    def cancel(self, job_id: int) -> None:
        """Forget a job, running or waiting; one that has ended is no error."""
        for request in (*self._waiting, *self._running):
            if request.job.id == job_id:
                self._retire(request)
                return

    def save(self) -> None:
        """Keep what is parked on the disk, where it is to be kept: the process is about to end."""
        self._parking.save()

    def step(self) -> list[JobEvent]:
        """Admit, decode one batch, sample; the events of all jobs it touched.

        Raises:
            EngineError: llama.cpp failed in a way that leaves the cache unknown.
        """
        events: list[JobEvent] = []
        if self._clock() >= self._next_due:
            self._end_overdue(events)
        self._admit(events)
        if not self._running:
            return events
        began = self._clock()
        self._fill_batch()
        while (code := self._backend.decode()) == 1:
            if not self._make_room():
                self._finish(self._running[0], "length", events)  # the only one left fills the cache by itself
                return events
            self._fill_batch(guess=False)
        if code != 0:
            raise EngineError(f"llama.cpp could not decode a batch (code {code}).")
        batched = [request for request in self._running if request.n_batched]
        guessing = [request for request in batched if request.guesses]
        n_decoding = sum(request.decoding for request in batched)
        n_rows = sum(request.n_batched for request in batched)
        n_prefill = sum(request.n_batched for request in batched if not request.decoding)
        n_guessed = sum(len(request.guesses) for request in guessing)
        n_right = -sum(len(request.tokens) + 1 for request in guessing)  # one token comes without guesses
        for request in batched:
            self._advance(request, events)
        n_right += sum(len(request.tokens) for request in guessing)
        self.meter.batch(n_rows, n_prefill, n_guessed, n_right)
        seconds = self._clock() - began
        if n_prefill:
            self._pace.learn(n_decoding, n_prefill, seconds)
        else:
            self._costs.learn(n_rows, seconds - self._speculation.learn(n_decoding, n_rows, n_right, seconds))
        return events

    # --- admission -------------------------------------------------------------------------------------------------

    def _admit(self, events: list[JobEvent]) -> None:
        if not self._waiting:
            return
        # A look at many would cost more than it can win: some dozen comparisons each.
        for request in in_turn(self._waiting, self._running, self._clock())[: 2 * self._n_parallel]:
            if len(self._running) >= self._n_parallel or (self._running and self._hold):
                return
            source, n_shared = self._prefix(request)
            if self._should_wait(request, n_shared):
                continue
            if self._running and not self._has_room(request, n_shared):
                return
            self._waiting.remove(request)
            self._take_sequence(request, source, n_shared)
            self._running.append(request)
            self._parking.make_way(self._running)
            if not request.started:
                request.started = True
                request.n_cached = request.n_past
                events.append((request.job.id, Started(len(request.job.prompt), request.n_cached)))

    def _prefix(self, request: Running) -> tuple[Parked | Running | None, int]:
        if not self._backend.can_share or request.job.prompt_logprobs:
            return None, 0  # the prompt's own logits are wanted, so all of it is computed
        # The last token is always computed anew: its logits are needed.
        wanted = as_tokens(request.tokens[:-1])
        return self._parking.find(wanted, request.job.owner, self._running, self._clock())

    def _should_wait(self, request: Running, n_shared: int) -> bool:
        """Whether somebody is just computing what this request begins with."""
        if not self._running or not self._backend.can_share or request.job.prompt_logprobs:
            return False
        soon = about_to_hold(as_tokens(request.tokens[:-1]), request.job.owner, self._running)
        return soon - n_shared >= _WORTH_WAITING

    def _has_room(self, request: Running, n_shared: int) -> bool:
        # An estimate (a shared beginning may be counted for nobody); decode() answering 1 has the last word.
        used = sum(len(other.tokens) - other.n_cached for other in self._running)
        return used + len(request.tokens) - n_shared + _HEADROOM <= self._backend.n_ctx

    def _take_sequence(self, request: Running, source: Parked | Running | None, n_shared: int) -> None:
        # There is one: at most n_seq - n_parallel are parked, and fewer than n_parallel run.
        request.seq = self._free.pop()
        request.n_past = 0
        if source is not None and self._backend.share(source.seq, request.seq, n_shared):
            request.n_past = n_shared
            if isinstance(source, Parked):
                source.last_used = self._clock()

    # --- one batch -------------------------------------------------------------------------------------------------

    def _fill_batch(self, *, guess: bool = True) -> None:
        """Decoding requests first, with their guesses; then slices of prompts; all of one adapter set."""
        self._backend.clear_batch()
        members = self._turns.take(self._running, self._clock())
        decoding = [request for request in members if request.decoding]
        room = self._backend.n_batch - len(decoding)
        for request in self._running:
            request.n_batched, request.rows, request.guesses = 0, range(0), []
        if guess:
            self._speculation.guess(decoding, room, self._backend.n_ctx)
        for request in decoding:
            room -= len(request.guesses)
            last = self._backend.add(
                [request.tokens[-1], *request.guesses], request.n_past, request.seq, logits=1 + len(request.guesses)
            )
            request.n_batched = 1 + len(request.guesses)
            request.rows = range(last + 1 - request.n_batched, last + 1)
        if decoding:
            n_reading = len(members) - len(decoding)
            room = min(room, self._pace.slice(len(decoding), n_reading)) if n_reading else 0
        for request in members:
            if room and not request.decoding:
                self._add_slice(request, min(room, request.n_pending))
                room -= request.n_batched

    def _add_slice(self, request: Running, n: int) -> None:
        piece = request.tokens[request.n_past : request.n_past + n]
        wants_all = request.job.prompt_logprobs and request.n_generated == 0
        n_logits = n if wants_all else int(n == request.n_pending)
        last = self._backend.add(piece, request.n_past, request.seq, logits=n_logits)
        request.n_batched = n
        request.rows = range(last + 1 - n_logits, last + 1)

    def _make_room(self) -> bool:
        """Free some of the cache: the oldest parked sequence, else a request, if it is not the only one."""
        if self._parking.evict():
            return True
        if len(self._running) < 2:
            return False
        victim = giving_way(self._running)
        log.info("the cache is full: request %d gives way after %d tokens", victim.job.id, len(victim.tokens))
        self.meter.n_preempted += 1
        self._running.remove(victim)
        self._backend.drop(victim.seq)
        self._free.append(victim.seq)
        victim.seq, victim.n_past = -1, 0
        victim.prompt_logprobs.clear()
        self._waiting.appendleft(victim)
        self._hold = True
        return True

    # --- what a batch gave -----------------------------------------------------------------------------------------

    def _advance(self, request: Running, events: list[JobEvent]) -> None:
        start = request.n_past
        request.n_past += request.n_batched
        rows = request.rows
        if request.job.prompt_logprobs and request.n_generated == 0:
            rows = self._take_prompt_logprobs(request, start, events)
        if request.job.max_tokens == 0 and not request.n_pending:
            self._finish(request, "length", events)
            return
        for place, row in enumerate(rows):
            try:
                token = self._sample(request, row)
            except RequestError as error:  # its grammar has become too complex; the others go on
                self._take_back(request, place)
                self._retire(request)
                events.append((request.job.id, error))
                return
            reason = self._take_token(request, token, events)
            if reason is not None:
                self._take_back(request, place)
                self._finish(request, reason, events)
                return
            if place < len(request.guesses) and token != request.guesses[place]:
                self._take_back(request, place)
                return

    def _take_back(self, request: Running, n_right: int) -> None:
        """Forget the guesses after the first ``n_right``."""
        if n_right < len(request.guesses):
            request.n_past -= len(request.guesses) - n_right
            self._backend.drop(request.seq, request.n_past)

    def _sample(self, request: Running, row: int) -> int:
        n_logprobs = request.job.n_logprobs
        matcher = request.job.matcher
        if n_logprobs is None:
            token = self._backend.sample(request.chain, row, matcher)
        else:
            logits = self._backend.logits(row).copy()  # sampling may write into them
            token = self._backend.sample(request.chain, row, matcher)
            request.logprobs.append(token_logprob(logits, token, n_logprobs, self._backend.token_text))
        if matcher is not None:
            matcher.accept(token)
        if request.n_generated == 0:
            request.first_token = self._clock()
        request.tokens.append(token)
        return token

    def _take_prompt_logprobs(self, request: Running, start: int, events: list[JobEvent]) -> range:
        """Take note of the prompt's log-probabilities; return the row that gives the first token, if it is there."""
        prompt, known = request.job.prompt, request.prompt_logprobs
        if start == 0:
            known.append(TokenLogprob(prompt[0], self._backend.token_text(prompt[0]), None))
        last = len(prompt) - 1
        for position, row in enumerate(request.rows, start):
            if position < last:
                n_top = request.job.n_logprobs or 0
                logits = self._backend.logits(row)
                known.append(token_logprob(logits, prompt[position + 1], n_top, self._backend.token_text))
        if request.n_past <= last:
            return range(0)
        events.append((request.job.id, PromptLogprobs(tuple(known))))
        return request.rows[-1:]

    def _take_token(self, request: Running, token: int, events: list[JobEvent]) -> FinishReason | None:
        if self._backend.is_eog(token) and not request.job.ignore_eos:
            return "stop"
        shown = self._backend.token_text if token in request.job.shown else self._backend.piece
        self._tell(request, request.text.feed(shown(token)), events)
        if request.text.stopped or (request.job.matcher is not None and request.job.matcher.is_finished):
            return "stop"
        if request.n_left == 0 or len(request.tokens) >= self._backend.n_ctx:
            return "length"
        return None

    def _tell(self, request: Running, text: str, events: list[JobEvent], *, last: bool = False) -> None:
        if text or (last and request.logprobs):
            n_new = request.n_generated - request.n_told
            events.append((request.job.id, Delta(text, n_new, tuple(request.logprobs))))
            request.n_told = request.n_generated
            request.logprobs.clear()

    # --- the end of a request --------------------------------------------------------------------------------------

    def _end_overdue(self, events: list[JobEvent]) -> None:
        now = self._clock()
        for request in (*self._waiting, *self._running):
            if now >= due(request):
                if request.n_generated:
                    self._finish(request, "length", events)
                else:
                    self._retire(request)
                    events.append((request.job.id, too_late(request)))
        self._next_due = min(map(due, (*self._waiting, *self._running)), default=math.inf)

    def _finish(self, request: Running, reason: FinishReason, events: list[JobEvent]) -> None:
        self._tell(request, request.text.finish(), events, last=True)
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
        events.append((request.job.id, Finished(reason, usage, request.text.found)))

    def _retire(self, request: Running) -> None:
        """Take a request out, waiting or running, and park what it leaves in the cache."""
        request.chain.close()
        if request.seq < 0:
            self._waiting.remove(request)
            return
        self._running.remove(request)
        self._hold = False
        if not self._backend.can_share or request.n_past < MIN_SHARED:
            self._backend.drop(request.seq)
            self._free.append(request.seq)
            return
        tokens = as_tokens(request.tokens[: request.n_past])
        self._parking.park(Parked(request.seq, tokens, request.job.owner, self._clock()))
