"""An MLX model in memory, behind the same interface as a GGUF one: a directory of safetensors, run by mlx-lm."""

import os
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from localllm.errors import EngineLoadError, RequestError
from localllm.machine import read_machine
from serve.engine.constraint_types import TokenMatcher
from serve.engine.mlx_vocabulary import load_vocabulary
from serve.engine.mlx_weights import Weights, prepare_process
from serve.engine.prompt import mark_specials, split_marked
from serve.engine.templates import ChatTemplate
from serve.engine.types import Embeddings, EngineInfo, EngineSpec, GenerateRequest
from serve.toolcalls.formats import tool_format

if TYPE_CHECKING:
    from serve.engine.constraints import GrammarVocabulary


class MLXModel:
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
        prepare_process(n_threads, cpu=spec.n_gpu_layers == 0)
        # Deferred: mlx-lm takes 2 s to import, and what was prepared must come before it.
        from serve.engine.mlx_scheduler import MLXScheduler

        adapter = Path(spec.adapter) if spec.adapter else None
        weights = Weights(directory, adapter)
        self._vocabulary = load_vocabulary(directory, weights.end_tokens)
        n_ctx = spec.n_ctx or weights.n_ctx_train
        self.scheduler = MLXScheduler(
            weights, self._vocabulary, n_ctx=n_ctx, n_batch=spec.n_batch, n_parallel=spec.n_parallel
        )
        self.n_ctx_embedding = n_ctx
        self.info = EngineInfo(
            architecture=weights.architecture,
            n_ctx=n_ctx,
            n_ctx_train=weights.n_ctx_train,
            n_vocab=weights.n_vocab,
            n_embd=weights.n_embd,
            n_threads=n_threads,
            has_chat_template=self._vocabulary.chat_template is not None,
            pid=os.getpid(),
            tool_format=tool_format(self._vocabulary.chat_template),
        )

    def tokenize(self, request: GenerateRequest) -> Sequence[int]:
        """As in :class:`serve.engine.model.Model`."""
        if request.messages is not None:
            return self._tokenize_chat(request)
        match request.prompt:
            case str() as text:
                return self._vocabulary.tokenize(text, add_special=True, parse_special=True)
            case tuple() as tokens:
                return self._checked(tokens)
        raise RequestError("The request has neither messages nor a prompt.", param="prompt")

    def shown(self, texts: Sequence[str]) -> frozenset[int]:
        """As in :class:`serve.engine.model.Model`."""
        found = (self._vocabulary.tokenize(text, add_special=False, parse_special=True) for text in texts)
        return frozenset(tokens[0] for tokens in found if len(tokens) == 1)

    def matcher(self, request: GenerateRequest) -> TokenMatcher | None:
        """As in :class:`serve.engine.model.Model`."""
        if request.constraint is None:
            return None
        if request.ignore_eos:
            raise RequestError("An answer with a grammar ends with it.", "Leave `ignore_eos` out.", "ignore_eos")
        return self._grammars.compile(request.constraint)

    def tokenize_text(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """As in :class:`serve.engine.model.Model`."""
        return self._vocabulary.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """As in :class:`serve.engine.model.Model`."""
        return b"".join(map(self._vocabulary.token_text, self._checked(tokens))).decode("utf-8", errors="replace")

    def tokenize_for_embedding(self, item: str | Sequence[int]) -> NoReturn:  # noqa: ARG002 - the interface's own
        """Refuse: mlx-lm's models give no hidden states."""
        raise RequestError(
            "This model is served by MLX, which makes no embeddings here.", "Use a GGUF model for embeddings.", "model"
        )

    def embed(self, inputs: Sequence[Sequence[int]]) -> Embeddings:
        """Nothing for no inputs; others were refused before."""
        assert not inputs
        return Embeddings((), 0)

    @cached_property
    def _grammars(self) -> "GrammarVocabulary":
        # Made for the first constrained answer: it costs up to a second, and 30 ms of imports.
        from serve.engine.mlx_grammars import mlx_grammar_vocabulary

        return mlx_grammar_vocabulary(self._vocabulary, self.info.n_vocab)

    @cached_property
    def _template(self) -> ChatTemplate:
        source = self._vocabulary.chat_template
        if source is None:
            raise RequestError(
                "This model has no chat template: it is a base model, made to continue text.",
                "Use /v1/completions, or choose an instruction-tuned model.",
                "model",
            )
        return ChatTemplate(source, self._vocabulary.bos, self._vocabulary.eos)

    def _tokenize_chat(self, request: GenerateRequest) -> list[int]:
        assert request.messages is not None
        messages = mark_specials(request.messages, self._vocabulary.find_specials)
        template_args = mark_specials(request.template_args, self._vocabulary.find_specials)
        text = self._template.render(messages, **template_args) + request.answer_prefix
        # Most templates write BOS themselves; the tokenizer must not add a second one.
        bos = self._vocabulary.bos
        add_special = not (bos and text.startswith(bos))
        tokens: list[int] = []
        for piece, parse_special in split_marked(text):
            tokens += self._vocabulary.tokenize(piece, add_special=add_special, parse_special=parse_special)
            add_special = False
        return tokens

    def _checked(self, tokens: Sequence[int]) -> Sequence[int]:
        # MLX reads past the embeddings for a token outside the vocabulary, and says nothing.
        for token in tokens:
            if not 0 <= token < self.info.n_vocab:
                raise RequestError(f"Token {token} is not in this model's vocabulary of {self.info.n_vocab}.")
        return tokens
