"""What the worker asks of a loaded model, whichever library runs it."""

from collections.abc import Sequence
from typing import Protocol

from serve.engine.constraint_types import TokenMatcher
from serve.engine.pooled import PooledJob, PooledQueue
from serve.engine.request import AdapterSet, Job, JobEvent
from serve.engine.step_meter import StepMeter
from serve.engine.types import EngineInfo, GenerateRequest


class Batching(Protocol):
    """Runs jobs together, step by step; used by the engine thread only."""

    @property
    def idle(self) -> bool:
        """Nothing runs and nothing waits."""

    @property
    def meter(self) -> StepMeter:
        """Adds up what the steps do."""

    @property
    def kv(self) -> tuple[int, int]:
        """Tokens in the KV cache, and its size."""

    def submit(self, job: Job) -> None:
        """Queue a job.

        Raises:
            ContextLengthError: Its prompt leaves no room for one token of answer.
            EngineBusyError: Too many wait.
            RequestError: An option does not suit the model.
        """

    def cancel(self, job_id: int) -> None:
        """Forget a job, running or waiting; one that has ended is no error."""

    def step(self) -> list[JobEvent]:
        """One step for every running job; the events of all jobs it touched."""


class Pooling(Protocol):
    """Makes embeddings and scores."""

    @property
    def queue(self) -> PooledQueue:
        """Runs the jobs; used by the engine thread only."""

    def embed_job(self, job_id: int, inputs: Sequence[str | Sequence[int]]) -> PooledJob:
        """A job that embeds texts or token ids.

        Raises:
            RequestError: An empty input, a token id outside the vocabulary, or a model that makes no embeddings.
            ContextLengthError: An input is too long.
        """

    def rerank_job(self, job_id: int, query: str, documents: Sequence[str]) -> PooledJob:
        """A job that scores documents.

        Raises:
            RequestError: A model that was made to generate text, or an empty text.
            ContextLengthError: The query and a document are too long.
        """


class Model(Protocol):
    """A model in memory."""

    @property
    def info(self) -> EngineInfo:
        """What it says about itself."""

    @property
    def scheduler(self) -> Batching | None:
        """Runs its jobs; None for a model that makes embeddings only."""

    @property
    def pooling(self) -> Pooling | None:
        """Makes embeddings and scores; None for an engine that can do neither."""

    def stop(self) -> None:
        """Keep what the next process can use; the last thing that the engine thread does."""

    def rest(self) -> None:
        """Give back memory that only the next request would use; called when there was nothing to do for a while."""

    def tokenize(self, request: GenerateRequest) -> Sequence[int]:
        """The prompt's token ids.

        Raises:
            RequestError: No template, a template that refuses, or a token id outside the vocabulary.
        """

    def shown(self, texts: Sequence[str]) -> frozenset[int]:
        """The special tokens that ``texts`` name; texts that are no token of this vocabulary name none."""

    def matcher(self, request: GenerateRequest) -> TokenMatcher | None:
        """A matcher for the answer, where its form is constrained.

        Raises:
            RequestError: The constraint cannot be used.
        """

    def adapters(self, request: GenerateRequest) -> AdapterSet:
        """The adapters that the request is to be computed with.

        Raises:
            RequestError: One does not suit the model, or the engine cannot change them.
        """

    def tokenize_text(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of any text, with BOS where the tokenizer adds one, with special tokens read as such or not."""

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            RequestError: An id is outside the vocabulary.
        """
