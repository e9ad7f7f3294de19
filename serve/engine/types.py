"""What goes into an engine and what comes out: frozen dataclasses, no llama.cpp in sight."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineSpec:
    """How a model is to be loaded.

    Attributes:
        path: The GGUF file.
        n_ctx: Tokens in the KV cache, shared by all requests (unified); 0 takes the model's own context length.
        n_batch: Tokens in one call of ``llama_decode`` at most; also the longest slice of a prompt between two
            steps of the other requests.
        n_parallel: Requests that decode together at most.
        n_threads: CPU threads; 0 takes the number of physical cores.
        n_gpu_layers: Layers on the GPU; -1 is all of them.
        flash_attn: Fused attention: None lets llama.cpp decide.
    """

    path: str
    n_ctx: int = 0
    n_batch: int = 512
    n_parallel: int = 16
    n_threads: int = 0
    n_gpu_layers: int = -1
    flash_attn: bool | None = None


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded model says about itself.

    Attributes:
        architecture: ``general.architecture`` of the file.
        n_ctx: Tokens that one request may use: prompt and answer together.
        n_ctx_train: Context length in training.
        n_vocab: Size of the vocabulary.
        n_embd: Width of an embedding.
        n_threads: CPU threads in use.
        has_chat_template: The file carries a chat template.
        pid: Process id of the engine's process.
    """

    architecture: str
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_threads: int
    has_chat_template: bool
    pid: int


@dataclass(frozen=True)
class SamplingParams:
    """How the next token is chosen. The order is llama.cpp's: penalties, top_k, top_p, min_p, temperature, draw.

    Attributes:
        temperature: 0 is greedy.
        top_k: Keep the k most likely tokens; 0 keeps all.
        top_p: Keep the smallest set whose probability reaches p; 1 keeps all.
        min_p: Drop tokens less likely than min_p times the most likely one; 0 drops none.
        repeat_penalty: Divides positive logits of the last ``repeat_last_n`` tokens; 1 is off.
        frequency_penalty: Subtracted per occurrence among the last ``repeat_last_n`` tokens.
        presence_penalty: Subtracted once for each token among the last ``repeat_last_n`` tokens.
        repeat_last_n: Window of the penalties, in tokens; -1 is the whole context.
        seed: 0 to 2**32-2, every one of them a fixed seed, 0 too; None draws one.
    """

    temperature: float = 0.8
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    repeat_last_n: int = 64
    seed: int | None = None


@dataclass(frozen=True)
class GenerateRequest:
    """One completion.

    Exactly one of ``messages`` and ``prompt`` is given.

    Attributes:
        messages: A chat, rendered with the model's own template. Each is ``{"role": …, "content": …}``.
        prompt: Text, or token ids. Text gets the model's BOS where its tokenizer adds one.
        sampling: How tokens are chosen.
        max_tokens: Longest answer; None is bounded by the context alone.
        stop: The answer ends before the first of these; they are not part of it.
        template_args: More names for the chat template (``enable_thinking``, …).
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    template_args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Usage:
    """Counts and times of one completion.

    Attributes:
        n_prompt: Tokens in the prompt.
        n_cached: Those of them whose KV was there already.
        n_completion: Tokens in the answer, the end-of-turn token included.
        prompt_seconds: From admission to the first token.
        decode_seconds: From the first token to the last.
    """

    n_prompt: int
    n_cached: int
    n_completion: int
    prompt_seconds: float
    decode_seconds: float


@dataclass(frozen=True)
class Started:
    """The request was admitted; its prompt is counted."""

    n_prompt: int
    n_cached: int


@dataclass(frozen=True)
class Delta:
    """More text: whole characters only, never a part of a stop string. ``n_tokens`` is how many tokens it took."""

    text: str
    n_tokens: int


@dataclass(frozen=True)
class Finished:
    """The answer is complete."""

    reason: FinishReason
    usage: Usage


GenerateEvent = Started | Delta | Finished


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of several inputs.

    Attributes:
        vectors: One a input, ``n_embd`` floats each, L2 norm 1.
        n_tokens: Tokens in all inputs.
    """

    vectors: tuple[tuple[float, ...], ...]
    n_tokens: int


class Engine(Protocol):
    """A loaded model, as the server sees it."""

    @property
    def info(self) -> EngineInfo:
        """What the model says about itself."""

    @property
    def alive(self) -> bool:
        """False once its process has ended; such an engine answers nothing more."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[GenerateEvent]:
        """Stream one completion: ``Started``, any number of ``Delta``, ``Finished``.

        Closing the iterator early cancels the request in the engine.

        Raises:
            ContextLengthError: The prompt does not fit.
            RequestError: The request is refused.
            EngineDiedError: The engine's process ended before the answer was complete.
            EngineBusyError: Too many requests wait.
        """

    async def embed(self, inputs: Sequence[str | Sequence[int]]) -> Embeddings:
        """Embed texts or token ids.

        Raises:
            ContextLengthError, RequestError, EngineDiedError: As for :meth:`generate`.
        """

    async def close(self) -> None:
        """End the engine's process; requests under way fail with EngineDiedError."""
