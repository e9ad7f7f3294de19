"""What a model's own files say about it; the files are checked on the way."""

import json
import math
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.gguf_header import read_gguf_parts
from localllm.sanitize import one_line

_HEADER_MAX = 100 << 20  # bytes, the limit of the safetensors format itself
_CONFIG_MAX = 16 << 20
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,60}", re.ASCII)


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
    config = _read_config(paths[0])
    quantization = config.get("quantization")
    bits = quantization.get("bits") if isinstance(quantization, dict) else None
    is_mlx = isinstance(bits, int) and 1 <= bits <= 16
    parameters = 0
    types: dict[str, int] = {}
    for path in paths:
        if path.suffix == ".safetensors":
            for name, dtype, count in _tensors(path):
                types[dtype] = types.get(dtype, 0) + count
                parameters += _weights(name, dtype, count, bits if is_mlx and isinstance(bits, int) else 0)
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


def _read_config(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _CONFIG_MAX:
            raise InvalidModelError("config.json is too large to be one.")
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InvalidModelError("config.json is not valid JSON.", "Pull the model again.") from error
    if not isinstance(config, dict):
        raise InvalidModelError("config.json holds no settings.", "Pull the model again.")
    return config


def _weights(name: str, dtype: str, count: int, bits: int) -> int:
    """Weights in a tensor. MLX packs quantized ones into 32-bit words, with scales and biases beside them."""
    if not bits:
        return count
    if name.endswith((".scales", ".biases")):
        return 0
    return count * 32 // bits if dtype == "U32" else count


def _tensors(path: Path) -> list[tuple[str, str, int]]:
    """Name, type and number of elements of each tensor of a safetensors file; its offsets are checked.

    The format: a little-endian u64 length, that many bytes of JSON, then the data.
    """
    invalid = InvalidModelError(f"{path.name} is damaged.", "Pull the model again.")
    size = path.stat().st_size
    with path.open("rb") as handle:
        head = handle.read(8)
        if len(head) < 8 or not 2 <= (length := struct.unpack("<Q", head)[0]) <= min(_HEADER_MAX, size - 8):
            raise invalid
        try:
            header = json.loads(handle.read(length))
            tensors = []
            for name, entry in header.items():
                if name == "__metadata__":
                    continue
                begin, end = entry["data_offsets"]
                dtype, shape = entry["dtype"], entry["shape"]
                if (
                    not (0 <= begin <= end <= size - 8 - length)
                    or not _WORD.fullmatch(dtype)
                    or min(shape, default=0) < 0
                ):
                    raise invalid
                tensors.append((name, dtype, math.prod(shape)))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise invalid from error
    return tensors
