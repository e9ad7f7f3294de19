"""From logits to perplexity, to KL divergence from a reference, and to top-1 agreement."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

_ROWS = 32  # turned into probabilities at once: 32 rows of a vocabulary of 262,144 are 34 MB

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Perplexity:
    """How surprised a model is by a text.

    Attributes:
        perplexity: exp of the mean negative log-likelihood of a token.
        standard_error: Of the perplexity, as llama-perplexity states it.
        n_tokens: Tokens that were scored.
    """

    perplexity: float
    standard_error: float
    n_tokens: int

    @classmethod
    def of(cls, nll: Array) -> "Perplexity":
        """From the negative log-likelihoods of all tokens, in nats."""
        value = math.exp(float(nll.mean()))
        return cls(value, value * _standard_error(nll), int(nll.size))


@dataclass(frozen=True)
class Divergence:
    """How far a model's predictions are from those of its source.

    Attributes:
        kl_mean: Mean KL(source || model) of a token, in nats.
        kl_standard_error: Of the mean.
        kl_99: 99 of 100 tokens diverge less.
        kl_max: The worst token.
        agreement: Share of tokens for which both put the same token first.
        agreement_standard_error: Of the share.
    """

    kl_mean: float
    kl_standard_error: float
    kl_99: float
    kl_max: float
    agreement: float
    agreement_standard_error: float

    @classmethod
    def of(cls, kl: Array, agrees: Array) -> "Divergence":
        """From each token's KL divergence (nats), and whether both models put the same token first."""
        return cls(
            float(kl.mean()),
            _standard_error(kl),
            float(np.quantile(kl, 0.99)),
            float(kl.max()),
            float(agrees.mean()),
            _standard_error(agrees.astype(np.float64)),
        )


@dataclass(frozen=True)
class Summary:
    """The most probable tokens of some positions, and what the others weigh together.

    Attributes:
        ids: Token ids, the most probable first, int32 of shape (n, k).
        log_probs: Theirs, float32 of shape (n, k).
        rest: Log-probability of all other tokens together, float32 of shape (n,); -inf where there is nothing.
    """

    ids: Array
    log_probs: Array
    rest: Array


def negative_log_likelihoods(logits: Array, targets: Array) -> Array:
    """Of each target token, in nats, float64 of shape (n,).

    Args:
        logits: Float32 of shape (n, n_vocab).
        targets: Token ids, of shape (n,).
    """
    parts = []
    for start in range(0, len(targets), _ROWS):
        block = logits[start : start + _ROWS]
        top = block.max(axis=1, keepdims=True)
        chosen = np.take_along_axis(block, targets[start : start + _ROWS, None], axis=1)
        total = np.exp(block - top).sum(axis=1, dtype=np.float64)
        parts.append(np.log(total) - (chosen - top)[:, 0].astype(np.float64))
    return np.concatenate(parts)


def summarise(logits: Array, k: int) -> Summary:
    """Keep the ``k`` most probable tokens of each row of ``logits`` (float32 of shape (n, n_vocab))."""
    ids = []
    for start in range(0, len(logits), _ROWS):
        block = logits[start : start + _ROWS]
        part = np.argpartition(block, -k, axis=1)[:, -k:] if k < block.shape[1] else _all_ids(block)
        order = np.argsort(-np.take_along_axis(block, part, axis=1), axis=1, kind="stable")
        ids.append(np.take_along_axis(part, order, axis=1))
    chosen = np.concatenate(ids).astype(np.int32)
    log_probs, rest = _log_probs_of(logits, chosen)
    return Summary(chosen, log_probs.astype(np.float32), rest.astype(np.float32))


def divergence(reference: Summary, logits: Array) -> tuple[Array, Array]:
    """Each token's KL(reference || model) in nats, and whether both put the same token first.

    The tokens outside the reference's summary count as one. That can only lower the divergence (data-processing
    inequality), by less than what the reference leaves to them; with k = 1024 that is below a percent of it.

    Args:
        reference: Of n positions.
        logits: The model's, float32 of shape (n, n_vocab).

    Returns:
        Float64 of shape (n,), and bool of shape (n,).
    """
    log_q, log_q_rest = _log_probs_of(logits, reference.ids)
    # Both sides with the same precision, or a model would diverge from itself.
    log_q, log_q_rest = log_q.astype(np.float32), log_q_rest.astype(np.float32)
    log_p = reference.log_probs.astype(np.float64)
    kl = (np.exp(log_p) * (log_p - log_q)).sum(axis=1)
    has_rest = np.isfinite(reference.rest) & np.isfinite(log_q_rest)
    rest = np.where(has_rest, reference.rest, 0).astype(np.float64)
    kl += np.where(has_rest, np.exp(rest) * (rest - np.where(has_rest, log_q_rest, 0)), 0)
    return np.maximum(kl, 0), logits.argmax(axis=1) == reference.ids[:, 0]


def _all_ids(block: Array) -> Array:
    return np.broadcast_to(np.arange(block.shape[1]), block.shape)


def _log_probs_of(logits: Array, ids: Array) -> tuple[Array, Array]:
    """Log-probabilities of ``ids``, float64 of shape (n, k), and of all others together, of shape (n,)."""
    chosen, rest = [], []
    for start in range(0, len(logits), _ROWS):
        block, wanted = logits[start : start + _ROWS], ids[start : start + _ROWS]
        top = block.max(axis=1, keepdims=True)
        weights = np.exp(block - top)
        total = np.log(weights.sum(axis=1, dtype=np.float64))
        chosen.append((np.take_along_axis(block, wanted, axis=1) - top).astype(np.float64) - total[:, None])
        np.put_along_axis(weights, wanted, 0, axis=1)
        with np.errstate(divide="ignore"):  # nothing left: -inf
            rest.append(np.log(weights.sum(axis=1, dtype=np.float64)) - total)
    return np.concatenate(chosen), np.concatenate(rest)


def _standard_error(values: Array) -> float:
    """Of the mean, as llama.cpp's tools compute it (with n - 1 under the root)."""
    return float(values.std()) / math.sqrt(values.size - 1) if values.size > 1 else 0.0
