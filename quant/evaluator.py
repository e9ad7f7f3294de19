"""A model that is run over chunks of text, whatever runs it: what importance matrices and measurements need."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, np.dtype[Any]]


class Evaluator(Protocol):
    """Weights and an empty cache.

    Attributes:
        n_vocab: Logits of one token.
    """

    n_vocab: int

    @property
    def first_token(self) -> int | None:
        """What each chunk must start with (BOS), or None."""

    def tokenize(self, text: str, *, first: bool, special: bool) -> list[int]:
        """Token ids; ``first`` puts BOS before them where the model wants one, ``special`` reads special tokens."""

    def run(self, tokens: Sequence[int], *, position: int = 0, first_logit: int = 0) -> Array:
        """Logits of ``tokens[first_logit:]``, float32 of shape (…, n_vocab); valid until the next call.

        The cache is emptied where ``position`` is 0, and continued elsewhere.
        """

    def close(self) -> None:
        """Free everything."""


def open_evaluator(model: Path, *, n_ctx: int, n_threads: int, as_served: bool) -> Evaluator:
    """Load a GGUF file with llama.cpp, or a directory with MLX. Only in a child process: either may end it.

    Args:
        model: The file or directory.
        n_ctx: Tokens that are run at once, at most.
        n_threads: Of the CPU.
        as_served: Compute as the server does. Else MLX may unpack weights for speed: the same but for rounding.

    Raises:
        InvalidModelError: The model is damaged, or of an unknown kind.
    """
    if model.is_dir():
        from quant.mlx_eval import MLXEvaluator  # deferred: mlx-lm takes 2 s to import

        return MLXEvaluator(model, n_threads=n_threads, as_served=as_served)
    from quant.llama_eval import LlamaEvaluator  # deferred: llama_cpp takes 0.4 s to import

    return LlamaEvaluator(model, n_ctx=n_ctx, n_threads=n_threads)
