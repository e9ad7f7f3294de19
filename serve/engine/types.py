"""What goes into an engine and what comes out: frozen dataclasses, no llama.cpp in sight."""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from localllm.errors import RequestError
from serve.engine.constraint_types import Constraint
from serve.engine.step_meter import StepReport
from serve.toolcalls.types import ToolFormat

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True)
class EngineSpec:
    """How a model is to be loaded.

    Attributes:
        path: The GGUF file; for ``mlx`` the model's directory.
        engine: The library that runs it: ``llama`` for GGUF, ``mlx`` for safetensors.
        adapter: Directory of a LoRA adapter as mlx-lm's trainer writes it; empty for none. ``mlx`` only.
        n_ctx: Tokens in the KV cache, shared by all requests (unified); 0 takes the model's own context length.
        n_batch: Tokens in one call of ``llama_decode`` at most; also the longest slice of a prompt between two
            steps of the other requests.
        n_parallel: Requests that decode together at most.
        n_threads: CPU threads; 0 takes the number of physical cores.
        n_gpu_layers: Layers on the GPU; -1 is all of them.
        flash_attn: Fused attention: None lets llama.cpp decide.
        kv_type: Of the KV cache: ``f16``, or ``q8_0`` in half the memory (docs/LOG.md has its effect).
        n_guess: Tokens guessed at once from the text so far, at most; 0 never guesses.
        draft_path: GGUF file of a smaller model with the same vocabulary, which guesses too; empty for none.
            ``llama`` only, and of no use to a model that makes embeddings.
        snapshot_dir: Directory of this model's prefixes on the disk; empty keeps none. ``llama`` only.
        snapshot_bytes: What the snapshots of all models may take.
        memory_bytes: What all models may take together; 0 asks the machine. ``mlx`` only.
    """

    path: str
    engine: Literal["llama", "mlx"] = "llama"
    adapter: str = ""
    n_ctx: int = 0
    n_batch: int = 512
    n_parallel: int = 16
    n_threads: int = 0
    n_gpu_layers: int = -1
    flash_attn: bool | None = None
    kv_type: Literal["f16", "q8_0"] = "f16"
    n_guess: int = 24
    draft_path: str = ""
    snapshot_dir: str = ""
    snapshot_bytes: int = 0
    memory_bytes: int = 0


@dataclass(frozen=True)
class EngineInfo:
    """What a loaded model says about itself.

    Attributes:
        architecture: ``general.architecture`` of the file.
        n_ctx: Tokens that one request may use: prompt and answer together.
        n_ctx_train: Context length in training.
        n_vocab: Size of the vocabulary.
        n_embd: Width of an embedding, as :meth:`Engine.embed` gives it.
        n_threads: CPU threads in use.
        has_chat_template: The file carries a chat template.
        pid: Process id of the engine's process.
        tool_format: How the model writes tool calls, as far as its chat template tells.
    """

    architecture: str
    n_ctx: int
    n_ctx_train: int
    n_vocab: int
    n_embd: int
    n_threads: int
    has_chat_template: bool
    pid: int
    tool_format: ToolFormat = "plain"


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
        logit_bias: Token ids and what is added to their logits; -100 and below bans a token.
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
    logit_bias: tuple[tuple[int, float], ...] = ()


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
        n_logprobs: Report each token's log-probability and those of this many alternatives; None reports nothing.
        prompt_logprobs: Report them for the prompt's tokens too (``echo`` of the completions API).
        ignore_eos: Go on after the end of a turn, until ``max_tokens``; for measuring.
        client: Whose request it is: requests share cached prefixes, and their turn, with those of the same client.
        constraint: What the answer must look like; it may end only where that is complete.
        answer_prefix: For chats: how the answer begins. It is put after the prompt and is not repeated.
        show_special: Texts of special tokens (``[TOOL_CALLS]``) that are part of the answer, where others are not.
        adapters: LoRA adapters to compute with: path of the GGUF file and scale of each. ``llama`` only; the paths
            come from the adapter store, never from a client.
        priority: Higher ones are admitted first; who waits long catches up with them.
        deadline: Seconds from now. A request that has no token by then is refused as by a busy engine; an answer under
            way ends there with the reason ``length``. None waits and runs as long as it takes.
    """

    messages: tuple[dict[str, Any], ...] | None = None
    prompt: str | tuple[int, ...] | None = None
    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int | None = None
    stop: tuple[str, ...] = ()
    template_args: dict[str, Any] = field(default_factory=dict)
    n_logprobs: int | None = None
    prompt_logprobs: bool = False
    ignore_eos: bool = False
    client: str = ""
    constraint: Constraint | None = None
    answer_prefix: str = ""
    show_special: tuple[str, ...] = ()
    adapters: tuple[tuple[str, float], ...] = ()
    priority: int = 0
    deadline: float | None = None

    def __post_init__(self) -> None:
        # An answer of no tokens is only asked for where the prompt itself is to be scored.
        if self.max_tokens is not None and self.max_tokens < (0 if self.prompt_logprobs else 1):
            raise RequestError("`max_tokens` must be 1 or more.", "Only an echoed prompt may have 0.", "max_tokens")


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
class TokenLogprob:
    """One token and how likely it was.

    Attributes:
        token: Its id.
        text: Its bytes, a special token's too; may be a part of a character.
        logprob: Natural log of its probability under the model's own distribution, before any sampling option; None
            for the first token of a prompt, which nothing precedes.
        top: The most likely tokens at its place, the likeliest first: bytes and log-probability.
    """

    token: int
    text: bytes
    logprob: float | None
    top: tuple[tuple[bytes, float], ...] = ()


@dataclass(frozen=True)
class Started:
    """The request was admitted; its prompt is counted."""

    n_prompt: int
    n_cached: int


@dataclass(frozen=True)
class PromptLogprobs:
    """The prompt's own log-probabilities; comes once, before the first ``Delta``, when they were asked for."""

    tokens: tuple[TokenLogprob, ...]


