"""What a table of a model family is made of."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any

from quant.tensors.metadata import MetadataValue
from quant.tensors.source import Array, TensorSource

Config = Mapping[str, Any]
Metadata = Mapping[str, MetadataValue]


class Transform(Enum):
    """What happens to a tensor's rows on the way from Hugging Face's form to GGUF."""

    SAME = auto()
    # Each head's rotary halves become pairs: llama.cpp rotates Llama's neighbours, transformers rotates halves.
    ROTARY = auto()
    # The norm is stored as its difference from one; llama.cpp stores it whole.
    PLUS_ONE = auto()
    # One matrix an expert becomes one stack.
    EXPERTS = auto()
    # Falcon's groups of queries, key and value become all queries, all keys, all values.
    GROUPED_QKV = auto()


@dataclass(frozen=True)
class Field:
    """A value that config.json and GGUF metadata both hold.

    Attributes:
        config: Its key in config.json.
        metadata: Its key in GGUF, after the architecture.
        kind: ``int``, ``float`` or ``bool``.
        default: What Hugging Face takes where config.json does not say; None where there is no default.
        same_as: The key whose value is the default.
        also: Other spellings in config.json, read and never written.
        required: Whether a model without it is refused.
    """

    config: str
    metadata: str
    kind: type = int
    default: Any = None
    same_as: str = ""
    also: tuple[str, ...] = ()
    required: bool = True


@dataclass(frozen=True)
class Rule:
    """A module of the model, by its name on either side; ``{}`` stands for the layer's number.

    Attributes:
        hf: In safetensors, without ``.weight`` or ``.bias``; ``{expert}`` stands for the expert's number.
        gguf: In GGUF, likewise.
        transform: What happens to the rows.
        optional: Whether a model may lack it.
        stacked: For experts: how MLX names the stack.
        fused: For experts: how transformers names the stack of gate and up in one; ``half`` says which half is meant.
        half: 0 or 1.
        part_of: The GGUF name of a fused tensor of queries, keys and values, where older files have one.
        part: Which of the three: 0, 1 or 2.
        only_if: A setting of config.json, with a minus in front where it must not hold; other models lack the module.
    """

    hf: str
    gguf: str
    transform: Transform = Transform.SAME
    optional: bool = False
    stacked: str = ""
    fused: str = ""
    half: int | None = None
    part_of: str = ""
    part: int = 0
    only_if: str = ""


def _nothing(*_: object) -> dict[str, Any]:
    return {}


def _no_tensors(_: Config) -> dict[str, Array]:
    return {}


@dataclass(frozen=True)
class Family:
    """How one kind of model is written in both forms.

    Attributes:
        architecture: GGUF's name.
        model_types: Those of config.json that are read; the first is written.
        hf_class: ``architectures`` in config.json.
        fields: Values on both sides.
        rules: Tensors on both sides.
        assumed: Settings of config.json that llama.cpp takes for granted, with the values that they may have; a model
            with another is refused.
        constants: What is written to config.json besides.
        ignored: Regular expressions of tensors that take no part in answering.
        renamed: Regular expression and replacement for other spellings of tensors' names, tried in order.
        tied: Whether output and input embeddings are one where config.json does not say.
        needs_output: Whether llama.cpp wants the output even where it is the same as the input.
        to_metadata: More metadata, by the key after the architecture.
        to_config: More of config.json, from metadata and tensors.
        made_tensors: GGUF tensors that config.json holds as numbers.
        made_names: Their names.
    """

    architecture: str
    model_types: tuple[str, ...]
    hf_class: str
    fields: tuple[Field, ...]
    rules: tuple[Rule, ...]
    assumed: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    ignored: tuple[str, ...] = (r".*\.rotary_emb\.inv_freq",)
    renamed: tuple[tuple[str, str], ...] = ()
    tied: bool = False
    needs_output: bool = False
    to_metadata: Callable[[Config], dict[str, MetadataValue]] = _nothing
    to_config: Callable[[Metadata, TensorSource], dict[str, Any]] = _nothing
    made_tensors: Callable[[Config], dict[str, Array]] = _no_tensors
    made_names: tuple[str, ...] = ()
