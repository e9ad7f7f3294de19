"""Llama and its kin: SmolLM, Mistral, Mixtral."""

from typing import Any

from quant.architectures.decoders import (
    COMMON,
    EMBED,
    EXPERTS_USED,
    LAYER_NORMS,
    MLP,
    NORM,
    OUTPUT,
    ROTARY_ATTENTION,
    SILU,
    experts,
)
from quant.architectures.family import Config, Family, Field, Metadata
from quant.architectures.rope import LLAMA3_TENSOR, head_dim, llama3_config, llama3_tensors, scaling_config
from quant.architectures.rope import scaling_metadata as scaling
from quant.tensors.metadata import MetadataValue
from quant.tensors.source import TensorSource

_RULES = (EMBED, *LAYER_NORMS, *ROTARY_ATTENTION)


def _to_metadata(config: Config) -> dict[str, MetadataValue]:
    # llama.cpp's Llama rotates whole heads and insists on being told so.
    return {"rope.dimension_count": head_dim(config), **scaling(config)}


def _to_config(metadata: Metadata, source: TensorSource) -> dict[str, Any]:
    core = {field.config: metadata.get(f"llama.{field.metadata}", field.default) for field in COMMON}
    core["head_dim"] = core["head_dim"] or metadata.get("llama.rope.dimension_count")
    found = {"head_dim": head_dim(core)}
    found |= scaling_config(metadata, "llama") | llama3_config(core | found, source)
    if "blk.0.ffn_gate_inp.weight" not in source.tensors:
        found["attention_bias"] = "blk.0.attn_q.bias" in source.tensors
        found["mlp_bias"] = "blk.0.ffn_up.bias" in source.tensors
    return found


LLAMA = Family(
    architecture="llama",
    model_types=("llama",),
    hf_class="LlamaForCausalLM",
    fields=COMMON,
    rules=(*_RULES, *MLP, NORM, OUTPUT),
    assumed=SILU,
    constants={"hidden_act": "silu"},
    to_metadata=_to_metadata,
    to_config=_to_config,
    made_tensors=llama3_tensors,
    made_names=(LLAMA3_TENSOR,),
)

# Without its sliding window, which llama.cpp does not compute either, Mistral is Llama: a GGUF file does not say which.
MISTRAL = Family(
    architecture="llama",
    model_types=("mistral",),
    hf_class="MistralForCausalLM",
    fields=COMMON,
    rules=LLAMA.rules,
    assumed=SILU,
    to_metadata=_to_metadata,
)

MIXTRAL = Family(
    architecture="llama",
    model_types=("mixtral",),
    hf_class="MixtralForCausalLM",
    fields=(*COMMON, Field("num_local_experts", "expert_count"), EXPERTS_USED),
    rules=(*_RULES, *experts("block_sparse_moe", "w1", "w3", "w2"), NORM, OUTPUT),
    assumed=SILU,
    constants={"hidden_act": "silu"},
    to_metadata=_to_metadata,
    to_config=_to_config,
)
