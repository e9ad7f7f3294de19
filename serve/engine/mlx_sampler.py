"""How the MLX engine chooses a token: one request's sampler, on MLX arrays, never waiting for the device."""

import math
import secrets
from collections.abc import Sequence

import mlx.core as mx

from localllm.errors import RequestError
from serve.engine.constraint_types import TokenMatcher
from serve.engine.types import SamplingParams

# As in the llama.cpp engine: top_p sorts this many candidates instead of a vocabulary of 150 000.
_TOP_K_CEILING = 1024
_BANNED = -100.0  # what the API calls a ban
_N_SEEDS = 2**32


class TokenSampler:
    """One request's sampler, in the order that :class:`serve.engine.types.SamplingParams` gives.

    mlx-lm gives its samplers normalised log-probabilities, but a repeat penalty needs logits. So :meth:`observe` is
    put among its logits processors: it changes nothing (which keeps the log-probabilities the model's own) and
    remembers what :meth:`__call__` needs a moment later.

    Each draw has a key of its own, made from the seed and the number of the draw: a request that had to give way goes
    on as it would have.

    Args:
        params: How tokens are chosen.
        n_vocab: Width of the logits.
        n_drawn: Tokens that were drawn before.
        matcher: Where the answer stands in its grammar; None leaves it free.

    Attributes:
        error: What the grammar met; the request that this belongs to must end with it.

    Raises:
        RequestError: ``logit_bias`` names a token outside the vocabulary.
    """

    def __init__(
        self, params: SamplingParams, n_vocab: int, n_drawn: int = 0, matcher: TokenMatcher | None = None
    ) -> None:
        self._params = params
        self._n_vocab = n_vocab
        self._n_drawn = n_drawn
        self._matcher = matcher
        self._chosen: int | None = None  # inside a grammar that does not know of it yet
        self.error: RequestError | None = None
        self._seed = secrets.randbelow(_N_SEEDS) if params.seed is None else params.seed
        self._bias = _bias(params.logit_bias, n_vocab) if params.logit_bias else None
        self._penalised = params.repeat_last_n != 0 and (
            params.repeat_penalty,
            params.frequency_penalty,
            params.presence_penalty,
        ) != (1, 0, 0)
        self._logits: mx.array | None = None
        self._context: mx.array | None = None

    @property
    def plain_greedy(self) -> bool:
        """The most likely token and nothing else: mlx-lm does that for a whole batch at once."""
        free = self._bias is None and self._matcher is None
        return self._params.temperature <= 0 and not self.observes and free

    @property
    def observes(self) -> bool:
        """Whether :meth:`observe` must be among the logits processors."""
        return self._penalised

    def observe(self, context: mx.array, logits: mx.array) -> mx.array:
        """Remember the tokens so far, of shape (n,), and the logits, of shape (1, n_vocab); give the logits back."""
        self._context, self._logits = context, logits
        return logits

    def __call__(self, logprobs: mx.array) -> mx.array:
        """Choose a token: shape (1, n_vocab) to shape (1,)."""
        scores = logprobs
        if self._penalised:
            assert self._logits is not None
            assert self._context is not None
            scores = self._penalise(self._logits, self._context)
            self._logits = self._context = None
        if self._bias is not None:
            scores = scores + self._bias
        # The key is the pair of both numbers.
        key = mx.random.key((self._seed << 32) + self._n_drawn)
        self._n_drawn += 1
        if self._matcher is None:
            return self._choose(scores, key)
        try:
            return self._choose_allowed(scores, key, self._matcher)
        except RequestError as error:
            # Raised here it would end the step of all others: the scheduler finds it.
            self.error = error
            return mx.argmax(scores, axis=-1)

    def _choose(self, scores: mx.array, key: mx.array) -> mx.array:
        if self._params.temperature <= 0:
            return mx.argmax(scores, axis=-1)
        return self._draw(scores.astype(mx.float32), key)

    def _choose_allowed(self, scores: mx.array, key: mx.array, matcher: TokenMatcher) -> mx.array:
        """Choose inside a grammar; this waits for the device, because the grammar must see each token.

        mlx-lm asks for a token before it has told of the one before, so that is the moment when the matcher takes it.
        Most candidates are allowed: the mask over the whole vocabulary is made only when one is not.
        """
        if self._chosen is not None:
            matcher.accept(self._chosen)
            self._chosen = None
        if matcher.is_finished:
            return mx.argmax(scores, axis=-1)  # never told: the answer has ended
        first, second = mx.random.split(key)
        token = self._choose(scores, first)
        if not matcher.allows(_id(token)):
            allowed = mx.array(matcher.allowed())
            closed = mx.ones(scores.shape[-1:], mx.int32)
            closed[allowed] = 0
            token = self._choose(mx.where(closed, -math.inf, scores), second)
        self._chosen = _id(token)
        return token

    def _penalise(self, logits: mx.array, context: mx.array) -> mx.array:
        params = self._params
        recent = context if params.repeat_last_n < 0 else context[-params.repeat_last_n :]
        counts = mx.zeros((self._n_vocab,), mx.float32).at[recent].add(1.0)
        seen = counts > 0
        repeat = params.repeat_penalty
        scores = mx.where(seen, mx.where(logits > 0, logits / repeat, logits * repeat), logits)
        return scores - counts * params.frequency_penalty - seen * params.presence_penalty

    def _draw(self, scores: mx.array, key: mx.array) -> mx.array:
        params = self._params
        top_k = params.top_k or (_TOP_K_CEILING if params.top_p < 1 else self._n_vocab)
        if top_k >= self._n_vocab and params.top_p >= 1:
            if params.min_p > 0:
                floor = scores.max(axis=-1, keepdims=True) + math.log(params.min_p)
                scores = mx.where(scores < floor, -math.inf, scores)
            return mx.random.categorical(scores / params.temperature, key=key)
        if top_k < self._n_vocab:
            candidates = mx.argpartition(-scores, top_k - 1, axis=-1)[:, :top_k]
        else:
            candidates = mx.broadcast_to(mx.arange(self._n_vocab), scores.shape)
        kept = mx.take_along_axis(scores, candidates, axis=-1)
        order = mx.argsort(-kept, axis=-1)
        candidates = mx.take_along_axis(candidates, order, axis=-1)
        kept = mx.take_along_axis(kept, order, axis=-1)
        probabilities = mx.softmax(kept, axis=-1)
        # The most likely one always stays: nothing comes before it, and it is its own measure.
        before = mx.cumsum(probabilities, axis=-1) - probabilities
        dropped = (before >= params.top_p) if params.top_p < 1 else mx.zeros(before.shape, mx.bool_)
        dropped = dropped | (probabilities < params.min_p * probabilities[:, :1])
        dropped[:, :1] = False
        kept = mx.where(dropped, -math.inf, kept)
        place = mx.random.categorical(kept / params.temperature, key=key)
        return mx.take_along_axis(candidates, place[:, None], axis=-1)[:, 0]


def _id(token: mx.array) -> int:
    """Wait for a token that was chosen."""
    value = token.item()
    assert isinstance(value, int)
    return value


def _bias(bias: Sequence[tuple[int, float]], n_vocab: int) -> mx.array:
    """What is added to the logits, float32 of shape (n_vocab,)."""
    for token, _ in bias:
        if not 0 <= token < n_vocab:
            raise RequestError(f"Token {token} is not in the vocabulary of {n_vocab}.", param="logit_bias")
    tokens = mx.array([token for token, _ in bias])
    values = mx.array([value if value > _BANNED else -math.inf for _, value in bias], mx.float32)
    return mx.zeros((n_vocab,), mx.float32).at[tokens].add(values)
