"""A request inside the scheduler."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from localllm.errors import LocalLLMError
from serve.engine.constraint_types import TokenMatcher
from serve.engine.lookup import Lookup
from serve.engine.text import TextStream
from serve.engine.types import Delta, Finished, PromptLogprobs, SamplingParams, Started, TokenLogprob

if TYPE_CHECKING:
    from serve.engine.backend import Chain  # imports llama.cpp, which the MLX engine's process does without

Tokens = np.ndarray[tuple[int], np.dtype[np.int32]]
# What a sequence of the KV cache holds, as bytes.
State = np.ndarray[tuple[int], np.dtype[np.uint8]]


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter as one request uses it.

    Attributes:
        path: Its GGUF file.
        fingerprint: Changes when the file does.
        n_bytes: Size of the file.
        scale: What its effect is multiplied by; never 0.
    """

    path: str
    fingerprint: str
    n_bytes: int
    scale: float = 1.0


# Sorted, so that the same adapters in another order are the same set.
AdapterSet = tuple[Adapter, ...]


@dataclass(frozen=True)
class Job:
    """One tokenized request.

    Attributes:
        id: Chosen by whoever asks; unique among the jobs that have not ended.
        prompt: Token ids, at least one.
        sampling: How tokens are chosen.
        max_tokens: Longest answer, or None; 0 reads the prompt only: its KV is there for the next request.
        stop: Stop strings.
        n_logprobs: As in :class:`serve.engine.types.GenerateRequest`, like all that follow.
        prompt_logprobs: Report the prompt's log-probabilities.
        ignore_eos: Go on after the end of a turn.
        client: Whose it is.
        shown: Special tokens whose text is part of the answer.
        matcher: At the beginning of the answer's grammar; belongs to this job alone.
        adapters: What the model is to compute with; they have been checked.
        priority: Higher ones first.
        deadline: Seconds from its arrival, or None.
    """

    id: int
    prompt: tuple[int, ...]
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    n_logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    client: str = ""
    shown: frozenset[int] = frozenset()
    matcher: TokenMatcher | None = None
    adapters: AdapterSet = ()
    priority: int = 0
    deadline: float | None = None

    @property
    def owner(self) -> "Owner":
        """Whose KV it is: nobody else's request may begin with it, nor one with other adapters."""
        return self.client, self.adapters


Owner = tuple[str, AdapterSet]


AnyEvent = Started | PromptLogprobs | Delta | Finished | LocalLLMError
JobEvent = tuple[int, AnyEvent]


@dataclass(eq=False)
class Running:
    """A request that holds a sequence, or waits to hold one (again).

    Attributes:
        job: What was asked.
        tokens: The prompt, then what was generated.
        chain: Its sampler.
        text: Turns its tokens into text.
        lookup: Guesses its next tokens.
        prompt: The prompt's token ids as an array.
        arrived: When it was asked, in the scheduler's clock.
        seq: Its sequence; -1 while it waits.
        n_past: Tokens whose KV is in the cache.
        n_cached: Those of them that were there when it was first admitted.
        first_token: When it got its first token; 0 before.
        rows: Its rows in this step's batch that have logits; one for the next token and one for each guess.
        n_batched: All of its rows in this step's batch.
        guesses: The tokens guessed in this step.
        prompt_logprobs: Those of the prompt, as far as they are known.
        logprobs: Those of generated tokens that no Delta has told of.
        n_told: Generated tokens that a Delta has told of.
    """

    job: Job
    tokens: list[int]
    chain: "Chain"
    text: TextStream
    lookup: Lookup
    prompt: Tokens
    arrived: float
    seq: int = -1
    n_past: int = 0
    n_cached: int = 0
    started: bool = False
    first_token: float = 0.0
    rows: range = range(0)
    n_batched: int = 0
    guesses: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    n_told: int = 0

    @property
    def n_generated(self) -> int:
        """Tokens generated so far."""
        return len(self.tokens) - len(self.job.prompt)

    @property
    def n_pending(self) -> int:
        """Tokens whose KV is not in the cache yet."""
        return len(self.tokens) - self.n_past

    @property
    def decoding(self) -> bool:
        """Its prompt is done: each step gives it a token."""
        return self.n_pending == 1 and self.n_generated > 0

    @property
    def n_left(self) -> int | None:
        """Tokens that it may still generate; None when only the context bounds them."""
        return None if self.job.max_tokens is None else self.job.max_tokens - self.n_generated
