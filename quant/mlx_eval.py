"""A directory of safetensors that MLX runs over chunks of text. Imported in a child process only: mlx-lm takes 2 s."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.memory import machine_memory
from localllm.mlx_setup import prepare_process
from localllm.model_directory import read_model_config

prepare_process(0, cpu=False)  # before mlx is imported: its own linear algebra on Linux is slow

import mlx.core as mx  # noqa: E402  after the library that it must find
import numpy as np  # noqa: E402
from mlx.utils import tree_flatten  # noqa: E402
from mlx_lm.models.cache import make_prompt_cache  # noqa: E402
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer  # noqa: E402

__all__ = ["MLXEvaluator", "mx"]  # mx: for others, who must not import it before it is prepared

Array = np.ndarray[Any, np.dtype[Any]]


class MLXEvaluator:
    """Weights and tokenizer; see :class:`quant.evaluator.Evaluator`.

    Args:
        directory: The model.
        n_threads: Of the CPU's linear algebra.
        as_served: Compute with the weights as they are. Else, on a CPU, in float32: packed and 16-bit products go by a
            slow loop there, some hundred times slower than those of the BLAS, and lose a little besides.

    Attributes:
        model: mlx-lm's model.
        config: Its config.json.

    Raises:
        InvalidModelError: The directory is damaged or of an unknown architecture.
    """

    def __init__(self, directory: Path, *, n_threads: int, as_served: bool = True) -> None:
        os.environ.setdefault("OMP_NUM_THREADS", str(n_threads))
        read_model_config(directory / "config.json")
        try:
            self.model, self.config = load_model(directory)
            self._tokenizer = load_tokenizer(directory)  # type: ignore[no-untyped-call]  # mlx-lm is half typed
        except (ValueError, KeyError, OSError, TypeError) as error:
            raise InvalidModelError(f"MLX cannot load {directory.name}: {error}.") from error
        if not as_served and mx.default_device() == mx.cpu:
            self._unpack()
        self._cache: Any = None
        self.n_vocab = int(self.config.get("vocab_size") or self.config["text_config"]["vocab_size"])

    def _unpack(self) -> None:
        """Bring all weights into float32, where there is memory for it."""
        bits = (self.config.get("quantization") or {}).get("bits", 16)
        n_bytes = sum(value.nbytes for _, value in tree_flatten(self.model.parameters()))
        if n_bytes * 32 // bits > machine_memory().available // 2:
            return
        self.model.set_dtype(mx.float32)  # scales first: what they are multiplied by is not rounded then
        self.model = dequantize_model(self.model)

    @property
    def first_token(self) -> int | None:
        """What each chunk must start with (BOS), or None."""
        bos = self._tokenizer.bos_token_id
        return bos if bos is not None and self._tokenizer.encode("a")[:1] == [bos] else None

    def tokenize(self, text: str, *, first: bool, special: bool) -> list[int]:
        """Token ids of ``text``."""
        options = {"add_special_tokens": first, "split_special_tokens": not special}
        return [int(token) for token in self._tokenizer.encode(text, **options)]

    def run(self, tokens: Sequence[int], *, position: int = 0, first_logit: int = 0) -> Array:
        """Logits of ``tokens[first_logit:]``, float32 of shape (…, n_vocab)."""
        if position == 0:
            self._cache = make_prompt_cache(self.model)
        logits = self.model(mx.array(list(tokens))[None], cache=self._cache)[0, first_logit:]
        return np.array(logits.astype(mx.float32))

    def close(self) -> None:
        """Nothing: the process ends."""
