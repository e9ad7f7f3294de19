"""Rotary embeddings' scaling on both sides: in GGUF some of it is metadata, some of it tensors."""

import math
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.architectures.config import shortest
from quant.architectures.family import Config, Metadata
from quant.tensors.dtypes import to_float32
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import Array, TensorSource

LLAMA3_TENSOR = "rope_freqs.weight"
LONG_TENSOR, SHORT_TENSOR = "rope_factors_long.weight", "rope_factors_short.weight"
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
# Llama 3.1, 3.2 and their kin; looked for first because a small model's tensor does not determine them.
_KNOWN_LLAMA3 = ((8.0, 1.0, 4.0, 8192), (32.0, 1.0, 4.0, 8192), (16.0, 1.0, 1.0, 8192))
_YARN = {
    "extrapolation_factor": "yarn_ext_factor",
    "attention_factor": "yarn_attn_factor",
    "beta_fast": "yarn_beta_fast",
    "beta_slow": "yarn_beta_slow",
}


def head_dim(config: Config) -> int:
    """Width of an attention head."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def scaling_type(config: Config) -> str:
    """``llama3``, ``yarn``, ``linear``, ``longrope``; ``default`` without any."""
    scaling = config.get("rope_scaling") or {}
    name = str(scaling.get("rope_type") or scaling.get("type") or "default")
    return "longrope" if name == "su" else name


def scaling_metadata(config: Config) -> dict[str, MetadataValue]:
    """Metadata of ``rope_scaling``, by the key after the architecture.

    Raises:
        InvalidModelError: It is of a kind that is not known, or incomplete.
    """
    scaling, kind = config.get("rope_scaling") or {}, scaling_type(config)
    if kind in ("default", "llama3", "longrope"):
        return {}
    if kind not in ("linear", "yarn") or not isinstance(scaling.get("factor"), int | float):
        raise InvalidModelError(f"The model's rope_scaling {one_line(kind, 40)!r} is not supported.")
    found: dict[str, MetadataValue] = {"rope.scaling.type": kind, "rope.scaling.factor": float(scaling["factor"])}
    if kind == "yarn":
        original = scaling.get("original_max_position_embeddings") or config["max_position_embeddings"]
        found["rope.scaling.original_context_length"] = int(original)
        for key, name in _YARN.items():
            if scaling.get(key) is not None:
                found[f"rope.scaling.{name}"] = float(scaling[key])
    return found


def scaling_config(metadata: Metadata, architecture: str) -> dict[str, Any]:
    """``rope_scaling`` of GGUF metadata; empty without any."""

    def value(key: str) -> Any:
        return metadata.get(f"{architecture}.rope.scaling.{key}")

    kind, factor = value("type"), value("factor")
    if kind not in ("linear", "yarn") or not factor:
        return {}
    scaling = {"rope_type": kind, "type": kind, "factor": shortest(factor)}
    if kind == "yarn":
        scaling["original_max_position_embeddings"] = value("original_context_length")
        scaling |= {key: shortest(value(name)) for key, name in _YARN.items() if value(name) is not None}
    return {"rope_scaling": scaling}


def llama3_tensors(config: Config) -> dict[str, Array]:
    """The factors by which Llama 3.1 divides its frequencies, as a tensor; none for other scaling."""
    if scaling_type(config) != "llama3":
        return {}
    scaling = config["rope_scaling"]
    try:
        factor, low, high, original = (float(scaling[key]) for key in _LLAMA3)
    except (KeyError, TypeError, ValueError) as error:
        raise InvalidModelError("The model's rope_scaling of the kind llama3 is incomplete.") from error
    return {LLAMA3_TENSOR: _llama3_factors(_frequencies(config), factor, low, high, original)}


def llama3_config(config: Config, source: TensorSource) -> dict[str, Any]:
    """The four numbers behind the factors in a GGUF file; empty where it has none.

    Only three of them can be told from the factors; ``low_freq_factor`` is 1, as in every released model.

    Raises:
        InvalidModelError: No such numbers give these factors.
    """
    if LLAMA3_TENSOR not in source.tensors:
        return {}
    tensor = source.tensors[LLAMA3_TENSOR]
    wanted = np.array(to_float32(source.read_rows(LLAMA3_TENSOR, 0, tensor.n_rows), tensor.type_name)).reshape(-1)
    frequencies = _frequencies(config)
    if len(wanted) == len(frequencies):
        for numbers in (*_KNOWN_LLAMA3, _fit_llama3(frequencies, wanted)):
            if numbers and np.allclose(_llama3_factors(frequencies, *numbers), wanted, rtol=1e-4, atol=0):
                return {"rope_scaling": {"rope_type": "llama3", **dict(zip(_LLAMA3, numbers, strict=True))}}
    raise InvalidModelError(
        f"The model's {LLAMA3_TENSOR} is not of the kind that Llama 3 has.",
        "Its rotary factors have no counterpart in config.json.",
    )


def _frequencies(config: Config) -> Array:
    width = head_dim(config)
    exponents = np.arange(0, width, 2, dtype=np.float32) / np.float32(width)
    return (1.0 / np.float32(config["rope_theta"]) ** exponents).astype(np.float32)


def _llama3_factors(frequencies: Array, factor: float, low: float, high: float, original: float) -> Array:
    wavelengths = np.float32(2 * math.pi) / frequencies
    smooth = (original / wavelengths - np.float32(low)) / np.float32((high - low) or 1)
    between = 1 / ((1 - smooth) / np.float32(factor) + smooth)
    factors = np.where(wavelengths > original / low, np.float32(factor), between)
    return np.where(wavelengths < original / high, np.float32(1), factors).astype(np.float32)


def _fit_llama3(frequencies: Array, wanted: Array) -> tuple[float, float, float, int] | None:
    """Solve for the numbers from the factors between 1 and the largest; None where there are fewer than two."""
    factor = float(wanted.max())
    middle = (wanted > 1) & (wanted < factor)
    if middle.sum() < 2:
        return None
    smooth = (1 / wanted[middle].astype(np.float64) - 1 / factor) / (1 - 1 / factor)
    slope, start = np.polyfit(frequencies[middle].astype(np.float64) / (2 * math.pi), smooth, 1)
    if start >= 0 or slope <= 0:
        return None
    return factor, 1.0, shortest(round(1 - 1 / start, 3)), round(-slope / start)


def longrope_tensors(config: Config) -> dict[str, Array]:
    """Phi-3's long and short factors as tensors; none for other scaling.

    Raises:
        InvalidModelError: They do not have one number for each pair of a head's rotated part.
    """
    if scaling_type(config) != "longrope":
        return {}
    scaling = config["rope_scaling"]
    count = int(config.get("partial_rotary_factor", 1.0) * head_dim(config)) // 2
    found = {}
    for name, key in ((LONG_TENSOR, "long_factor"), (SHORT_TENSOR, "short_factor")):
        factors = scaling.get(key)
        if not isinstance(factors, list) or len(factors) != count:
            raise InvalidModelError(f"The model's rope_scaling has no {count} numbers in {key}.")
        found[name] = np.array(factors, np.float32)
    return found


def longrope_config(source: TensorSource) -> dict[str, Any]:
    """``rope_scaling`` of Phi-3's factors; empty where the model has none."""
    if LONG_TENSOR not in source.tensors:
        return {}
    scaling: dict[str, Any] = {"rope_type": "longrope", "type": "longrope"}
    for name, key in ((LONG_TENSOR, "long_factor"), (SHORT_TENSOR, "short_factor")):
        tensor = source.tensors[name]
        factors = to_float32(source.read_rows(name, 0, tensor.n_rows), tensor.type_name)
        scaling[key] = [shortest(factor) for factor in factors.reshape(-1)]
    return {"rope_scaling": scaling}


def longrope_attention_factor(config: Config) -> float:
    """What queries and keys are scaled by when Phi-3's context is stretched (https://arxiv.org/abs/2402.13753)."""
    original = config["original_max_position_embeddings"]
    stretch = config["max_position_embeddings"] / original
    return math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
