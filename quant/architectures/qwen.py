"""Qwen 2, Qwen 3, its mixture of experts, and OLMoE, which differs from that in a few settings."""

from typing import Any

from quant.architectures.decoders import (
    ATTENTION,
    COMMON,
    EMBED,
    EXPERTS_USED,
    LAYER_NORMS,
    MLP,
    NO_WINDOW,
    NORM,
    OUTPUT,
    QK_NORMS,
    SILU,
    experts,
)
from quant.architectures.family import Family, Field, Metadata
from quant.architectures.rope import scaling_config, scaling_metadata
from quant.tensors.source import TensorSource

_EXPERT_RULES = experts("mlp", "gate_proj", "up_proj", "down_proj")


def _qwen2_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    return scaling_config(metadata, "qwen2")


def _qwen3_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    return scaling_config(metadata, "qwen3")


def _qwen3_moe_config(metadata: Metadata, _: TensorSource) -> dict[str, Any]:
    return scaling_config(metadata, "qwen3moe")


QWEN2 = Family(
    architecture="qwen2",
    model_types=("qwen2",),
    hf_class="Qwen2ForCausalLM",
    fields=COMMON,
    rules=(EMBED, *LAYER_NORMS, *ATTENTION, *MLP, NORM, OUTPUT),
    assumed=SILU | NO_WINDOW,
    constants={"hidden_act": "silu", "use_sliding_window": False},
    to_metadata=scaling_metadata,
    to_config=_qwen2_config,
)

QWEN3 = Family(
    architecture="qwen3",
    model_types=("qwen3",),
    hf_class="Qwen3ForCausalLM",
    fields=COMMON,
    rules=(EMBED, *LAYER_NORMS, *ATTENTION, *QK_NORMS, *MLP, NORM, OUTPUT),
    assumed=SILU | NO_WINDOW | {"attention_bias": (False,)},
    constants={"hidden_act": "silu", "use_sliding_window": False, "attention_bias": False},
    to_metadata=scaling_metadata,
    to_config=_qwen3_config,
)

QWEN3_MOE = Family(
    architecture="qwen3moe",
    model_types=("qwen3_moe",),
    hf_class="Qwen3MoeForCausalLM",
    fields=(
        *COMMON,
        Field("num_experts", "expert_count", also=("num_local_experts",)),
        EXPERTS_USED,
        Field("moe_intermediate_size", "expert_feed_forward_length"),
    ),
    rules=(EMBED, *LAYER_NORMS, *ATTENTION, *QK_NORMS, *_EXPERT_RULES, NORM, OUTPUT),
    assumed=SILU
    | NO_WINDOW
    | {
        "norm_topk_prob": (True,),
        "attention_bias": (False,),
        "mlp_only_layers": ([], None),
        "decoder_sparse_step": (1,),
    },
    constants={
        "hidden_act": "silu",
        "use_sliding_window": False,
        "attention_bias": False,
        "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    },
    to_metadata=scaling_metadata,
    to_config=_qwen3_moe_config,
)

OLMOE = Family(
    architecture="olmoe",
    model_types=("olmoe",),
    hf_class="OlmoeForCausalLM",
    fields=(*COMMON, Field("num_experts", "expert_count"), EXPERTS_USED),
    rules=(EMBED, *LAYER_NORMS, *ATTENTION, *QK_NORMS, *_EXPERT_RULES, NORM, OUTPUT),
    assumed=SILU | {"norm_topk_prob": (False,), "attention_bias": (False,), "clip_qkv": (None,)},
    constants={"hidden_act": "silu", "norm_topk_prob": False, "attention_bias": False},
    needs_output=True,
    to_metadata=scaling_metadata,
)
