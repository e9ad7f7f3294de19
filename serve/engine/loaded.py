"""A model in memory: what it says about itself, its tokens, its scheduler, its embeddings."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import llama_cpp as lib
import psutil

from localllm.errors import RequestError
from serve.engine.backend import LlamaBackend
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.llama_adapters import AdapterChecker, LoadedAdapters
from serve.engine.request import AdapterSet
from serve.engine.scheduler import Scheduler
from serve.engine.text_model import ChatFormat, TextModel
from serve.engine.types import Embeddings, EngineInfo, EngineSpec, GenerateRequest
from serve.toolcalls.formats import tool_format

if TYPE_CHECKING:
    from serve.engine.constraints import GrammarVocabulary

# Sequences beside the running ones whose KV is kept for the next request that begins like them.
_N_PARKED = 16
# A pooled embedding is made from one physical batch, so this is also the longest text it can be made from.
_MAX_EMBEDDING = 2048


class LoadedModel(TextModel):
    """Weights, vocabulary, template, scheduler.

    Args:
        spec: How to load it.

    Attributes:
        scheduler: None for a model that makes embeddings only.

    Raises:
        EngineLoadError: llama.cpp refuses the file, or there is no memory for it.
    """

    def __init__(self, spec: EngineSpec) -> None:
        self._spec = spec
        self._checker = AdapterChecker(Path(spec.path))
        self._model = LlamaModel(spec.path, spec.n_gpu_layers)
        chat_format = ChatFormat(
            template=self._model.chat_template,
            # Some files (Hermes, Command R) carry a second template for chats with tools.
            tool_template=self._model.metadata("tokenizer.chat_template.tool_use") or self._model.chat_template,
            bos=self._model.special_text(self._model.bos),
            eos=self._model.special_text(self._model.eos),
            adds_bos=self._model.add_bos,
        )
        super().__init__(self._model, self._model.n_vocab, chat_format)
        self._n_threads = spec.n_threads or default_threads()
        architecture = self._model.metadata("general.architecture") or "unknown"
        causal = self._model.metadata(f"{architecture}.attention.causal") != "false"
        self.n_ctx_embedding = min(spec.n_ctx or self._model.n_ctx_train, self._model.n_ctx_train, _MAX_EMBEDDING)
        self.scheduler: Scheduler | None = None
        n_ctx = self.n_ctx_embedding
        if causal and self._model.has_decoder:
            n_seq = spec.n_parallel if self._model.is_recurrent else spec.n_parallel + _N_PARKED
            context = LlamaContext(
                self._model,
                n_ctx=spec.n_ctx,
                n_batch=max(spec.n_batch, spec.n_parallel),
                n_seq=n_seq,
                n_threads=self._n_threads,
                flash_attn=spec.flash_attn,
                kv_type=spec.kv_type,
            )
            n_ctx = context.n_ctx
            adapters = LoadedAdapters(self._model, context)
            backend = LlamaBackend(self._model, context, n_seq, adapters)
            self.scheduler = Scheduler(backend, n_parallel=spec.n_parallel, max_guess=spec.n_guess)
        self.info = EngineInfo(
            architecture=architecture,
            n_ctx=n_ctx,
            n_ctx_train=self._model.n_ctx_train,
            n_vocab=self._model.n_vocab,
            n_embd=self._model.n_embd,
            n_threads=self._n_threads,
            has_chat_template=chat_format.template is not None,
            pid=os.getpid(),
            tool_format=tool_format(chat_format.tool_template),
        )

    def adapters(self, request: GenerateRequest) -> AdapterSet:
        """What the request is to be computed with; see :meth:`serve.engine.model.Model.adapters`."""
        return self._checker.check(request.adapters) if request.adapters else ()

    def tokenize_for_embedding(self, item: str | Sequence[int]) -> Sequence[int]:
        """The token ids of one input; text keeps what looks like a special token as text.

        Raises:
            RequestError: An empty input, or a token id outside the vocabulary.
        """
        if isinstance(item, str):
            tokens: Sequence[int] = self._model.tokenize(item, add_special=True, parse_special=False)
        else:
            tokens = self._checked(item)
        if not tokens:
            raise RequestError("An input is empty.", param="input")
        return tokens

    def embed(self, inputs: Sequence[Sequence[int]]) -> Embeddings:
        """Embed tokenized inputs, each in its own sequence, as many in one batch as fit. Engine thread only."""
        context = self._embedding_context
        vectors: list[tuple[float, ...]] = []
        pending: list[Sequence[int]] = []

        def flush() -> None:
            context.clear()
            context.batch.clear()
            for seq, tokens in enumerate(pending):
                context.batch.add(tokens, 0, seq, logits=len(tokens))  # the pooling takes all of them
            code = context.decode()
            if code != 0:
                raise RequestError(f"llama.cpp could not embed this input (code {code}).", param="input")
            vectors.extend(tuple(context.embedding(seq, self._model.n_embd).tolist()) for seq in range(len(pending)))
            pending.clear()

        rows = 0
        for tokens in inputs:
            if pending and (rows + len(tokens) > self.n_ctx_embedding or len(pending) == self._spec.n_parallel):
                flush()
                rows = 0
            pending.append(tokens)
            rows += len(tokens)
        if pending:
            flush()
        return Embeddings(tuple(vectors), sum(map(len, inputs)))

    @cached_property
    def _grammars(self) -> "GrammarVocabulary":
        # Made for the first constrained answer: it costs 0.3 s for 50,000 tokens, and 30 ms of imports.
        from serve.engine.llama_grammars import llama_grammar_vocabulary

        return llama_grammar_vocabulary(self._model)

    @cached_property
    def _embedding_context(self) -> LlamaContext:
        # Made at the first embedding: most models never need one.
        pooling = lib.LLAMA_POOLING_TYPE_UNSPECIFIED if self._has_own_pooling else lib.LLAMA_POOLING_TYPE_MEAN
        return LlamaContext(
            self._model,
            n_ctx=self.n_ctx_embedding,
            n_batch=self.n_ctx_embedding,
            n_seq=self._spec.n_parallel,
            n_threads=self._n_threads,
            pooling=pooling,
        )

    @property
    def _has_own_pooling(self) -> bool:
        return self._model.metadata(f"{self.info.architecture}.pooling_type") not in (None, "0")


def default_threads() -> int:
    """CPU threads for a model: the physical cores, on Apple silicon the fast ones."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
