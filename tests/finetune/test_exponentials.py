"""Exponentials made of sums and products are those of NumPy in float64, and so are their gradients."""

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models import llama

from finetune import exponentials
from finetune.exponentials import exp, fast_exponentials, sigmoid, swiglu, tanh
from tests.fakes.tiny_llama import tiny_llama

WIDE = np.concatenate([np.linspace(-80, 80, 40_001), np.linspace(-1, 1, 20_001)]).astype(np.float32)


def test_exp_is_exact_to_the_rounding_of_its_argument():
    exact = np.exp(WIDE.astype(np.float64))
    relative = np.abs(np.array(exp(mx.array(WIDE))) / exact - 1)
    # The polynomial and its sums are exact to two bits. x log2(e) is rounded to half a bit of numbers up to 128, and
    # its factor to 1.4e-8.
    assert relative.max() < 3e-7 + (2**-18 + 128 * 1.4e-8) * np.log(2)
    assert relative[np.abs(WIDE) <= 1].max() < 3e-7


@pytest.mark.parametrize("x", [-1e9, -200.0, -100.0])
def test_exp_of_what_is_masked_is_nothing(x):
    assert 0 <= exp(mx.array([x])).item() < 1e-37


def test_exp_stays_finite_above():
    assert np.isfinite(exp(mx.array([200.0, 1e9])).tolist()).all()


@pytest.mark.parametrize(
    ("ours", "exact", "slope"),
    [
        (sigmoid, lambda x: 1 / (1 + np.exp(-x)), lambda x: np.exp(-x) / (1 + np.exp(-x)) ** 2),
        (tanh, np.tanh, lambda x: 1 / np.cosh(x) ** 2),
    ],
)
def test_values_and_slopes(ours, exact, slope):
    x = np.linspace(-30, 30, 6001)
    value, gradient = mx.vjp(ours, [mx.array(x.astype(np.float32))], [mx.ones(len(x))])
    assert np.abs(np.array(value[0]) - exact(x)).max() < 2e-6
    assert np.abs(np.array(gradient[0]) - slope(x)).max() < 2e-6


def test_swiglu_is_mlx_own():
    mx.random.seed(3)
    gate, x, cotangent = (mx.random.normal((50, 70)) * 4 for _ in range(3))
    ours = mx.vjp(swiglu, [gate, x], [cotangent])
    plain = mx.vjp(lambda gate, x: gate * mx.sigmoid(gate) * x, [gate, x], [cotangent])
    for one, other in zip([*ours[0], *ours[1]], [*plain[0], *plain[1]], strict=True):
        assert mx.abs(one - other).max().item() < 2e-6 * mx.abs(other).max().item()


def test_models_use_them_meanwhile_and_no_longer(monkeypatch):
    model = tiny_llama()
    tokens = mx.array([[1, 2, 3, 4]])
    plain, original = model(tokens), llama.swiglu
    calls = []
    monkeypatch.setattr(exponentials, "swiglu", lambda *args: calls.append(1) or swiglu(*args))
    with fast_exponentials(model):
        fast = model(tokens)
        assert mx.sigmoid(mx.array([0.0], mx.bfloat16)).dtype == mx.bfloat16  # not ours: left to MLX
        gelu = nn.gelu_approx(mx.array([1.0]))
    assert len(calls) == len(model.layers)
    assert llama.swiglu is original
    assert mx.abs(fast - plain).max().item() < 1e-5
    assert gelu.item() == pytest.approx(0.841192, abs=1e-5)
