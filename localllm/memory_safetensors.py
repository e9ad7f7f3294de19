"""Memory of a model that MLX runs: read from its ``config.json`` and the headers of its safetensors."""

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.gguf_header import read_gguf_parts
from localllm.memory import MemoryNeed, ModelShape, model_shape
from localllm.model_directory import read_model_config, read_safetensors_header

_PROCESS = 160 << 20  # Python, MLX, transformers and the vocabulary: 85 MiB measured with a tiny one, 150 with 150 000
_STEP = 256  # mlx-lm's caches grow by so many tokens
_N_SEQUENCES = 16  # whose logits are there at once
_N_BATCH = 512
_FLOATS = frozenset({"F64", "F32", "F16", "BF16"})


@dataclass(frozen=True)
class MLXShape(ModelShape):
    """The numbers of a model that its memory in MLX depends on.

    Attributes:
        n_head: Attention heads.
        on_gpu: Metal computes in the file's own type and fuses attention; on the CPU the engine takes float32, and
            attention writes its scores down.
    """

    n_head: int
    on_gpu: bool

    def need(self, n_ctx: int, n_batch: int = _N_BATCH, kv_bytes: float = 2.0) -> MemoryNeed:  # noqa: ARG002 - llama.cpp's option
        """What the model takes with ``n_ctx`` tokens of context; MLX has no choice of ``kv_bytes``."""
        n_ctx = -(-n_ctx // _STEP) * _STEP
        kv_cache = self.kv_per_token * (2 if self.on_gpu else 4) * n_ctx
        # The logits, their normalised form, and what a sampler makes of them.
        outputs = 3 * 4 * _N_SEQUENCES * self.n_vocab
        return MemoryNeed(self.weights, kv_cache, self.scratch(n_ctx, n_batch) + outputs + _PROCESS)

    def scratch(self, n_ctx: int, n_batch: int = _N_BATCH) -> int:
        """Bytes of one layer's intermediate results for a slice of a prompt."""
        scores = 0 if self.on_gpu else 2 * 4 * self.n_head * n_ctx
        return n_batch * (4 * (3 * self.n_ff + 4 * self.n_embd) + scores)


def mlx_uses_gpu(gpu_layers: int = -1) -> bool:
    """Whether MLX computes on a GPU here: on Apple silicon, unless the setting ``gpu_layers`` is 0."""
    return gpu_layers != 0 and platform.system() == "Darwin" and platform.machine() == "arm64"


def safetensors_shape(paths: Sequence[Path], *, on_gpu: bool) -> MLXShape:
    """What a model's files say about its memory.

    Sliding windows, compressed attention and recurrent layers are counted as full attention: never too little.

    Args:
        paths: The model's files, ``config.json`` first.
        on_gpu: See :func:`mlx_uses_gpu`.

    Raises:
        InvalidModelError: A file is damaged.
    """
    config = read_model_config(paths[0])
    inner = config.get("text_config")
    if isinstance(inner, dict):
        config = {**config, **inner}
    weights = 0
    for path in paths:
        if path.suffix == ".safetensors":
            for tensor in read_safetensors_header(path):
                widened = not on_gpu and tensor.dtype in _FLOATS
                weights += 4 * tensor.n_elements if widened else tensor.n_bytes
    n_embd, n_head = _number(config, "hidden_size"), _number(config, "num_attention_heads")
    head_dim = _number(config, "head_dim") or n_embd // max(1, n_head)
    kv_heads = _number(config, "num_key_value_heads") or n_head
    experts = _number(config, "num_experts_per_tok") * _number(config, "moe_intermediate_size")
    return MLXShape(
        weights=weights,
        kv_per_token=2 * _number(config, "num_hidden_layers") * kv_heads * head_dim,
        n_vocab=_number(config, "vocab_size"),
        n_embd=n_embd,
        n_ff=max(_number(config, "intermediate_size"), experts),
        n_ctx_train=_number(config, "max_position_embeddings"),
        n_head=n_head,
        on_gpu=on_gpu,
    )


def files_shape(paths: Sequence[Path], *, gpu_layers: int = -1) -> ModelShape:
    """What a model's files say about its memory, whichever engine runs it.

    Args:
        paths: The model's files, the one to load (or ``config.json``) first.
        gpu_layers: The setting.

    Raises:
        InvalidModelError: A file is damaged.
    """
    if paths[0].name == "config.json":
        return safetensors_shape(paths, on_gpu=mlx_uses_gpu(gpu_layers))
    return model_shape(read_gguf_parts(paths))


def _number(config: dict[str, Any], key: str) -> int:
    value = config.get(key)
    return value if isinstance(value, int) and value > 0 else 0
