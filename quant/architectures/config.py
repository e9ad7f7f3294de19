"""config.json to GGUF metadata and back, by a family's table."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.architectures.family import Config, Family, Field, Metadata
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource

# What settings of a wrong kind lead to where they are computed with.
_CONSEQUENCES = (TypeError, ValueError, KeyError, IndexError, AttributeError, ArithmeticError)
_U32 = 1 << 32


@contextmanager
def impossible_settings(where: str) -> Iterator[None]:
    """Name the file whose settings cannot be computed with. Tables check most; what is nested is taken as it comes.

    Raises:
        InvalidModelError: Instead of what they lead to inside the block.
    """
    try:
        yield
    except _CONSEQUENCES as error:
        raise InvalidModelError(
            f"{where} holds impossible settings ({one_line(f'{type(error).__name__}: {error}', 120)}).",
            "Pull the model again.",
        ) from error


def flatten_config(config: Config) -> dict[str, Any]:
    """config.json in one spelling: the text model's settings at the top, rotary settings as transformers 4 has them.

    Raises:
        InvalidModelError: The weights are quantized in a way that is none of MLX's, or the rotary settings are none.
    """
    flat = dict(config)
    inner = flat.pop("text_config", None)
    if isinstance(inner, dict):
        flat |= inner
    packed = flat.get("quantization_config")
    if isinstance(packed, dict) and packed.get("quant_method"):
        raise InvalidModelError(
            f"The model is quantized with {one_line(str(packed['quant_method']), 40)}, which is not supported.",
            "Convert the model from which it was quantized.",
        )
    for key in ("rope_scaling", "rope_parameters"):
        if flat.get(key) is not None and not isinstance(flat[key], dict):
            raise _impossible(key, flat[key])
    rope = flat.get("rope_parameters")
    if rope:
        local = rope.get("sliding_attention")
        if isinstance(local, dict) and "rope_theta" in local:
            flat.setdefault("rope_local_base_freq", local["rope_theta"])
        whole = rope.get("full_attention", rope)
        if not isinstance(whole, dict):
            raise _impossible("rope_parameters", rope)
        for key in ("rope_theta", "partial_rotary_factor", "original_max_position_embeddings"):
            if whole.get(key) is not None:
                flat.setdefault(key, whole[key])
        if whole.get("rope_type", "default") != "default" and not flat.get("rope_scaling"):
            flat["rope_scaling"] = dict(whole)
    return flat


def with_defaults(family: Family, config: Config) -> dict[str, Any]:
    """A flat config.json with what transformers takes where it says nothing: Gemma 3 4B leaves out its heads."""
    given = {field.config: field.default for field in family.fields if field.default is not None and not field.also}
    return given | {key: value for key, value in config.items() if value is not None or key not in given}


def metadata_of(family: Family, config: Config) -> dict[str, MetadataValue]:
    """The keys of a family's table, with the architecture in front.

    Args:
        family: The table.
        config: From :func:`flatten_config`.

    Raises:
        InvalidModelError: A value is missing or none, or a setting is one that llama.cpp does not compute.
    """
    for key, allowed in family.assumed.items():
        if key in config and config[key] not in allowed:
            raise InvalidModelError(
                f"The model's {key} is {one_line(repr(config[key]), 60)}; "
                f"llama.cpp computes {family.architecture} only with {allowed[0]!r}.",
                "This variant cannot be converted.",
            )
    found: dict[str, MetadataValue] = {}
    for field in family.fields:
        value = field_value(field, config)
        if value is not None:
            found[field.metadata] = value
    with impossible_settings("config.json"):
        found |= family.to_metadata(config)
    return {f"{family.architecture}.{key}": value for key, value in found.items()}


def field_value(field: Field, config: Config) -> Any:
    """The value of ``field`` in config.json, or its default; None where it has neither and needs none.

    Raises:
        InvalidModelError: It is missing, or of the wrong kind.
    """
    names = (field.config, *field.also, *([field.same_as] if field.same_as else []))
    value: Any = next((config[name] for name in names if config.get(name) is not None), field.default)
    if value is None:
        if field.required:
            raise InvalidModelError(f"config.json does not say the model's {field.config}.", "Pull the model again.")
        return None
    if not _is_of(field.kind, value):
        raise _impossible(field.config, value)
    return field.kind(value)


def _is_of(kind: type, value: Any) -> bool:
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and 0 < value < _U32  # all of them are counts and widths
    return isinstance(value, int | float) and value >= 0 and (isinstance(value, int) or math.isfinite(value))


def _impossible(key: str, value: Any) -> InvalidModelError:
    return InvalidModelError(f"config.json has an impossible {key}: {one_line(repr(value), 60)}.")


def config_of(family: Family, metadata: Metadata, source: TensorSource) -> dict[str, Any]:
    """config.json of a GGUF model, without what the caller knows (types, special tokens).

    Raises:
        InvalidModelError: A key is missing or of the wrong kind.
    """
    config: dict[str, Any] = {"architectures": [family.hf_class], "model_type": family.model_types[0]}
    for field in family.fields:
        key = f"{family.architecture}.{field.metadata}"
        value = metadata.get(key, config.get(field.same_as) if field.same_as else field.default)
        if value is None:
            if field.required:
                raise InvalidModelError(f"The model's metadata lacks {key}.", "Pull the model again.")
            continue
        if not _is_of(field.kind, value):
            raise InvalidModelError(f"The model's metadata has an unsupported {key}.", "It may differ by layer.")
        assert isinstance(value, int | float)
        config[field.config] = shortest(value) if field.kind is float else field.kind(value)
    with impossible_settings("The model's metadata"):
        return config | dict(family.constants) | family.to_config(metadata, source)


def shortest(value: float) -> float:
    """A number that was kept as float32, as a person wrote it: ``1e-05``, not ``9.999999747378752e-06``."""
    return float(str(np.float32(value)))
