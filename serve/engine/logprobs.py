"""Log-probabilities from logits."""

from collections.abc import Callable
from typing import Any

import numpy as np

from serve.engine.types import TokenLogprob

Logits = np.ndarray[Any, np.dtype[np.float32]]


def token_logprob(logits: Logits, token: int, n_top: int, text: Callable[[int], bytes]) -> TokenLogprob:
    """How likely ``token`` was, and what was likelier.

    Args:
        logits: float32 of shape (n_vocab,), as the model gave them.
        token: The token that was chosen.
        n_top: Alternatives to report.
        text: The bytes of a token.
    """
    values = logits.astype(np.float64)
    values -= values.max()
    log_total = float(np.log(np.exp(values).sum()))
    best: list[int] = []
    if n_top > 0:
        some = np.argpartition(values, -n_top)[-n_top:] if n_top < len(values) else np.arange(len(values))
        best = some[np.argsort(-values[some], kind="stable")].tolist()
    top = tuple((text(other), float(values[other]) - log_total) for other in best)
    return TokenLogprob(token, text(token), float(values[token]) - log_total, top)
