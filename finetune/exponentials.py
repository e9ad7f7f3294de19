"""Exponentials on a CPU, several times as fast as MLX's own.

MLX computes ``exp`` and ``sigmoid`` on a processor one number at a time (12 and 19 ns on x86-64), but sums and products
in vectors (0.2 ns). A training step needs so many exponentials (activations, attention, the loss) that they take as
long as its matrix products on two cores. Here they are made of sums and products: e^x = 2^n 2^f with a whole n, which
is added to the float's exponent, and f in [-1/2, 1/2], for which a polynomial is exact to fp32. The relative error is
that of rounding ``x log2 e``, as in MLX's own.

mlx-lm's models call ``mx.sigmoid``, ``mx.tanh`` and ``swiglu`` in their activations; while :func:`fast_exponentials` is
entered they get these instead. Nothing here is for GPUs.
"""

import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import numpy as np

_LOG2_E = math.log2(math.e)
_SMALLEST, _LARGEST = -126.0, 127.0  # exponents of normal floats
# Added to a float below 2^22 and taken away again, it rounds to a whole number; with it, the last bits are that number.
_ROUNDER = 1.5 * 2.0**23
_MANTISSA_BITS = 23


def _polynomial(degree: int) -> tuple[float, ...]:
    """Coefficients for 2^f on [-1/2, 1/2], the lowest first, with the least squares of relative errors."""
    nodes = 0.5 * np.cos(np.pi * (np.arange(512) + 0.5) / 512)
    powers = np.vander(nodes, degree + 1, increasing=True) / (2.0**nodes)[:, None]
    return tuple(float(c) for c in np.linalg.lstsq(powers, np.ones(len(nodes)), rcond=None)[0])


_COEFFICIENTS = _polynomial(5)  # relative error 8e-8, half of fp32's last bit


def exp(x: mx.array) -> mx.array:
    """e^x of an fp32 array; between 2^-126 and 2^127. It has no gradient: use it in a custom function."""
    y = mx.minimum(mx.maximum(x * _LOG2_E, _SMALLEST), _LARGEST)
    rounded = y + _ROUNDER
    f = y - (rounded - _ROUNDER)
    value = f * _COEFFICIENTS[-1] + _COEFFICIENTS[-2]
    for coefficient in _COEFFICIENTS[-3::-1]:
        value = value * f + coefficient
    # The polynomial lies in [0.7, 1.42]: adding n to the bits of its exponent multiplies it by 2^n.
    return mx.view(mx.view(value, mx.int32) + (mx.view(rounded, mx.int32) << _MANTISSA_BITS), mx.float32)


def _sigmoid(x: mx.array) -> mx.array:
    return mx.reciprocal(1.0 + exp(-x))


@mx.custom_function
def sigmoid(x: mx.array) -> mx.array:
    """1 / (1 + e^-x), fp32."""
    return _sigmoid(x)


@sigmoid.vjp
def _sigmoid_vjp(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:  # noqa: ARG001  MLX's shape
    return cotangent * (output - output * output)


@mx.custom_function
def tanh(x: mx.array) -> mx.array:
    """Tanh, fp32; absolute error 1e-6."""
    return 1.0 - 2.0 * mx.reciprocal(1.0 + exp(2.0 * x))


@tanh.vjp
def _tanh_vjp(primal: mx.array, cotangent: mx.array, output: mx.array) -> mx.array:  # noqa: ARG001  MLX's shape
    return cotangent * (1.0 - output * output)


@mx.custom_function
def swiglu(gate: mx.array, x: mx.array) -> mx.array:
    """``gate * sigmoid(gate) * x``, fp32; keeps nothing but its arguments for the backward pass."""
    return gate * _sigmoid(gate) * x


@swiglu.vjp
def _swiglu_vjp(
    primals: tuple[mx.array, mx.array],
    cotangent: mx.array,
    output: mx.array,  # noqa: ARG001  MLX's shape
) -> tuple[mx.array, mx.array]:
    gate, x = primals
    opened = _sigmoid(gate)
    passed = cotangent * opened
    return passed * x * (1.0 + gate * (1.0 - opened)), passed * gate


@contextmanager
def fast_exponentials(model: nn.Module) -> Iterator[None]:
    """Within it ``mx.sigmoid``, ``mx.tanh`` and the model's ``swiglu`` are those of this module for fp32 arrays.

    Compiled activations would keep MLX's own, so nothing is compiled meanwhile.
    """
    # mlx-lm's modules import swiglu by name: it is replaced in the files that define this model's layers.
    files = {sys.modules[type(module).__module__] for module in model.modules()}
    places = [(mx, "sigmoid", sigmoid), (mx, "tanh", tanh)]
    places += [(file, "swiglu", swiglu) for file in files if hasattr(file, "swiglu")]
    originals = [getattr(owner, name) for owner, name, _ in places]
    for (owner, name, fast), original in zip(places, originals, strict=True):
        setattr(owner, name, _for_fp32(fast, original))
    mx.disable_compile()
    try:
        yield
    finally:
        mx.enable_compile()
        for (owner, name, _), original in zip(places, originals, strict=True):
            setattr(owner, name, original)


def _for_fp32(fast: Any, original: Any) -> Callable[..., mx.array]:
    def choose(*arrays: Any, **more: Any) -> mx.array:
        ours = not more and all(isinstance(x, mx.array) and x.dtype == mx.float32 for x in arrays)
        return cast("mx.array", fast(*arrays) if ours else original(*arrays, **more))

    return choose
