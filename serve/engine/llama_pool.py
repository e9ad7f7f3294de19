"""Embeddings and rerank scores of a GGUF model, in a context of their own beside the one that generates."""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Literal

import llama_cpp as lib
import numpy as np

from localllm.errors import ContextLengthError, RequestError
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.pooled import PooledJob, PooledQueue, Vector
from serve.engine.rerank_prompt import PairFormat, pair_prompts
from serve.engine.types import Embeddings, Scores

PoolingType = Literal["none", "mean", "cls", "last", "rank"]
_TYPES: dict[str | None, PoolingType] = {"1": "mean", "2": "cls", "3": "last", "4": "rank"}
# A pooled vector is made from one physical batch, so this is also the longest text it can be made from.
_MAX_INPUT = 2048


def pooling_type(model: LlamaModel, architecture: str) -> PoolingType:
    """What the file says its outputs are pooled by; ``none`` for one that was made to generate."""
    return _TYPES.get(model.metadata(f"{architecture}.pooling_type"), "none")


class LlamaPool:
    """:class:`serve.engine.pooled.Pool` on llama.cpp.

    Args:
        model: The weights.
        pooling: The model's own; one that has none is pooled by the mean.
        n_rows: Tokens of one batch.
        n_seq: Inputs of one batch.
        n_threads: CPU threads.
    """

    def __init__(self, model: LlamaModel, pooling: PoolingType, *, n_rows: int, n_seq: int, n_threads: int) -> None:
        self.n_rows, self.n_seq = n_rows, n_seq
        self._model = model
        self._pooling = pooling
        self._n_threads = n_threads
        self._n_out = model.n_cls_out if pooling == "rank" else model.n_embd_out

    def run(self, inputs: Sequence[Sequence[int]]) -> list[Vector]:
        """As in :class:`serve.engine.pooled.Pool`."""
        context = self._context
        context.clear()
        context.batch.clear()
        for seq, tokens in enumerate(inputs):
            context.batch.add(tokens, 0, seq, logits=len(tokens))  # the pooling takes all of them
        code = context.decode()
        if code != 0:
            raise RequestError(f"llama.cpp could not read this input (code {code}).", param="input")
        return [context.pooled(seq, self._n_out) for seq in range(len(inputs))]

    @cached_property
    def _context(self) -> LlamaContext:
        # Made at the first input: most models never need one.
        pooling = lib.LLAMA_POOLING_TYPE_MEAN if self._pooling == "none" else lib.LLAMA_POOLING_TYPE_UNSPECIFIED
        # llama.cpp's pooling by the mean ends the process where its sequences do not divide its batch.
        n_batch = -(-self.n_rows // self.n_seq) * self.n_seq
        return LlamaContext(
            self._model,
            n_ctx=n_batch,
            n_batch=n_batch,
            n_seq=self.n_seq,
            n_threads=self._n_threads,
            pooling=pooling,
        )


class LlamaPooling:
    """Makes jobs of requests; see :class:`serve.engine.model.Pooling`.

    Args:
        model: The weights.
        pooling: The model's own.
        n_ctx: Tokens that an input may have; no more than what the model was trained for, nor than 2048.
        n_seq: Inputs of one batch.
        n_threads: CPU threads.
        check: Refuses token ids outside the vocabulary.
    """

    def __init__(
        self,
        model: LlamaModel,
        pooling: PoolingType,
        *,
        n_ctx: int,
        n_seq: int,
        n_threads: int,
        check: Callable[[Sequence[int]], Sequence[int]],
    ) -> None:
        self.n_ctx = min(n_ctx or model.n_ctx_train, model.n_ctx_train, _MAX_INPUT)
        self._model = model
        self._pooling = pooling
        self._check = check
        pool = LlamaPool(model, pooling, n_rows=self.n_ctx, n_seq=n_seq, n_threads=n_threads)
        self.queue = PooledQueue(pool)

    def embed_job(self, job_id: int, inputs: Sequence[str | Sequence[int]]) -> PooledJob:
        """As in :class:`serve.engine.model.Pooling`."""
        if self._pooling == "rank":
            raise RequestError(
                "This model ranks documents; it makes no embeddings.", "Use it with /v1/rerank.", "model"
            )
        tokens = [self._tokens(item) for item in inputs]
        n_tokens = self._counted(tokens, "input")
        return PooledJob(job_id, tokens, lambda vectors: Embeddings(tuple(map(_normalised, vectors)), n_tokens))

    def rerank_job(self, job_id: int, query: str, documents: Sequence[str]) -> PooledJob:
        """As in :class:`serve.engine.model.Pooling`."""
        if self._pooling == "none":
            raise RequestError(
                "This model generates text; it cannot rank documents.", "Use a reranker or an embedding model.", "model"
            )
        if self._pooling == "rank":
            pairs = list(pair_prompts(self._model, self._pair_format, query, documents))
            n_tokens = self._counted(pairs, "documents")
            return PooledJob(job_id, pairs, lambda rows: Scores(tuple(float(row[0]) for row in rows), n_tokens))
        tokens = [self._tokens(text) for text in (query, *documents)]
        n_tokens = self._counted(tokens, "documents")
        return PooledJob(job_id, tokens, lambda vectors: Scores(_similarities(vectors), n_tokens))

    def _tokens(self, item: str | Sequence[int]) -> Sequence[int]:
        """Token ids of one input; text keeps what looks like a special token as text."""
        if isinstance(item, str):
            return self._model.tokenize(item, add_special=True, parse_special=False)
        return self._check(item)

    def _counted(self, inputs: Sequence[Sequence[int]], param: str) -> int:
        """All their tokens.

        Raises:
            RequestError: One is empty.
            ContextLengthError: One is too long.
        """
        lengths = [len(tokens) for tokens in inputs]
        if not all(lengths):
            raise RequestError("An input is empty.", param=param)
        if max(lengths, default=0) > self.n_ctx:
            raise ContextLengthError(max(lengths), self.n_ctx)
        return sum(lengths)

    @cached_property
    def _pair_format(self) -> PairFormat:
        return pair_format(self._model)


def pair_format(model: LlamaModel) -> PairFormat:
    """How a reranker reads its pairs, as its vocabulary tells."""
    bos = (model.bos,) if model.add_bos else ()
    # BERT's vocabularies have no end of text, only a separator.
    eos = (model.sep if model.eos < 0 else model.eos,) if model.add_eos else ()
    sep = (model.sep,) if model.add_sep else ()
    return PairFormat(bos, eos + sep, eos, model.metadata("tokenizer.chat_template.rerank"))


def _normalised(vector: Vector) -> tuple[float, ...]:
    """At L2 norm 1; a zero vector stays zero."""
    norm = float(np.linalg.norm(vector))
    return tuple((vector / norm if norm > 0 else vector).tolist())


def _similarities(vectors: Sequence[Vector]) -> tuple[float, ...]:
    """Cosines of the first vector with each of the others."""
    query, *documents = (np.asarray(_normalised(vector), np.float64) for vector in vectors)
    return tuple(float(query @ document) for document in documents)
