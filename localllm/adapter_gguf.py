"""A LoRA adapter in a GGUF file, checked before llama.cpp reads it, and against the model that it is for.

The format is that of llama.cpp's ``convert_lora_to_gguf.py``: ``general.type`` is ``adapter``, ``adapter.type`` is
``lora``, and for each changed matrix ``NAME`` there are ``NAME.lora_a`` and ``NAME.lora_b``. With W of shape
(columns, rows) in the file's order, A is (columns, rank) and B (rank, rows); the matrix becomes
W + scale * alpha / rank * B A. Of the token embedding, whose rows are looked up, A is (rank, tokens) and B is
(rank, width).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.gguf_header import GGUFHeader, TensorInfo, read_gguf_header
from localllm.sanitize import one_line

_A, _B = ".lora_a", ".lora_b"
# What llama.cpp multiplies with on every backend; quantized adapters save little and lose much.
_TYPES = frozenset({"F32", "F16", "BF16", "Q8_0"})
_EMBEDDING = "token_embd.weight"
_WRONG_BASE = "Use it with the model that it was made for."


@dataclass(frozen=True)
class AdapterHeader:
    """What an adapter's file says.

    Attributes:
        architecture: Of the model that it is for.
        base: What the file calls that model; empty when it does not.
        alpha: The scale is alpha / rank; 0 means a scale of 1.
        rank: The largest rank in it.
        pairs: Tensors A and B by the name of the matrix that they change.
        label: The file's name, for messages.
    """

    architecture: str
    base: str
    alpha: float
    rank: int
    pairs: dict[str, tuple[TensorInfo, TensorInfo]]
    label: str


def is_adapter(header: GGUFHeader) -> bool:
    """Whether a GGUF file says that it is an adapter, of whatever kind."""
    return header.metadata.get("general.type") == "adapter"


def read_adapter_header(path: Path) -> AdapterHeader:
    """Read and check an adapter's file.

    Raises:
        InvalidModelError: It is damaged, no LoRA adapter, or does what llama.cpp would leave out or die of.
    """
    header = read_gguf_header(path)
    label = one_line(path.name, 80)
    kind = header.metadata.get("adapter.type")
    if not is_adapter(header) or kind != "lora":
        named = f"an adapter of the type {one_line(str(kind), 40)}" if is_adapter(header) else "a model, no adapter"
        raise InvalidModelError(f"{label} is {named}.", "Only LoRA adapters can be used.")
    if "adapter.alora.invocation_tokens" in header.metadata:
        raise InvalidModelError(f"{label} is an adapter that text activates (aLoRA), which is not supported.")
    alpha = header.metadata.get("adapter.lora.alpha", 0.0)
    base = header.metadata.get("general.base_model.0.name", header.metadata.get("general.basename"))
    pairs = _pairs(header, label)
    return AdapterHeader(
        architecture=header.architecture,
        base=base if isinstance(base, str) else "",
        alpha=alpha if isinstance(alpha, float) else 0.0,
        rank=max(b.shape[0] for _, b in pairs.values()),
        pairs=pairs,
        label=label,
    )


def check_fit(adapter: AdapterHeader, tensors: Mapping[str, TensorInfo], architecture: str) -> None:
    """Check that ``adapter`` changes matrices that a model has, of the shapes that it has.

    Args:
        adapter: From :func:`read_adapter_header`.
        tensors: The model's, by name.
        architecture: The model's.

    Raises:
        InvalidModelError: It is made for another model.
    """
    if adapter.architecture != architecture:
        raise InvalidModelError(
            f"{adapter.label} is for {one_line(adapter.architecture, 40)} models, and this one is {architecture}.",
            _WRONG_BASE,
        )
    for name, (a, b) in adapter.pairs.items():
        shown, base = one_line(name, 80), tensors.get(name)
        if base is None:
            raise InvalidModelError(f"{adapter.label} changes {shown}, which this model lacks.", _WRONG_BASE)
        if base.type_name == "NVFP4":
            raise InvalidModelError("llama.cpp uses no adapters on matrices in NVFP4.", "Use another quantization.")
        ne, ne_a, ne_b = _ne(base), _ne(a), _ne(b)
        seen = (ne_b[1], ne_a[1]) if name.endswith(_EMBEDDING) else (ne_a[0], ne_b[1])
        if seen != ne[:2] or ne_a[2:] != ne[2:]:
            raise InvalidModelError(
                f"{adapter.label} is for a model of another size: {shown} is {ne[0]} x {ne[1]} in this one.",
                _WRONG_BASE,
            )


def _pairs(header: GGUFHeader, label: str) -> dict[str, tuple[TensorInfo, TensorInfo]]:
    halves = {tensor.name: tensor for tensor in header.tensors}
    names = {name.removesuffix(_A).removesuffix(_B) for name in halves}
    pairs: dict[str, tuple[TensorInfo, TensorInfo]] = {}
    for name in sorted(names):
        shown = one_line(name, 80)
        if name in halves:  # llama.cpp passes over norms, and an adapter without a part of it is another one
            raise InvalidModelError(f"{label} changes {shown} in another way than by LoRA, which is not supported.")
        a, b = halves.get(name + _A), halves.get(name + _B)
        if a is None or b is None:
            raise InvalidModelError(f"{label} is damaged: {shown} has only one half of its pair.")
        if not {a.type_name, b.type_name} <= _TYPES:
            raise InvalidModelError(
                f"{label} holds {shown} as {a.type_name} and {b.type_name}.", f"Use {', '.join(sorted(_TYPES))}."
            )
        ne_a, ne_b = _ne(a), _ne(b)
        if (ne_a[0] if name.endswith(_EMBEDDING) else ne_a[1]) != ne_b[0] or ne_a[2:] != ne_b[2:]:
            raise InvalidModelError(f"{label} is damaged: the two halves of {shown} do not fit together.")
        pairs[name] = (a, b)
    if not pairs:
        raise InvalidModelError(f"{label} holds nothing that changes a model.")
    return pairs


def _ne(tensor: TensorInfo) -> tuple[int, ...]:
    """The four dimensions that ggml sees."""
    return (*tensor.shape, 1, 1, 1)[:4]
