"""Phi-2, and Phi-3 with the dense models of Phi-3.5 and Phi-4."""

from typing import Any

from quant.architectures.decoders import (
    BLOCKS,
    COMMON,
    CONTEXT,
    EMBED,
    EMBEDDING,
    FEED_FORWARD,
    HEADS,
    KEY,
    KV_HEADS,
    LAYER_NORMS,
    NORM,
    OUTPUT,
    QUERY,
    THETA,
    VALUE,
)
from quant.architectures.decoders import SILU as _SILU
from quant.architectures.family import Config, Family, Field, Metadata, Rule
from quant.architectures.rope import (
    LONG_TENSOR,
    SHORT_TENSOR,
    head_dim,
    longrope_attention_factor,
    longrope_config,
    longrope_tensors,
    scaling_metadata,
    scaling_type,
)
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource


def _rotary_part(config: Config, default: float) -> dict[str, MetadataValue]:
    return {"rope.dimension_count": int(config.get("partial_rotary_factor", default) * head_dim(config))}


def _rotary_share(metadata: Metadata, architecture: str) -> dict[str, Any]:
    width, heads, rotated = (
        metadata.get(f"{architecture}.{key}")
        for key in ("embedding_length", "attention.head_count", "rope.dimension_count")
    )
    if isinstance(width, int) and isinstance(heads, int) and isinstance(rotated, int):
        return {"partial_rotary_factor": rotated * heads / width}
    return {}


def _phi2_metadata(config: Config) -> dict[str, MetadataValue]:
    return _rotary_part(config, 0.5) | scaling_metadata(config)


def _phi2_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    return _rotary_share(metadata, "phi2")


PHI2 = Family(
    architecture="phi2",
    model_types=("phi",),
    hf_class="PhiForCausalLM",
    fields=(
        CONTEXT,
        EMBEDDING,
        BLOCKS,
        FEED_FORWARD,
        HEADS,
        KV_HEADS,
        THETA,
        Field("layer_norm_eps", "attention.layer_norm_epsilon", float, 1e-5),
    ),
    rules=(
        EMBED,
        Rule("model.layers.{}.input_layernorm", "blk.{}.attn_norm"),
        QUERY,
        KEY,
        VALUE,
        Rule("model.layers.{}.self_attn.dense", "blk.{}.attn_output"),
        Rule("model.layers.{}.mlp.fc1", "blk.{}.ffn_up"),
        Rule("model.layers.{}.mlp.fc2", "blk.{}.ffn_down"),
        Rule("model.final_layernorm", "output_norm"),
        OUTPUT,
    ),
    assumed={
        "hidden_act": ("gelu_new", "gelu_pytorch_tanh"),
        "qk_layernorm": (False,),
        "tie_word_embeddings": (False,),
    },
    constants={"hidden_act": "gelu_new", "qk_layernorm": False},
    to_metadata=_phi2_metadata,
    to_config=_phi2_config,
)


def _phi3_metadata(config: Config) -> dict[str, MetadataValue]:
    original = config.get("original_max_position_embeddings") or config["max_position_embeddings"]
    found = _rotary_part(config, 1.0) | scaling_metadata(config)
    found["rope.scaling.original_context_length"] = int(original)
    # Read by nobody yet (llama.cpp turned it off); zero tells Phi-4 from the others.
    found["attention.sliding_window"] = int(config.get("sliding_window") or 0)
    if scaling_type(config) == "longrope":
        found["rope.scaling.attn_factor"] = longrope_attention_factor(
            {**config, "original_max_position_embeddings": original}
        )
    return found


def _phi3_config(metadata: Metadata, source: TensorSource) -> dict[str, Any]:
    found = _rotary_share(metadata, "phi3") | longrope_config(source)
    original = metadata.get("phi3.rope.scaling.original_context_length", metadata.get("phi3.context_length"))
    found["original_max_position_embeddings"] = original
    found["sliding_window"] = metadata.get("phi3.attention.sliding_window") or None
    return found


PHI3 = Family(
    architecture="phi3",
    model_types=("phi3",),
    hf_class="Phi3ForCausalLM",
    fields=tuple(field for field in COMMON if field.config != "head_dim"),
    rules=(
        EMBED,
        *LAYER_NORMS,
        Rule("model.layers.{}.self_attn.qkv_proj", "blk.{}.attn_qkv"),
        Rule("model.layers.{}.self_attn.o_proj", "blk.{}.attn_output"),
        Rule("model.layers.{}.mlp.gate_up_proj", "blk.{}.ffn_up"),
        Rule("model.layers.{}.mlp.down_proj", "blk.{}.ffn_down"),
        NORM,
        OUTPUT,
    ),
    assumed=_SILU | {"attention_bias": (False,)},
    constants={"hidden_act": "silu", "attention_bias": False},
    to_metadata=_phi3_metadata,
    to_config=_phi3_config,
    made_tensors=longrope_tensors,
    made_names=(LONG_TENSOR, SHORT_TENSOR),
)
