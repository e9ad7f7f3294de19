"""Perplexity, divergence and agreement against plain float64 formulas."""

import numpy as np
import pytest

from quant.measure.scores import Divergence, Perplexity, divergence, negative_log_likelihoods, summarise


def _logits(seed: int, n: int = 70, n_vocab: int = 90) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 3, (n, n_vocab)).astype(np.float32)


def _log_softmax(logits: np.ndarray) -> np.ndarray:
    exact = logits.astype(np.float64)
    return exact - np.log(np.exp(exact).sum(axis=1, keepdims=True))


def test_losses_are_negative_log_softmax():
    logits, targets = _logits(0), np.arange(70)
    expected = -_log_softmax(logits)[np.arange(70), targets]
    np.testing.assert_allclose(negative_log_likelihoods(logits, targets), expected, rtol=1e-6)


def test_perplexity_and_its_error():
    nll = np.array([1.0, 2.0, 3.0, 2.0])
    found = Perplexity.of(nll)
    assert found.perplexity == pytest.approx(np.exp(2))
    assert found.standard_error == pytest.approx(np.exp(2) * np.sqrt(0.5 / 3))
    assert found.n_tokens == 4


def test_a_model_does_not_diverge_from_itself():
    for k in (10, 90, 1000):
        kl, agrees = divergence(summarise(_logits(1), k), _logits(1))
        assert kl.max() < 1e-12
        assert agrees.all()


def test_the_whole_vocabulary_gives_the_exact_divergence():
    p, q = _logits(1), _logits(1) + 0.3 * _logits(2)
    log_p, log_q = _log_softmax(p), _log_softmax(q)
    kl, agrees = divergence(summarise(p, 90), q)
    np.testing.assert_allclose(kl, (np.exp(log_p) * (log_p - log_q)).sum(axis=1), rtol=1e-5, atol=1e-7)
    assert np.array_equal(agrees, p.argmax(axis=1) == q.argmax(axis=1))


def test_a_summary_never_overstates_and_misses_little():
    p, q = _logits(1), _logits(1) + 0.3 * _logits(2)
    exact, _ = divergence(summarise(p, 90), q)
    short, _ = divergence(summarise(p, 40), q)
    assert (short <= exact + 1e-7).all()
    assert short.mean() > 0.95 * exact.mean()


def test_the_figures_of_a_divergence():
    kl = np.linspace(0, 1, 101)
    found = Divergence.of(kl, kl < 0.5)
    assert found.kl_mean == pytest.approx(0.5)
    assert found.kl_99 == pytest.approx(0.99)
    assert found.kl_max == 1
    assert found.agreement == pytest.approx(50 / 101)
