"""Memory: what a model needs, what the machine has, and whether the one fits in the other."""

import platform
from dataclasses import dataclass

from localllm.cgroup import memory_limit
from localllm.errors import MemoryFitError
from localllm.gguf_header import GGUFHeader
from localllm.machine import sysctl

_GIB = 1 << 30
_N_UBATCH = 512  # llama.cpp computes at most so many tokens at once, whatever n_batch is
_N_SEQUENCES = 16  # whose logits the engine keeps
_PROCESS = 64 << 20  # Python, llama.cpp and the vocabulary: 40 to 60 MiB measured
_STEP = 256  # llama.cpp rounds n_ctx up to this
USUAL_CONTEXT = 8192
# Bytes of one element in the KV cache, by the setting kv_type: Q8_0 keeps a scale of 2 bytes for every 32 elements.
KV_BYTES = {"f16": 2.0, "q8_0": 34 / 32}


@dataclass(frozen=True)
class MachineMemory:
    """The machine's memory, in bytes.

    Attributes:
        total: What there is; unified memory on Apple Silicon; the container's limit where that is less.
        available: What is free now, or can be made free at once.
        budget: What models may use together.
    """

    total: int
    available: int
    budget: int


@dataclass(frozen=True)
class MemoryNeed:
    """What a loaded model takes, in bytes.

    Attributes:
        weights: The tensors.
        kv_cache: Keys and values of all tokens in the context.
        compute: Scratch buffers, logits, and the process itself.
    """

    weights: int
    kv_cache: int
    compute: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.kv_cache + self.compute


