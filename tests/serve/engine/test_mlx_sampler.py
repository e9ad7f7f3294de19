"""The MLX engine's sampler, against numpy."""

from collections import Counter

import mlx.core as mx
import numpy as np
import pytest

from localllm.errors import RequestError
from serve.engine.mlx_sampler import TokenSampler
from serve.engine.types import SamplingParams

LOGITS = np.array([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -8.0], np.float32)
FREE = {"top_k": 0, "top_p": 1.0, "min_p": 0.0, "temperature": 1.0, "seed": 0}


def softmax(values):
    exponents = np.exp(values - values.max())
    return exponents / exponents.sum()


def draw(n, **fields):
    sampler = TokenSampler(SamplingParams(**FREE | fields), len(LOGITS))
    logprobs = mx.array(np.log(softmax(LOGITS)))[None]
    return mx.concatenate([sampler(logprobs) for _ in range(n)]).tolist()


def once(context=(), logits=LOGITS, **fields):
    sampler = TokenSampler(SamplingParams(**FREE | {"temperature": 0.0} | fields), len(logits))
    raw = mx.array(logits)[None]
    if sampler.observes:
        assert sampler.observe(mx.array(context, mx.int32), raw) is raw
    return sampler(raw - mx.logsumexp(raw)).item()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_distribution(temperature):
    counts = Counter(draw(1500, temperature=temperature))
    wanted = softmax(LOGITS / temperature)
    shares = np.array([counts[token] / 1500 for token in range(len(LOGITS))])
    assert np.abs(shares - wanted).max() < 0.04


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({"top_k": 1}, {0}),
        ({"top_k": 3}, {0, 1, 2}),
        ({"top_k": 99, "min_p": 0.5}, {0, 1}),
        ({"min_p": 0.5}, {0, 1}),
        ({"min_p": 1.0}, {0}),
        ({"top_p": 0.5}, {0, 1}),
        ({"top_p": 0.0}, {0}),
        ({"top_k": 2, "top_p": 0.6}, {0}),  # of the two alone the first has 0.62
        ({"top_k": 4, "top_p": 0.9, "min_p": 0.3}, {0, 1, 2}),
        ({"logit_bias": ((0, -100.0), (1, -100.0)), "top_k": 1}, {2}),
    ],
)
def test_only_what_is_kept_is_drawn(fields, kept):
    assert set(draw(200, temperature=5.0, **fields)) == kept


def test_a_seed_repeats_and_the_draws_of_one_differ():
    assert draw(30, seed=0) == draw(30, seed=0)
    assert draw(30, seed=0) != draw(30, seed=1)
    assert draw(30, seed=2**32 - 2) == draw(30, seed=2**32 - 2)
    assert draw(30, seed=None) != draw(30, seed=None)
    assert len(set(draw(30, temperature=3.0))) > 3


def test_a_request_that_comes_back_goes_on_as_it_would_have():
    logprobs = mx.array(LOGITS)[None]
    params = SamplingParams(**FREE)
    whole = TokenSampler(params, len(LOGITS))
    tokens = [whole(logprobs).item() for _ in range(20)]
    rest = TokenSampler(params, len(LOGITS), n_drawn=8)
    assert [rest(logprobs).item() for _ in range(12)] == tokens[8:]


def test_greedy_takes_the_likeliest():
    assert once() == 0
    assert TokenSampler(SamplingParams(temperature=0), 8).plain_greedy
    assert not TokenSampler(SamplingParams(temperature=0, repeat_penalty=1.1), 8).plain_greedy
    assert not TokenSampler(SamplingParams(temperature=0, logit_bias=((1, 1.0),)), 8).plain_greedy


def test_penalties_count_the_last_tokens():
    assert once(context=[0], repeat_penalty=1.5) == 1, "2.0 / 1.5 < 1.5"
    assert once(context=[0], repeat_penalty=1.2) == 0
    assert once(context=[0], presence_penalty=0.6) == 1
    assert once(context=[0, 0, 0], frequency_penalty=0.2) == 1, "three times 0.2"
    assert once(context=[0], frequency_penalty=0.2) == 0
    assert once(context=[0, 5, 6], presence_penalty=0.6, repeat_last_n=2) == 0, "out of the window"
    assert once(context=[0, 5, 6], presence_penalty=0.6, repeat_last_n=-1) == 1
    assert once(context=[0], presence_penalty=9.0, repeat_last_n=0) == 0


def test_a_repeat_penalty_makes_negative_logits_more_negative():
    logits = np.array([-1.0, -1.5], np.float32)
    assert once(context=[0], logits=logits, repeat_penalty=2.0) == 1
    assert once(context=[1], logits=logits, repeat_penalty=2.0) == 0


class Alternating:
    """A grammar of one token and another in turns, complete after four."""

    def __init__(self, tokens=(3, 5), error=None):
        self.tokens = tokens
        self.error = error
        self.taken = []

    @property
    def is_finished(self):
        return len(self.taken) == 4

    def allows(self, token):
        return token == self.tokens[len(self.taken) % 2]

    def accept(self, token):
        assert self.allows(token)
        self.taken.append(token)

    def allowed(self):
        if self.error is not None:
            raise self.error
        return np.array([self.tokens[len(self.taken) % 2]])


@pytest.mark.parametrize("fields", [{"temperature": 0}, FREE, FREE | {"top_k": 2, "min_p": 0.1}, {"top_p": 0.1}])
def test_a_grammar_is_followed_and_told_of_each_token_in_turn(fields):
    matcher = Alternating()
    sampler = TokenSampler(SamplingParams(**fields), len(LOGITS), matcher=matcher)
    assert not sampler.plain_greedy
    logprobs = mx.array(LOGITS)[None]
    assert [sampler(logprobs).item() for _ in range(4)] == [3, 5, 3, 5]
    assert matcher.taken == [3, 5, 3], "it learns of a token when the next one is asked for"
    sampler(logprobs)
    assert matcher.taken == [3, 5, 3, 5]
    assert sampler.error is None


def test_a_grammar_that_fails_leaves_its_error():
    error = RequestError("too complex")
    sampler = TokenSampler(SamplingParams(temperature=0), len(LOGITS), matcher=Alternating(error=error))
    assert sampler(mx.array(LOGITS)[None]).shape == (1,)
    assert sampler.error is error


def test_a_bias_outside_the_vocabulary_is_refused():
    with pytest.raises(RequestError, match="vocabulary of 8") as error:
        TokenSampler(SamplingParams(logit_bias=((8, 1.0),)), 8)
    assert error.value.param == "logit_bias"
