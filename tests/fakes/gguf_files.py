"""Small GGUF files made on the spot, with the reference writer of the `gguf` package."""

import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

import gguf
import numpy as np

from localllm.gguf_header import read_gguf_header

TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
_WORDS = (
    "▁",
    "▁the",
    "▁a",
    "▁is",
    "▁of",
    "▁and",
    "▁to",
    "▁user",
    "▁assistant",
    "▁hello",
    "▁world",
    ":",
    ".",
    "?",
    "e",
    "t",
)


def write_tiny_gguf(
    path: Path,
    *,
    seed: int = 0,
    n_layer: int = 2,
    n_embd: int = 32,
    n_head: int = 4,
    n_head_kv: int = 2,
    n_ff: int = 64,
    n_ctx_train: int = 256,
    chat_template: str | None = TEMPLATE,
    tensor_type: gguf.GGMLQuantizationType = gguf.GGMLQuantizationType.F16,
    extra: Mapping[str, int | float | bool | str | list[int]] | None = None,
) -> Path:
    """Write a llama-architecture model of about 50 kB that llama.cpp loads and runs (it talks nonsense).

    Its vocabulary is sentencepiece-like: ``<unk>``, ``<s>``, ``</s>``, the 256 bytes, and a few words, so that any text
    can be tokenised.

    Args:
        path: Where to write.
        seed: Of the random weights.
        tensor_type: Of the matrices; ``n_embd`` and ``n_ff`` must be multiples of its block.
        extra: More metadata, by full key.

    Returns:
        ``path``.
    """
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *_WORDS]
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(n_ctx_train)
    writer.add_embedding_length(n_embd)
    writer.add_block_count(n_layer)
    writer.add_feed_forward_length(n_ff)
    writer.add_head_count(n_head)
    writer.add_head_count_kv(n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(n_embd // n_head)
    writer.add_vocab_size(len(tokens))
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(index) for index in range(len(tokens))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * len(_WORDS)])  # unknown, control, byte, normal
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if chat_template is not None:
        writer.add_chat_template(chat_template)
    for key, value in (extra or {}).items():
        _add(writer, key, value)

    rng = np.random.default_rng(seed)

    def matrix(name: str, rows: int, columns: int) -> None:
        weights = rng.normal(0.0, columns**-0.5, (rows, columns)).astype(np.float32)
        writer.add_tensor(name, gguf.quants.quantize(weights, tensor_type), raw_dtype=tensor_type)

    def norm(name: str) -> None:
        writer.add_tensor(name, np.ones(n_embd, dtype=np.float32))

    n_embd_kv = n_embd // n_head * n_head_kv
    matrix("token_embd.weight", len(tokens), n_embd)
    for layer in range(n_layer):
        block = f"blk.{layer}"
        norm(f"{block}.attn_norm.weight")
        matrix(f"{block}.attn_q.weight", n_embd, n_embd)
        matrix(f"{block}.attn_k.weight", n_embd_kv, n_embd)
        matrix(f"{block}.attn_v.weight", n_embd_kv, n_embd)
        matrix(f"{block}.attn_output.weight", n_embd, n_embd)
        norm(f"{block}.ffn_norm.weight")
        matrix(f"{block}.ffn_gate.weight", n_ff, n_embd)
        matrix(f"{block}.ffn_up.weight", n_ff, n_embd)
        matrix(f"{block}.ffn_down.weight", n_embd, n_ff)
    norm("output_norm.weight")
    matrix("output.weight", len(tokens), n_embd)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def write_tiny_lora(
    path: Path,
    base: Path,
    *,
    seed: int = 0,
    rank: int = 4,
    alpha: float = 8.0,
    size: float = 1.0,
    names: Sequence[str] = ("attn_q", "attn_v", "ffn_down"),
    architecture: str = "llama",
    extra: Mapping[str, int | float | bool | str | list[int]] | None = None,
) -> Path:
    """Write a LoRA adapter of random weights for the model ``base``, in all of its layers.

    Args:
        path: Where to write.
        base: Its GGUF file.
        seed: Of the weights.
        rank: Of each pair.
        alpha: The scale is alpha / rank.
        size: What the weights are multiplied by; 1 changes the answers beyond recognition.
        names: The matrices of a layer that are changed, or full names of others (``token_embd.weight``).
        architecture: What the file says it is for.
        extra: More metadata, by full key.

    Returns:
        ``path``.
    """
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for key, value in (extra or {}).items():
        _add(writer, key, value)
    rng = np.random.default_rng(seed)
    for tensor in read_gguf_header(base).tensors:
        if not any(tensor.name == name or tensor.name.endswith(f".{name}.weight") for name in names):
            continue
        columns, rows = tensor.shape
        if tensor.name == "token_embd.weight":
            shape_a, shape_b = (rows, rank), (columns, rank)
        else:
            shape_a, shape_b = (rank, columns), (rows, rank)
        for half, shape in (("lora_a", shape_a), ("lora_b", shape_b)):
            weights = rng.normal(0.0, size * columns**-0.25, shape).astype(np.float32)
            writer.add_tensor(f"{tensor.name}.{half}", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: int | float | bool | str | list[int]) -> None:
    match value:
        case bool():
            writer.add_bool(key, value)
        case int():
            writer.add_uint32(key, value)
        case float():
            writer.add_float32(key, value)
        case str():
            writer.add_string(key, value)
        case list():
            writer.add_array(key, value)


def text(value: str | bytes) -> bytes:
    """A string as GGUF writes it."""
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str | bytes, kind: int, value: bytes) -> bytes:
    """A metadata pair, with any type number and any bytes as its value."""
    return text(key) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: Sequence[int], kind: int = 0, offset: int = 0, n_dims: int | None = None) -> bytes:
    """A tensor's description."""
    dims = struct.pack(f"<I{len(shape)}Q", len(shape) if n_dims is None else n_dims, *shape)
    return text(name) + dims + struct.pack("<IQ", kind, offset)


ARCHITECTURE = pair("general.architecture", 8, text("llama"))


def raw_gguf(
    pairs: Sequence[bytes] = (ARCHITECTURE,),
    tensors: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_pairs: int | None = None,
    n_tensors: int | None = None,
    alignment: int = 32,
) -> bytes:
    """A GGUF file put together by hand, so that anything in it can be wrong."""
    counts = (len(tensors) if n_tensors is None else n_tensors, len(pairs) if n_pairs is None else n_pairs)
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % alignment) + data