@dataclass(frozen=True)
class ModelShape:
    """The numbers of a model that its memory depends on.

    Attributes:
        weights: Bytes of all tensors.
        kv_per_token: Elements in the KV cache for one token, over all layers.
        n_vocab: Size of the vocabulary.
        n_embd: Width of an embedding.
        n_ff: Width of the widest feed-forward layer that one token passes through.
        n_ctx_train: Context length in training, in tokens; 0 when unknown.
    """

    weights: int
    kv_per_token: int
    n_vocab: int
    n_embd: int
    n_ff: int
    n_ctx_train: int

    def need(self, n_ctx: int, n_batch: int = _N_UBATCH, kv_bytes: float = 2.0) -> MemoryNeed:
        """What the model takes with ``n_ctx`` tokens of context."""
        n_ctx = -(-n_ctx // _STEP) * _STEP
        kv_cache = int(self.kv_per_token * kv_bytes * n_ctx)
        outputs = 4 * _N_SEQUENCES * self.n_vocab
        return MemoryNeed(self.weights, kv_cache, self.scratch(n_ctx, n_batch) + outputs + _PROCESS)

    def scratch(self, n_ctx: int, n_batch: int = _N_UBATCH) -> int:
        """Bytes of llama.cpp's compute buffer, with flash attention.

        A bound found by reading what llama.cpp 0.3.36 reserves, and by comparing (MiB, estimated / its own figure):
        SmolLM2-135M, n_ctx 2048, n_batch 512: 102.5 / 102.5; 8192, 512: 108.5 / 98.3; 8192, 128: 27.1 / 24.6.
        A model of width 512, feed-forward 2048: 32768, 512: 48.0 / 48.0; 65536, 128: 20.0 / 20.0.
        Per token of a batch: in float32 the logits or three feed-forward rows, whichever is more, and four rows of
        the residual stream; in float16 the attention mask. Attention without fusing takes 4 * n_head * n_ctx more.
        """
        n_tokens = min(n_batch, _N_UBATCH)
        return n_tokens * (4 * (max(self.n_vocab, 3 * self.n_ff) + 4 * self.n_embd) + 2 * n_ctx)

    def largest_context(self, budget: int, most: int, n_batch: int = _N_UBATCH, kv_bytes: float = 2.0) -> int:
        """The largest context of at most ``most`` tokens, in steps of 256, that fits ``budget`` bytes; 0 for none."""
        low, high = 0, -(-most // _STEP)
        while low < high:
            middle = (low + high + 1) // 2
            if self.need(middle * _STEP, n_batch, kv_bytes).total <= budget:
                low = middle
            else:
                high = middle - 1
        return min(low * _STEP, most)


@dataclass(frozen=True)
class Fit:
    """Whether a model fits.

    Attributes:
        n_ctx: The context length that was asked for or chosen, in tokens.
        need: What the model takes with it.
        fits: The need is within the budget.
        reason: One sentence with both numbers.
    """

    n_ctx: int
    need: MemoryNeed
    fits: bool
    reason: str


def model_shape(header: GGUFHeader) -> ModelShape:
    """What ``header`` says about the model's memory.

    Sliding windows, shared layers and compressed attention are counted as if they were full: never too little. The
    state of recurrent layers (some MiB) is not counted; their ``head_count_kv`` of 0 is honoured.
    """
    n_embd = header.n_embd
    n_head = _largest(header, "attention.head_count") or 1
    key_length = header.of_architecture("attention.key_length") or n_embd // n_head
    value_length = header.of_architecture("attention.value_length") or n_embd // n_head
    expert_ff = _largest(header, "expert_feed_forward_length") * _largest(header, "expert_used_count")
    return ModelShape(
        weights=sum(tensor.n_bytes for tensor in header.tensors),
        kv_per_token=_kv_heads(header) * (key_length + value_length),
        n_vocab=header.n_vocab,
        n_embd=n_embd,
        n_ff=max(_largest(header, "feed_forward_length"), expert_ff),
        n_ctx_train=header.n_ctx_train,
    )


def memory_need(header: GGUFHeader, n_ctx: int, n_batch: int = _N_UBATCH, kv_bytes: float = 2.0) -> MemoryNeed:
    """What the model of ``header`` takes once it is loaded.

    Args:
        header: The model.
        n_ctx: Tokens of context, of all requests together.
        n_batch: Tokens computed at once at most.
        kv_bytes: Bytes of one element in the KV cache: 2.0 for F16, 1.0625 for Q8_0.
    """
    return model_shape(header).need(n_ctx, n_batch, kv_bytes)


def fit(
    model: GGUFHeader | ModelShape,
    machine: MachineMemory,
    n_ctx: int = 0,
    n_batch: int = _N_UBATCH,
    kv_bytes: float = 2.0,
) -> Fit:
    """Whether the model fits in the budget of ``machine``.

    Args:
        model: The model, or what is known of its shape.
        machine: The machine; where other models are loaded already, give one with their need taken off the budget.
        n_ctx: Tokens of context; 0 chooses the largest that fits, up to 8192 and the model's own.
        n_batch: Tokens computed at once at most.
        kv_bytes: Bytes of one element in the KV cache.
    """
    shape = model if isinstance(model, ModelShape) else model_shape(model)
    if not n_ctx:
        most = min(shape.n_ctx_train or USUAL_CONTEXT, USUAL_CONTEXT)
        n_ctx = shape.largest_context(machine.budget, most, n_batch, kv_bytes) or _STEP
    need = shape.need(n_ctx, n_batch, kv_bytes)
    with_context = f"needs {gigabytes(need.total)} with {n_ctx} tokens of context"
    if need.total > machine.budget:
        return Fit(n_ctx, need, fits=False, reason=f"{with_context}; models may use {gigabytes(machine.budget)} here")
    if need.total > machine.available:
        return Fit(n_ctx, need, fits=True, reason=f"{with_context}; only {gigabytes(machine.available)} is free now")
    return Fit(n_ctx, need, fits=True, reason=f"{with_context}; {gigabytes(machine.available)} is free")


def require_fit(
    model: GGUFHeader | ModelShape,
    machine: MachineMemory,
    n_ctx: int = 0,
    n_batch: int = _N_UBATCH,
    kv_bytes: float = 2.0,
) -> Fit:
    """:func:`fit`, or an error with both numbers.

    Raises:
        MemoryFitError: The model does not fit; the hint names the context length that would, or a smaller model.
    """
    shape = model if isinstance(model, ModelShape) else model_shape(model)
    found = fit(shape, machine, n_ctx, n_batch, kv_bytes)
    if found.fits:
        return found
    possible = shape.largest_context(machine.budget, found.n_ctx, n_batch, kv_bytes)
    raise MemoryFitError(
        f"The model {found.reason}.",
        f"It fits with --ctx {possible} or less."
        if possible
        else "Take a smaller model or quantization: `localllm models fit` shows what fits. The setting memory_gb "
        "changes how much models may use.",
    )


def machine_memory(limit_gb: float = 0) -> MachineMemory:
    """What this machine has.

    The budget, unless ``limit_gb`` (the setting ``memory_gb``) says it: on Apple Silicon what Metal lets the GPU keep
    resident (``iogpu.wired_limit_mb`` when it is set, else 2/3 of the memory, and 3/4 from 36 GiB on); elsewhere all
    but a reserve for the system: a fifth, at least 1 GiB and at most 6 GiB, never more than half.
    """
    import psutil  # deferred: 15 ms, and most commands never ask

    memory = psutil.virtual_memory()
    total, available = int(memory.total), int(memory.available)
    limit = memory_limit()
    if limit is not None:
        total, available = min(total, limit.limit), min(available, limit.free)
    if limit_gb:
        budget = min(total, int(limit_gb * 1e9))
    elif platform.system() == "Darwin" and platform.machine() == "arm64":
        budget = _metal_budget(total)
    else:
        budget = total - min(max(total // 5, _GIB), 6 * _GIB, total // 2)
    return MachineMemory(total, available, budget)


def gigabytes(n: int) -> str:
    """``n`` bytes as decimal gigabytes, one digit after the point, two below one: ``4.9 GB``, ``0.35 GB``."""
    return f"{n / 1e9:.{1 if n >= 1e9 else 2}f} GB"


def _metal_budget(total: int) -> int:
    wired = sysctl("iogpu.wired_limit_mb")
    if wired.isdigit() and int(wired):
        return min(total, int(wired) << 20)
    return total * 3 // 4 if total >= 36 * _GIB else total * 2 // 3


def _kv_heads(header: GGUFHeader) -> int:
    """KV heads of all layers together."""
    for key in ("attention.head_count_kv", "attention.head_count"):
        value = header.metadata.get(f"{header.architecture}.{key}")
        if isinstance(value, tuple):
            return sum(heads for heads in value if isinstance(heads, int) and heads > 0)
        if heads := header.of_architecture(key):
            return heads * header.n_layer
    return 0


def _largest(header: GGUFHeader, key: str) -> int:
    """A number of the architecture, or the largest of one number a layer."""
    value = header.metadata.get(f"{header.architecture}.{key}")
    if isinstance(value, tuple):
        return max((number for number in value if isinstance(number, int)), default=0)
    return header.of_architecture(key)
