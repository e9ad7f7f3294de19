"""A model seen as a body that makes hidden states and a head that makes logits of them.

Training wants logits of supervised tokens only, so the two are called apart. mlx-lm's architectures have no common
interface for that; the parts are found by their usual names, and a few tokens are run both ways to prove that they
are the whole model. What cannot be proven is trained through the whole model instead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from finetune.attention import packed_caches
from finetune.losses import Head

_TOLERANCE = 2e-3  # of the largest logit; bf16 models differ by as much between two ways to compute the same


@dataclass(frozen=True)
class Body:
    """How to run a model in training.

    Attributes:
        model: The whole model.
        run: Token ids (rows, length) and a cache for each layer, or None, to hidden states (rows, length, width).
        head: Hidden states to logits; None where the parts could not be told: ``run`` gives logits then.
        head_module: The module that holds the head's weights.
        can_pack: Several documents in a row do not see each other.
    """

    model: nn.Module
    run: Callable[[mx.array, Sequence[Any] | None], mx.array]
    head: Head | None
    head_module: nn.Module | None
    can_pack: bool


def find_body(model: nn.Module, n_vocab: int) -> Body:
    """Take a model apart, as far as that can be proven.

    Args:
        model: Of mlx-lm, in evaluation mode (no dropout).
        n_vocab: Token ids below this may be tried.
    """
    tokens = mx.array(np.random.default_rng(0).integers(0, n_vocab, (1, 12)), mx.int32)
    whole = model(tokens)
    for body, head, module in _candidates(model):
        hidden = body(tokens)
        if hidden.shape[-1] != whole.shape[-1] and _close(head(hidden), whole):
            return Body(model, _runner(body), head, module, can_pack=_can_pack(model, n_vocab))
    return Body(model, _runner(model), None, None, can_pack=_can_pack(model, n_vocab))


def _runner(part: nn.Module) -> Callable[[mx.array, Sequence[Any] | None], mx.array]:
    def run(tokens: mx.array, caches: Sequence[Any] | None) -> mx.array:
        hidden: mx.array = part(tokens) if caches is None else part(tokens, cache=caches)
        return hidden

    return run


def _candidates(model: nn.Module) -> list[tuple[nn.Module, Head, nn.Module]]:
    found = []
    for owner in (model, getattr(model, "language_model", None)):
        if owner is None:
            continue
        for name in ("model", "transformer", "backbone"):
            body = getattr(owner, name, None)
            if body is None:
                continue
            for head, module in _heads(owner, body):
                found.append((body, head, module))
                cap = getattr(getattr(owner, "args", None), "final_logit_softcapping", None)
                cap = cap or getattr(owner, "final_logit_softcapping", None)
                if cap:
                    found.append((body, _capped(head, float(cap)), module))
    return found


def _heads(owner: nn.Module, body: nn.Module) -> list[tuple[Head, nn.Module]]:
    heads: list[tuple[Head, nn.Module]] = []
    if (linear := getattr(owner, "lm_head", None)) is not None:
        heads.append((linear, linear))
    embeddings = [getattr(body, name, None) for name in ("embed_tokens", "wte", "tok_embeddings", "embeddings")]
    return [*heads, *((each.as_linear, each) for each in embeddings if each is not None and hasattr(each, "as_linear"))]


def _capped(head: Head, cap: float) -> Head:
    def capped(hidden: mx.array) -> mx.array:
        return mx.tanh(head(hidden) / cap) * cap

    return capped


def _can_pack(model: nn.Module, n_vocab: int) -> bool:
    """Whether two documents in one row get the logits that each gets alone."""
    rng = np.random.default_rng(1)
    first, second = (mx.array(rng.integers(0, n_vocab, (1, n)), mx.int32) for n in (7, 9))
    segments = mx.array([[1] * 7 + [2] * 9], mx.int32)
    try:
        packed = model(mx.concatenate([first, second], axis=1), cache=packed_caches(segments, len(model.layers)))
        alone = mx.concatenate([model(first), model(second)], axis=1)
        return _close(packed, alone)
    except (AttributeError, TypeError, IndexError, ValueError):
        return False  # a model that keeps a state, or asks more of its cache: it is trained without packing


def _close(a: mx.array, b: mx.array) -> bool:
    if a.shape != b.shape:
        return False
    a, b = a.astype(mx.float32), b.astype(mx.float32)
    return bool((mx.abs(a - b).max() <= _TOLERANCE * mx.abs(b).max()).item())
