"""A model in memory: what it says about itself, its tokens, its scheduler, its pooling."""

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from llama_cpp import __version__ as llama_version

from serve.engine.backend import LlamaBackend
from serve.engine.draft import Drafter
from serve.engine.draft_llama import load_drafter
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.llama_adapters import AdapterChecker, LoadedAdapters
from serve.engine.llama_pool import LlamaPooling, pooling_type
from serve.engine.request import AdapterSet
from serve.engine.scheduler import Scheduler
from serve.engine.snapshots import Snapshots
from serve.engine.step_meter import StepMeter
from serve.engine.text_model import ChatFormat, TextModel
from serve.engine.types import EngineInfo, EngineSpec, GenerateRequest
from serve.toolcalls.formats import tool_format

if TYPE_CHECKING:
    from serve.engine.constraints import GrammarVocabulary

# Sequences beside the running ones whose KV is kept for the next request that begins like them.
_N_PARKED = 16


class LoadedModel(TextModel):
    """Weights, vocabulary, template, scheduler.

    Args:
        spec: How to load it.

    Attributes:
        scheduler: None for a model that makes embeddings or scores only.
        pooling: Makes embeddings and scores.

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
        pooled_by = pooling_type(self._model, architecture)
        self.pooling = LlamaPooling(
            self._model,
            pooled_by,
            n_ctx=spec.n_ctx,
            n_seq=spec.n_parallel,
            n_threads=self._n_threads,
            check=self._checked,
        )
        self.scheduler: Scheduler | None = None
        n_ctx = self.pooling.n_ctx
        if causal and self._model.has_decoder and pooled_by != "rank":
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
            meter = StepMeter()
            backend = LlamaBackend(self._model, context, n_seq, adapters, meter)
            self.scheduler = Scheduler(
                backend,
                n_parallel=spec.n_parallel,
                max_guess=spec.n_guess,
                drafter=self._drafter(n_ctx, meter),
                snapshots=self._snapshots(),
                meter=meter,
            )
        self.info = EngineInfo(
            architecture=architecture,
            n_ctx=n_ctx,
            n_ctx_train=self._model.n_ctx_train,
            n_vocab=self._model.n_vocab,
            n_embd=self._model.n_embd_out,
            n_threads=self._n_threads,
            has_chat_template=chat_format.template is not None,
            pid=os.getpid(),
            tool_format=tool_format(chat_format.tool_template),
        )

    def _drafter(self, n_ctx: int, meter: StepMeter) -> Drafter | None:
        if not self._spec.draft_path or self._model.is_recurrent:
            return None
        return load_drafter(
            self._model,
            self._spec.draft_path,
            n_ctx=n_ctx,
            n_gpu_layers=self._spec.n_gpu_layers,
            n_threads=self._n_threads,
            meter=meter,
        )

    def _snapshots(self) -> Snapshots | None:
        if not self._spec.snapshot_dir:
            return None
        # llama.cpp checks the layout of a state, not what computed it.
        kind = f"llama.cpp {llama_version} {self._spec.kv_type} {self._spec.flash_attn}"
        return Snapshots(Path(self._spec.snapshot_dir), self._spec.snapshot_bytes, kind)

    def stop(self) -> None:
        """As :meth:`serve.engine.model.Model.stop`."""
        if self.scheduler is not None:
            self.scheduler.save()

    def rest(self) -> None:
        """Nothing: llama.cpp's buffers are made once."""

    def adapters(self, request: GenerateRequest) -> AdapterSet:
        """What the request is to be computed with; see :meth:`serve.engine.model.Model.adapters`."""
        return self._checker.check(request.adapters) if request.adapters else ()

    @cached_property
    def _grammars(self) -> "GrammarVocabulary":
        # Made for the first constrained answer: it costs 0.3 s for 50,000 tokens, and 30 ms of imports.
        from serve.engine.llama_grammars import llama_grammar_vocabulary

        return llama_grammar_vocabulary(self._model)


def default_threads() -> int:
    """CPU threads for a model: the physical cores, on Apple silicon the fast ones."""
    return psutil.cpu_count(logical=False) or os.cpu_count() or 1
