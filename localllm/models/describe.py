"""What a model's own files say about it; the files are checked on the way."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from localllm.gguf_header import read_gguf_parts
from localllm.model_directory import SafeTensor, read_model_config, read_safetensors_header
from localllm.sanitize import one_line


@dataclass(frozen=True)
class Description:
    """Facts for the manifest.

    Attributes:
        format: ``gguf``, ``mlx`` or ``hf``.
        architecture: As the files name it.
        parameters: Number of weights; 0 when the files do not say.
        quantization: ``Q4_1``, ``BF16``, ``4-bit``, …
        n_ctx_train: Tokens; 0 when the files do not say.
        licence: As the file says; usually empty.
        variant: For the model's name.
    """

    format: str
    architecture: str
    parameters: int
    quantization: str
    n_ctx_train: int
    licence: str
    variant: str


def describe(paths: Sequence[Path]) -> Description:
    """Read and check the files of a model, the one to load (or ``config.json``) first.

    Raises:
        InvalidModelError: One is damaged, hostile or of an unknown kind.
    """
    if paths[0].name == "config.json":
        return _describe_safetensors(paths)
    return _describe_gguf(paths)


def _describe_gguf(paths: Sequence[Path]) -> Description:
    header = read_gguf_parts(paths)
    licence = header.metadata.get("general.license")
    return Description(
        format="gguf",
        architecture=one_line(header.architecture, 60),
        parameters=header.n_parameters,
        quantization=header.quantization,
        n_ctx_train=header.n_ctx_train,
        licence=one_line(licence, 60) if isinstance(licence, str) else "",
        variant=header.quantization.lower(),
    )


def _describe_safetensors(paths: Sequence[Path]) -> Description:
    config = read_model_config(paths[0])
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    is_mlx = isinstance(bits, int) and 1 <= bits <= 16
    parameters = 0
    types: dict[str, int] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            for tensor in read_safetensors_header(path):
                types[tensor.dtype] = types.get(tensor.dtype, 0) + tensor.n_elements
                parameters += _weights(tensor, bits if is_mlx and isinstance(bits, int) else 0)
    dominant = max(types, key=lambda dtype: types[dtype]) if types else ""
    text_config = config.get("text_config")
    inner = text_config if isinstance(text_config, dict) else {}
    n_ctx_train = config.get("max_position_embeddings", inner.get("max_position_embeddings"))
    architecture = config.get("model_type")
    return Description(
        format="mlx" if is_mlx else "hf",
        architecture=one_line(architecture, 60) if isinstance(architecture, str) else "",
        parameters=parameters,
        quantization=f"{bits}-bit" if is_mlx else dominant,
        n_ctx_train=n_ctx_train if isinstance(n_ctx_train, int) and n_ctx_train > 0 else 0,
        licence="",
        variant=f"mlx-{bits}bit" if is_mlx else dominant.lower() or "hf",
    )


def _weights(tensor: SafeTensor, bits: int) -> int:
    """Weights in a tensor. MLX packs quantized ones into 32-bit words, with scales and biases beside them."""
    if not bits:
        return tensor.n_elements
    if tensor.name.endswith((".scales", ".biases")):
        return 0
    return tensor.n_elements * 32 // bits if tensor.dtype == "U32" else tensor.n_elements