@dataclass(frozen=True)
class Delta:
    """More text: whole characters only, never a part of a stop string.

    Attributes:
        text: What is new; empty only where a last token without text has a log-probability to report.
        n_tokens: How many tokens it took.
        logprobs: Of these tokens, when they were asked for; the one that ends a turn is among them.
    """

    text: str
    n_tokens: int
    logprobs: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True)
class Finished:
    """The answer is complete.

    Attributes:
        reason: ``stop`` or ``length``.
        usage: Its counts and times.
        stop: The stop string that ended it; empty when the model or a limit did.
    """

    reason: FinishReason
    usage: Usage
    stop: str = ""


GenerateEvent = Started | PromptLogprobs | Delta | Finished


@dataclass(frozen=True)
class Embeddings:
    """Embeddings of several inputs.

    Attributes:
        vectors: One a input, ``n_embd`` floats each, L2 norm 1.
        n_tokens: Tokens in all inputs.
    """

    vectors: tuple[tuple[float, ...], ...]
    n_tokens: int


@dataclass(frozen=True)
class Scores:
    """How well documents suit a query.

    Attributes:
        values: One a document, in the documents' order: a reranker's own score (its scale is the model's), or the
            cosine with the query's embedding.
        n_tokens: Tokens that were read.
    """

    values: tuple[float, ...]
    n_tokens: int


class Engine(Protocol):
    """A loaded model, as the server sees it."""

    @property
    def info(self) -> EngineInfo:
        """What the model says about itself."""

    @property
    def alive(self) -> bool:
        """False once its process has ended; such an engine answers nothing more."""

    @property
    def steps(self) -> StepReport | None:
        """What its steps took, as of about a second ago; None before the first one."""

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

    async def rerank(self, query: str, documents: Sequence[str]) -> Scores:
        """Score documents by a reranker's own judgement, or by the cosine of an embedding model's vectors.

        Raises:
            ContextLengthError, RequestError, EngineDiedError: As for :meth:`generate`; a model that was made to
                generate text is refused.
        """

    async def prompt_tokens(self, request: GenerateRequest) -> list[int]:
        """The token ids of the prompt that :meth:`generate` would begin with, without generating anything.

        Raises:
            RequestError, EngineDiedError: As for :meth:`generate`.
        """

    async def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``; see :meth:`serve.engine.llama.LlamaModel.tokenize`."""

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            RequestError: An id is outside the vocabulary.
        """

    async def close(self) -> None:
        """End the engine's process; requests under way fail with EngineDiedError."""
