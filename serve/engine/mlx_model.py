"""An MLX model in memory, behind the same interface as a GGUF one: a directory of safetensors, run by mlx-lm."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from localllm.errors import EngineLoadError, RequestError
from localllm.machine import read_machine
from localllm.mlx_setup import prepare_process
from serve.engine.mlx_vocabulary import load_vocabulary
from serve.engine.mlx_weights import Weights
from serve.engine.request import AdapterSet
from serve.engine.text_model import ChatFormat, TextModel
from serve.engine.types import EngineInfo, EngineSpec, GenerateRequest
from serve.toolcalls.formats import tool_format

if TYPE_CHECKING:
    from serve.engine.constraints import GrammarVocabulary
    from serve.engine.model import Pooling


class MLXModel(TextModel):
    """Weights, vocabulary, template, scheduler; see :class:`serve.engine.model.Model`.

    Args:
        spec: How to load it; ``n_gpu_layers`` 0 means the CPU, ``flash_attn``, ``kv_type`` and ``n_guess`` say nothing
            to MLX.

    Raises:
        EngineLoadError: The directory is damaged, of an unknown architecture, or wants to run code of its own; or the
            adapter does not suit it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        directory = Path(spec.path)
        if not directory.is_dir():
            raise EngineLoadError(f"{directory.name} is no directory of a model.")
        n_threads = spec.n_threads or read_machine().performance_cores
        prepare_process(n_threads, cpu=spec.n_gpu_layers == 0, budget=spec.memory_bytes)
        # Deferred: mlx-lm takes 2 s to import, and what was prepared must come before it.
        from serve.engine.mlx_scheduler import MLXScheduler

        adapter = Path(spec.adapter) if spec.adapter else None
        weights = Weights(directory, adapter)
        self._vocabulary = load_vocabulary(directory, weights.end_tokens)
        template = self._vocabulary.chat_template
        chat_format = ChatFormat(
            template, template, self._vocabulary.bos, self._vocabulary.eos, self._vocabulary.adds_bos
        )
        super().__init__(self._vocabulary, weights.n_vocab, chat_format)
        n_ctx = spec.n_ctx or weights.n_ctx_train
        self.scheduler = MLXScheduler(
            weights, self._vocabulary, n_ctx=n_ctx, n_batch=spec.n_batch, n_parallel=spec.n_parallel
        )
        self.pooling: Pooling | None = None  # mlx-lm's models give no hidden states
        self.info = EngineInfo(
            architecture=weights.architecture,
            n_ctx=n_ctx,
            n_ctx_train=weights.n_ctx_train,
            n_vocab=weights.n_vocab,
            n_embd=weights.n_embd,
            n_threads=n_threads,
            has_chat_template=template is not None,
            pid=os.getpid(),
            tool_format=tool_format(template),
        )

    def adapters(self, request: GenerateRequest) -> AdapterSet:
        """None: the server loads a model anew for each adapter, and names it in the spec."""
        if request.adapters:
            raise RequestError("MLX cannot change adapters from one request to the next.", param="adapters")
        return ()

    def stop(self) -> None:
        """Nothing: this engine keeps no prefixes on the disk."""

    def rest(self) -> None:
        """Give back what MLX keeps of freed buffers."""
        import mlx.core as mx  # deferred: imported long since, after prepare_process

        mx.clear_cache()

    @cached_property
    def _grammars(self) -> "GrammarVocabulary":
        # Made for the first constrained answer: it costs up to a second, and 30 ms of imports.
        from serve.engine.mlx_grammars import mlx_grammar_vocabulary

        return mlx_grammar_vocabulary(self._vocabulary, self.info.n_vocab)
