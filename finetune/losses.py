"""Cross-entropy through the output layer, a chunk of tokens at a time, for supervised tokens only.

The logits of a batch are the largest array of a training step: 2,048 tokens of a vocabulary of 152,000 take 1.2 GB in
fp32, and their gradient as much again. Here a chunk's logits live only while its loss is computed. Where the output
layer is frozen (every LoRA run), the gradient of the hidden states is computed in the same pass, so nothing is done
twice; where it is trained, the chunk is computed again in the backward pass.
"""

from collections.abc import Callable
from typing import cast

import mlx.core as mx
import mlx.nn as nn

from finetune.exponentials import exp

Head = Callable[[mx.array], mx.array]  # hidden states (n, width) to logits (n, vocabulary)

CHUNK = 128
# Rows of logits that a core's cache holds from one operation to the next.
_CPU_ROWS = 8


def cross_entropy_sum(logits: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
    """The summed negative log-likelihood in nats, fp32.

    Args:
        logits: (n, vocabulary), any float type; the sums are fp32.
        targets: Token ids, (n,).
        weights: fp32 of shape (n,); 0 leaves a token out.
    """
    return cast("tuple[mx.array, mx.array]", _cross_entropy(logits, targets, weights))[0]


@mx.custom_function
def _cross_entropy(logits: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
    """The loss, and the probabilities for the backward pass: exponentials are dear, so they are computed once."""
    on_cpu = mx.default_device() == mx.cpu
    step = _CPU_ROWS if on_cpu else len(targets)
    losses, probabilities = [], []
    for start in range(0, len(targets), step):
        rows = slice(start, start + step)
        block = logits[rows].astype(mx.float32)
        shifted = block - block.max(axis=-1, keepdims=True)
        powers = exp(shifted) if on_cpu else mx.exp(shifted)
        sums = powers.sum(axis=-1, keepdims=True)
        picked = mx.take_along_axis(shifted, targets[rows, None], axis=-1)
        losses.append((mx.log(sums) - picked)[:, 0])
        probabilities.append(powers * mx.reciprocal(sums))
    return (mx.concatenate(losses) * weights).sum(), mx.concatenate(probabilities)


@_cross_entropy.vjp
def _cross_entropy_vjp(
    primals: tuple[mx.array, mx.array, mx.array],
    cotangents: tuple[mx.array, mx.array],
    outputs: tuple[mx.array, mx.array],
) -> tuple[mx.array, mx.array, mx.array]:
    logits, targets, weights = primals
    rows = mx.arange(len(targets))
    slope = outputs[1] * weights[:, None]
    slope = slope.at[rows, targets].add(-weights)
    return (cotangents[0] * slope).astype(logits.dtype), mx.zeros_like(targets), mx.zeros_like(weights)


def linear_cross_entropy(
    head: Head, hidden: mx.array, targets: mx.array, weights: mx.array, *, trained: nn.Module | None = None
) -> mx.array:
    """:func:`cross_entropy_sum` of ``head(hidden)`` without ever holding all logits.

    Args:
        head: The output layer.
        hidden: (n, width).
        targets: As for :func:`cross_entropy_sum`.
        weights: As there.
        trained: The module whose weights the head uses, where gradients of them are wanted too.
    """

    def chunk_loss(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        return cross_entropy_sum(head(hidden), mx.stop_gradient(targets), weights)

    compute = _with_gradient(chunk_loss) if trained is None else nn.utils.checkpoint(trained, chunk_loss)
    total = mx.array(0.0)
    for start in range(0, hidden.shape[0], CHUNK):
        rows = slice(start, start + CHUNK)
        # The next chunk starts when this one is done: otherwise several chunks' logits could live at once.
        piece = mx.depends([hidden[rows]], [total])[0]
        total = total + compute(piece, targets[rows], weights[rows])
    return total


def _with_gradient(
    loss: Callable[[mx.array, mx.array, mx.array], mx.array],
) -> Callable[[mx.array, mx.array, mx.array], mx.array]:
    """``loss`` whose gradient by its first argument is computed together with its value."""

    @mx.custom_function
    def both(hidden: mx.array, targets: mx.array, weights: mx.array) -> tuple[mx.array, mx.array]:
        value, gradient = mx.value_and_grad(loss)(hidden, targets, weights)
        # The value is not given out before the gradient is there, so the chunk's logits can go.
        return mx.depends([value], [gradient])[0], gradient

    @both.vjp
    def both_vjp(
        primals: tuple[mx.array, mx.array, mx.array],
        cotangents: tuple[mx.array, mx.array],
        outputs: tuple[mx.array, mx.array],
    ) -> tuple[mx.array, mx.array, mx.array]:
        _, targets, weights = primals
        return cotangents[0] * outputs[1], mx.zeros_like(targets), mx.zeros_like(weights)

    def value_only(hidden: mx.array, targets: mx.array, weights: mx.array) -> mx.array:
        return cast("tuple[mx.array, mx.array]", both(hidden, targets, weights))[0]

    return value_only
