"""A request inside the MLX scheduler."""

from dataclasses import dataclass, field

from serve.engine.mlx_sampler import TokenSampler
from serve.engine.request import Job, JobEvent
from serve.engine.text import TextStream
from serve.engine.types import Delta, Finished, FinishReason, TokenLogprob, Usage


@dataclass(eq=False)
class Running:
    """A request that is in mlx-lm's hands, or waits to be (again).

    Attributes:
        job: What was asked.
        tokens: The prompt, then what was generated.
        text: Turns its tokens into text.
        arrived: When it was asked, in the scheduler's clock.
        n_cached: Tokens whose KV was there when it was first admitted.
        started: It was admitted before.
        sampler: Chooses its tokens, since its (last) admission.
        reading: Since its (last) admission no token has come: mlx-lm has not read all of its prompt.
        first_token: When it got its first token; 0 before.
        logprobs: Those of generated tokens that no Delta has told of.
        n_told: Generated tokens that a Delta has told of.
    """

    job: Job
    tokens: list[int]
    text: TextStream
    arrived: float
    n_cached: int = 0
    started: bool = False
    sampler: TokenSampler | None = None
    reading: bool = True
    first_token: float = 0.0
    logprobs: list[TokenLogprob] = field(default_factory=list)
    n_told: int = 0

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def n_left(self) -> int | None:
        """Tokens that it may still generate; None when only the context bounds them."""
        return None if self.job.max_tokens is None else self.job.max_tokens - self.n_generated

    @property
    def scores_prompt(self) -> bool:
        """Whether its prompt's log-probabilities are still to be computed."""
        return self.job.prompt_logprobs and not self.started

    def feed(self, piece: bytes) -> list[JobEvent]:
        """Take the bytes of a new token; the Delta that follows, if any text is certain."""
        text = self.text.feed(piece)
        return self._tell(text)

    def end(self, reason: FinishReason, now: float) -> list[JobEvent]:
        """The last Delta, if anything was held back, and Finished."""
        last = self._tell(self.text.finish(), last=True)
        return [*last, (self.job.id, self._finished(reason, now))]

    def _tell(self, text: str, *, last: bool = False) -> list[JobEvent]:
        if not text and not (last and self.logprobs):
            return []
        delta = Delta(text, self.n_generated - self.n_told, tuple(self.logprobs))
        self.n_told = self.n_generated
        self.logprobs.clear()
        return [(self.job.id, delta)]

    def _finished(self, reason: FinishReason, now: float) -> Finished:
        first = self.first_token or now
        usage = Usage(
            n_prompt=len(self.job.prompt),
            n_cached=self.n_cached,
            n_completion=self.n_generated,
            prompt_seconds=first - self.arrived,
            decode_seconds=now - first,
        )
        return Finished(reason, usage, self.text.found)
